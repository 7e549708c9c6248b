"""An export from an object store is the export from a disk, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raysft.export.run import Options, Outcome, export, selected
from raysft.export.selection import Choice
from raysft.spec.sweep import Sweep, parse_sweep
from raysft.store.checkpoints import write_folder
from raysft.store.layout import Storage, open_storage
from tests.made_storage import make_storage
from tests.s3_server import BUCKET, environment, s3_service

pytestmark = [pytest.mark.invariants, pytest.mark.timeout(300)]


def test_an_export_from_s3_is_that_from_a_disk(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content["datasets"] = content["datasets"][:1]
    sweep = parse_sweep(content, "sweep")
    local = make_storage(sweep)
    assert all(outcome.state == "written" for outcome in _exported(sweep, local, tmp_path / "from-disk"))
    with s3_service() as service:
        for name, value in environment(service.url).items():
            monkeypatch.setenv(name, value)
        remote = open_storage(f"s3://{BUCKET}/sweep")
        _copy(local, remote)
        there = sweep.model_copy(update={"storage": remote.uri})
        assert all(outcome.state == "written" for outcome in _exported(there, remote, tmp_path / "from-s3"))
        service.requests.clear()
        assert all(outcome.state == "there" for outcome in _exported(there, remote, tmp_path / "from-s3"))
        read = [request for request in service.requests if request.startswith("GET") and "safetensors" in request]
        assert read == [], "what is there is not downloaded again"
    assert _contents(tmp_path / "from-s3") == _contents(tmp_path / "from-disk")


def _copy(local: Storage, remote: Storage) -> None:
    """Every folder with a manifest is written as a run writes it there; tables are uploaded."""
    root = Path(local.uri)
    for manifest in root.rglob("manifest.json"):
        folder = manifest.parent

        def save(target: Path, folder: Path = folder) -> None:
            for path in folder.iterdir():
                if path.name != "manifest.json":
                    (target / path.name).write_bytes(path.read_bytes())

        write_folder(remote, folder.relative_to(root).as_posix(), save, {})
    remote.upload(root / "tables", "tables")


def _exported(sweep: Sweep, storage: Storage, out: Path) -> list[Outcome]:
    with selected(sweep, storage, Choice(models=("every",))) as selection:
        return list(export(selection, out, Options()))


def _contents(out: Path) -> dict[str, bytes]:
    files = [path for path in out.rglob("*") if path.is_file()]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}
