"""One contract of the store, whatever it lies on: a local folder, or a bucket of a real S3 service on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from raysft.store.checkpoints import (
    MANIFEST,
    delete_folder,
    is_complete,
    local_folder,
    read_manifest,
    sound_folder,
    write_folder,
)
from raysft.store.layout import DamagedError, Storage, open_storage
from raysft.store.probe_schemas import LOG_LIKELIHOOD
from raysft.store.results import (
    Cost,
    commit_result,
    read_failures,
    read_result,
    record_failure,
    result_path,
    scan_results,
    set_aside,
)
from tests.s3_server import BUCKET, S3Server, environment, s3_service

pytestmark = pytest.mark.invariants

STAGE = "log_likelihood"
FOLDER = "checkpoints/t/epoch-0001"
WRITERS, ROUNDS = 4, 12

Answer = TypeVar("Answer")


@pytest.fixture(scope="module")
def service() -> Iterator[S3Server]:
    with s3_service() as server:
        yield server


@pytest.fixture(params=["local", "s3", "s3 without a prefix"])
def storage(
    request: pytest.FixtureRequest, service: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Storage]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # local copies are this test's own
    for name, value in environment(service.url).items():
        monkeypatch.setenv(name, value)
    if request.param == "local":
        (tmp_path / "storage").mkdir()
        yield open_storage(str(tmp_path / "storage"))
    elif request.param == "s3":
        yield open_storage(f"s3://{BUCKET}/{tmp_path.name}/a sweep")
    else:
        service.make_bucket(bucket := f"whole-{abs(hash(request.node.name)) % 10**9}")
        yield open_storage(f"s3://{bucket}")
    service.mend()


def _table(value: float) -> pa.Table:
    row = {"text": 0, "text_hash": "h", "log_likelihood": value, "tokens": 3, "bytes": 9}
    return pa.Table.from_pylist([row], schema=LOG_LIKELIHOOD)


def _commit(storage: Storage, key: str, value: float) -> bool:
    return commit_result(storage, STAGE, key, _table(value), {"model": "m"}, Cost(1.5))


def _value(storage: Storage, key: str) -> float:
    value: float = read_result(storage, STAGE, key).column("log_likelihood")[0].as_py()
    return value


def _save(text: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        (folder / "weights").write_text(text)
        (folder / "inside").mkdir()
        (folder / "inside" / "more").write_text(f"{text} and more")

    return save


def _content(storage: Storage, folder: str) -> tuple[str, str]:
    path = local_folder(storage, folder)
    return (path / "weights").read_text(), (path / "inside" / "more").read_text()


def _at_once(writers: int, write: Callable[[int], Answer]) -> list[Answer]:
    """`write` of every number, started together."""
    barrier = threading.Barrier(writers)

    def start(number: int) -> Answer:
        barrier.wait(timeout=60)
        return write(number)

    with ThreadPoolExecutor(writers) as pool:
        return list(pool.map(start, range(writers)))


def _tree(storage: Storage, folder: str) -> dict[str, bytes]:
    """Everything in a folder, hidden files too."""
    selector = pafs.FileSelector(storage.path(folder), recursive=True, allow_not_found=True)
    infos = storage.filesystem.get_file_info(selector)
    paths = [info.path.removeprefix(f"{storage.root}/") for info in infos if info.type == pafs.FileType.File]
    return {path: storage.read_bytes(path) for path in paths}


def test_a_storage_that_holds_nothing_can_be_read_and_written(storage: Storage) -> None:
    assert storage.names("results", STAGE) == []
    assert not storage.exists("results")
    assert storage.find_bytes("sweep.yaml") is None
    storage.check_writable()
    assert [name for name in storage.all_names() if name.startswith(".")] == []


def test_files_are_written_replaced_named_and_deleted(storage: Storage) -> None:
    storage.write_bytes(b"one", "sweep.yaml")
    storage.write_bytes(b"two", "sweep.yaml")
    storage.write_bytes(b"", "tables", "empty.parquet")
    storage.write_bytes(b"x", "tables", ".hidden")
    assert storage.read_bytes("sweep.yaml") == b"two"
    assert storage.read_bytes("tables", "empty.parquet") == b""
    assert storage.names("tables") == ["empty.parquet"]
    storage.delete("sweep.yaml")
    storage.delete("sweep.yaml")
    assert not storage.exists("sweep.yaml")


def test_a_result_is_committed_once_and_found(storage: Storage) -> None:
    assert _commit(storage, "k", 1.0)
    before = storage.read_bytes(result_path(STAGE, "k"))
    assert not _commit(storage, "k", 2.0)
    assert storage.read_bytes(result_path(STAGE, "k")) == before
    assert _value(storage, "k") == 1.0
    assert scan_results(storage, STAGE).committed == {"k"}


def test_a_late_commit_that_saw_no_result_changes_nothing(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _commit(storage, "k", 1.0)
    before = _tree(storage, "results")
    monkeypatch.setattr(Storage, "exists", lambda *_: False)  # the zombie looked before the other committed
    assert not _commit(storage, "k", 2.0)
    assert _tree(storage, "results") == before


def test_of_writers_that_race_for_a_result_one_is_first(storage: Storage) -> None:
    for turn in range(ROUNDS):
        key = f"k{turn}"
        won = _at_once(WRITERS, lambda number, key=key: _commit(storage, key, float(number)))  # type: ignore[misc]
        assert sorted(won) == [False] * (WRITERS - 1) + [True]
        assert _value(storage, key) == won.index(True)
    assert scan_results(storage, STAGE).committed == {f"k{turn}" for turn in range(ROUNDS)}


def test_of_writers_that_race_for_a_folder_one_is_first(storage: Storage) -> None:
    for turn in range(ROUNDS // 2):
        folder = f"checkpoints/t/epoch-{turn:04d}"
        won = _at_once(WRITERS, lambda number, folder=folder: write_folder(storage, folder, _save(str(number)), {}))  # type: ignore[misc]
        assert sorted(won) == [False] * (WRITERS - 1) + [True]
        winner = str(won.index(True))
        assert _content(storage, folder) == (winner, f"{winner} and more")
        left = {content for path, content in _tree(storage, folder).items() if MANIFEST not in path}
        assert left == {winner.encode(), f"{winner} and more".encode()}


def test_a_damaged_result_is_found_moved_aside_and_committed_anew(storage: Storage) -> None:
    _commit(storage, "k", 1.0)
    path = result_path(STAGE, "k")
    half = storage.read_bytes(path)[:100]
    storage.write_bytes(half, path)
    with pytest.raises(DamagedError, match=r"results/log_likelihood/k\.parquet: not a readable Parquet file"):
        read_result(storage, STAGE, "k")
    set_aside(storage, [path])
    assert [content for name, content in _tree(storage, "results").items() if ".damaged-" in name] == [half]
    assert _commit(storage, "k", 2.0)
    assert _value(storage, "k") == 2.0


def test_failures_that_are_recorded_at_once_are_all_kept(storage: Storage) -> None:
    def fail(number: int) -> None:
        record_failure(storage, "train", "k", RuntimeError("the same words"), {"model": "m"})

    _at_once(WRITERS, fail)
    records = read_failures(storage, "train", "k")
    assert [record["attempt"] for record in records] == list(range(1, WRITERS + 1))
    assert all("RuntimeError" in storage.read_bytes(record["log"]).decode() for record in records)


def test_a_folder_is_complete_once_written_and_gone_once_deleted(storage: Storage) -> None:
    assert not is_complete(storage, FOLDER)
    assert write_folder(storage, FOLDER, _save("abc"), {"epoch": 1})
    assert read_manifest(storage, FOLDER)["epoch"] == 1
    assert not write_folder(storage, FOLDER, _save("later"), {})
    assert _content(storage, FOLDER) == ("abc", "abc and more")
    delete_folder(storage, FOLDER)
    assert not storage.exists(FOLDER)
    delete_folder(storage, FOLDER)


def test_a_writer_that_comes_back_after_another_committed_changes_nothing(storage: Storage) -> None:
    committed = threading.Event()

    def late(folder: Path) -> None:
        _save("of the zombie")(folder)
        assert committed.wait(timeout=60)

    with ThreadPoolExecutor(1) as pool:
        zombie = pool.submit(write_folder, storage, FOLDER, late, {})
        assert write_folder(storage, FOLDER, _save("of the living"), {})
        before = _tree(storage, FOLDER)
        committed.set()
        assert not zombie.result(timeout=60)
    assert _tree(storage, FOLDER) == before
    assert _content(storage, FOLDER) == ("of the living", "of the living and more")


def test_a_writer_that_is_killed_in_the_middle_leaves_nothing_that_counts(storage: Storage, service: S3Server) -> None:
    upload = service.fault("hold", 99, matching="PUT .*attempt-.*/c.bin")
    writer = subprocess.Popen([sys.executable, "-m", "tests.invariants.store_writers", storage.uri, FOLDER])
    try:
        deadline = time.monotonic() + 120
        while not upload.reached.wait(0.1) and not storage.exists("in the middle"):
            assert time.monotonic() < deadline
            assert writer.poll() is None
        os.kill(writer.pid, signal.SIGKILL)
    finally:
        writer.kill()
        writer.wait(timeout=60)
    service.mend()
    assert not is_complete(storage, FOLDER)
    assert sound_folder(storage, FOLDER) is None
    assert write_folder(storage, FOLDER, _save("abc"), {})
    assert _content(storage, FOLDER) == ("abc", "abc and more")
    if not storage.is_local:
        assert not [path for path in _tree(storage, FOLDER) if path.endswith("a.bin")]


def _file(storage: Storage, name: str) -> str:
    manifest = read_manifest(storage, FOLDER)
    return f"{FOLDER}/{manifest['attempt']}/{name}" if not storage.is_local else f"{FOLDER}/{name}"


@pytest.mark.parametrize("harm", ["no manifest", "garbled manifest", "short file", "no file", "other bytes"])
def test_a_damaged_folder_counts_as_none_and_is_written_anew(storage: Storage, harm: str) -> None:
    write_folder(storage, FOLDER, _save("abc"), {})
    weights, manifest = _file(storage, "weights"), f"{FOLDER}/{MANIFEST}"
    {
        "no manifest": lambda: storage.delete(manifest),
        "garbled manifest": lambda: storage.write_bytes(b"[]", manifest),
        "short file": lambda: storage.write_bytes(b"a", weights),
        "no file": lambda: storage.delete(weights),
        "other bytes": lambda: storage.write_bytes(b"abd", weights),
    }[harm]()
    assert sound_folder(storage, FOLDER) is None
    assert not is_complete(storage, FOLDER)
    assert write_folder(storage, FOLDER, _save("again"), {})
    assert _content(storage, FOLDER) == ("again", "again and more")


def test_of_writers_that_race_for_a_damaged_folder_one_is_first(storage: Storage) -> None:
    for turn in range(ROUNDS // 2):
        folder = f"checkpoints/t/epoch-{turn:04d}"
        write_folder(storage, folder, _save("damaged"), {})
        storage.write_bytes(b"{", folder, MANIFEST)
        won = _at_once(WRITERS, lambda number, folder=folder: write_folder(storage, folder, _save(str(number)), {}))  # type: ignore[misc]
        assert won.count(True) == 1
        assert _content(storage, folder)[0] == str(won.index(True))


def test_a_local_copy_that_lost_a_file_is_made_anew(storage: Storage) -> None:
    if storage.is_local:
        pytest.skip("a local folder is its own copy")
    write_folder(storage, "models/k", _save("abc"), {})
    (local_folder(storage, "models/k") / "weights").unlink()
    assert _content(storage, "models/k") == ("abc", "abc and more")
    assert is_complete(storage, "models/k")
