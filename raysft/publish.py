"""Study and report of a storage. Both work on local folders, so a remote storage is copied there and back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import yaml

from raysft.report import write_report
from raysft.spec.sweep import SpecError, Sweep, parse_sweep
from raysft.store.layout import SPEC_FILE, Storage
from raysft.study.run import run_study


def make_study(storage: Storage, clip_below: float | None = None) -> None:
    """Write `study/` from `tables/`; `clip_below` as for `run_study`."""
    _with_local_folders(storage, "study", lambda root: run_study(root / "tables", root / "study", clip_below))


def make_report(storage: Storage, title: str, clip_below: float | None = None) -> None:
    """Write `study/` and `report/` from `tables/`; `clip_below` as for `run_study`."""

    spec = _last_spec(storage)

    def write(root: Path) -> None:
        run_study(root / "tables", root / "study", clip_below)
        write_report(root / "tables", root / "study", root / "report", title, spec)

    _with_local_folders(storage, "report", write)


def _last_spec(storage: Storage) -> Sweep | None:
    """The spec of the storage's last run; None where nothing was run, or where an older version wrote it otherwise.

    The report's methods say less without it, and nothing else needs it.
    """
    if not storage.exists(SPEC_FILE):
        return None
    try:
        content = yaml.safe_load(storage.read_bytes(SPEC_FILE))
        return parse_sweep(content, SPEC_FILE) if isinstance(content, dict) else None
    except (yaml.YAMLError, UnicodeDecodeError, SpecError):
        return None


def _with_local_folders(storage: Storage, last: str, make: Callable[[Path], object]) -> None:
    """Call `make` with a local root that holds `tables/`; what it makes ends up in the storage."""
    if storage.is_local:
        make(storage.local_path())
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        storage.download(root / "tables", "tables")
        make(root)
        for folder in dict.fromkeys(("study", last)):
            storage.upload(root / folder, folder)
