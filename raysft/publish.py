"""Study, report and comparison of storages. All work on local folders, so a remote storage is copied there and back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import yaml

from raysft.report import write_report
from raysft.report.comparison import Side, write_comparison
from raysft.report.findings import read_findings
from raysft.spec.sweep import SpecError, Sweep, load_sweep, parse_sweep
from raysft.store.layout import SPEC_FILE, Storage, StorageError, open_storage
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


def report_released(folder: Path) -> Path:
    """Write `report/` beside the tables of a study of released scores; return the page's path.

    Raises:
        StorageError: `folder` holds no such study.
    """
    if not (folder / "sweep" / "trials.parquet").is_file() or not (folder / "tables" / "gains.parquet").is_file():
        raise StorageError(f"--released {folder}: no study of released scores; `raysft study --released` makes one")
    return write_report(folder / "sweep", folder, folder / "report", folder.resolve().name)


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


def make_comparison(first: str, second: str, out: Path) -> Path:
    """Write the page that sets two studies side by side into `out`; return the page's path.

    Each is a sweep's YAML, a storage that has tables and a study, or the folder of a study of released scores.

    Raises:
        SpecError, StorageError: one of them is none of these, or has no study yet.
    """
    with ExitStack() as scratch:
        sides = [_side(where, scratch) for where in (first, second)]
        if sides[0].name == sides[1].name:
            sides = [Side(f"{side.name} ({label})", side.findings) for side, label in zip(sides, "AB", strict=True)]
        return write_comparison(sides[0], sides[1], out)


def _side(where: str, scratch: ExitStack) -> Side:
    path = Path(where)
    if "://" not in where and path.is_file():
        sweep = load_sweep(path)
        return _storage_side(sweep.name, open_storage(sweep.storage), scratch)
    if "://" not in where and (path / "sweep" / "trials.parquet").is_file():
        if not (path / "tables" / "gains.parquet").is_file():
            raise StorageError(f"--compare {where}: no tables/gains.parquet; `raysft study --released` makes it")
        return Side(path.resolve().name, read_findings(path / "sweep", path))
    if "://" not in where and not path.is_dir():
        raise StorageError(f"--compare {where}: no such file or folder; {_COMPARABLE}")
    storage = open_storage(where)
    spec = _last_spec(storage)
    return _storage_side(spec.name if spec is not None else where.rstrip("/").rpartition("/")[2], storage, scratch)


_COMPARABLE = "valid: a sweep's YAML, its storage, or the folder of `raysft study --released`"


def _storage_side(name: str, storage: Storage, scratch: ExitStack) -> Side:
    if not storage.exists("tables", "trials.parquet"):
        raise StorageError(f"--compare {storage.uri}: no tables there; {_COMPARABLE}")
    if not storage.exists("study", "tables", "gains.parquet"):
        raise StorageError(f"--compare {storage.uri}: no study there yet; `raysft study` makes it")
    if storage.is_local:
        root = storage.local_path()
    else:
        root = Path(scratch.enter_context(tempfile.TemporaryDirectory()))
        for folder in ("tables", "study"):
            storage.download(root / folder, folder)
    return Side(name, read_findings(root / "tables", root / "study"))
