"""The store: first commit wins, readers see whole files, damage is found and moved aside, failures are kept."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysft.store.checkpoints import (
    MANIFEST,
    delete_folder,
    is_complete,
    local_folder,
    move_aside,
    read_manifest,
    write_folder,
)
from raysft.store.layout import Storage, StorageError, open_storage
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
from raysft.store.schema import SCHEMA_VERSION

pytestmark = pytest.mark.unit

STAGE = "log_likelihood"


def _table(value: float) -> pa.Table:
    row = {"text": 0, "text_hash": "h", "log_likelihood": value, "tokens": 3, "bytes": 9}
    return pa.Table.from_pylist([row], schema=LOG_LIKELIHOOD)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "storage"))


def _commit(storage: Storage, key: str, value: float) -> bool:
    return commit_result(storage, STAGE, key, _table(value), {"model": "m"}, Cost(1.5))


def test_the_first_commit_wins(storage: Storage) -> None:
    assert _commit(storage, "k", 1.0)
    assert not _commit(storage, "k", 2.0)
    assert read_result(storage, STAGE, "k").column("log_likelihood").to_pylist() == [1.0]


def test_a_writer_that_raced_past_the_look_up_still_loses(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _commit(storage, "k", 1.0)
    monkeypatch.setattr(Storage, "exists", lambda *_: False)
    assert not _commit(storage, "k", 2.0)
    assert read_result(storage, STAGE, "k").column("log_likelihood").to_pylist() == [1.0]
    assert os.listdir(storage.path("results", STAGE)) == ["k.parquet"]  # noqa: PTH208  dot files must show here


def test_a_result_says_what_it_is_and_where_it_comes_from(storage: Storage) -> None:
    _commit(storage, "k", 1.0)
    metadata = read_result(storage, STAGE, "k").schema.metadata
    assert metadata[b"key"] == b"k"
    assert json.loads(metadata[b"subject"]) == {"model": "m"}
    assert json.loads(metadata[b"versions"])["pyarrow"] == pa.__version__
    assert float(metadata[b"wall_s"]) == 1.5
    assert int(metadata[b"schema_version"]) == SCHEMA_VERSION


def test_a_file_without_a_newer_column_reads_as_null(storage: Storage) -> None:
    _commit(storage, "k", 1.0)
    path = storage.path(result_path(STAGE, "k"))
    old = pq.read_table(path)
    pq.write_table(old.drop_columns(["bytes"]), path)
    assert read_result(storage, STAGE, "k").column("bytes").to_pylist() == [None]


def test_a_file_of_a_newer_schema_is_refused(storage: Storage) -> None:
    _commit(storage, "k", 1.0)
    path = storage.path(result_path(STAGE, "k"))
    table = pq.read_table(path)
    metadata = {**table.schema.metadata, b"schema_version": b"99"}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(StorageError, match="schema version 99"):
        read_result(storage, STAGE, "k")


def test_a_truncated_file_is_found_named_and_kept(storage: Storage) -> None:
    _commit(storage, "good", 1.0)
    _commit(storage, "bad", 2.0)
    path = Path(storage.path(result_path(STAGE, "bad")))
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half)
    scan = scan_results(storage, STAGE)
    assert scan.committed == {"good"}
    assert scan.damaged == (result_path(STAGE, "bad"),)
    with pytest.raises(StorageError, match=r"results/log_likelihood/bad\.parquet: not a readable Parquet file"):
        read_result(storage, STAGE, "bad")
    set_aside(storage, scan.damaged)
    assert scan_results(storage, STAGE).damaged == ()
    assert [kept.read_bytes() for kept in path.parent.glob(".damaged-*")] == [half]
    assert _commit(storage, "bad", 3.0)


def test_temporary_files_are_no_results(storage: Storage) -> None:
    _commit(storage, "k", 1.0)
    Path(storage.path("results", STAGE, ".k2.parquet")).write_bytes(b"half")
    assert scan_results(storage, STAGE).committed == {"k"}


def test_failures_are_counted_and_keep_their_traceback(storage: Storage) -> None:
    for attempt in (1, 2):
        try:
            raise RuntimeError(f"number\n{attempt}")
        except RuntimeError as error:
            record_failure(storage, "train", "k", error, {"model": "m"})
    records = read_failures(storage, "train", "k")
    assert [(record["attempt"], record["message"]) for record in records] == [(1, "number 1"), (2, "number 2")]
    assert "RuntimeError" in storage.read_bytes(*records[1]["log"].split("/")).decode()


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "below", Path("/proc/raysft")):
        with pytest.raises(StorageError, match="cannot write there"):
            open_storage(str(path)).check_writable()


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match=r"ftp://x/y.*valid are a local path, s3://"):
        open_storage("ftp://x/y")


def _save(text: str) -> object:
    def save(folder: Path) -> None:
        (folder / "weights").write_text(text)

    return save


def test_a_folder_is_complete_once_its_manifest_is_there(storage: Storage) -> None:
    assert write_folder(storage, "checkpoints/t/epoch-1", _save("abc"), {"epoch": 1})
    assert read_manifest(storage, "checkpoints/t/epoch-1")["epoch"] == 1
    assert not write_folder(storage, "checkpoints/t/epoch-1", _save("later"), {})
    assert (local_folder(storage, "checkpoints/t/epoch-1") / "weights").read_text() == "abc"


@pytest.mark.parametrize("harm", ["no manifest", "short file", "no file", "garbled manifest"])
def test_a_half_written_folder_is_moved_aside_and_written_again(storage: Storage, harm: str) -> None:
    folder = "checkpoints/t/epoch-1"
    write_folder(storage, folder, _save("abc"), {})
    path = storage.local_path(folder)
    {
        "no manifest": lambda: (path / MANIFEST).unlink(),
        "short file": lambda: (path / "weights").write_text("a"),
        "no file": lambda: (path / "weights").unlink(),
        "garbled manifest": lambda: (path / MANIFEST).write_text("{"),
    }[harm]()
    assert not is_complete(storage, folder)
    with pytest.raises(StorageError, match=r"checkpoints/t/epoch-1"):
        local_folder(storage, folder)
    assert write_folder(storage, folder, _save("again"), {})
    assert (local_folder(storage, folder) / "weights").read_text() == "again"
    assert len(list(path.parent.glob(".damaged-*"))) == 1


def test_changed_bytes_of_the_same_size_are_found(storage: Storage) -> None:
    write_folder(storage, "models/k", _save("abc"), {})
    (storage.local_path("models/k") / "weights").write_text("abd")
    with pytest.raises(StorageError, match=r"models/k/weights: damaged"):
        local_folder(storage, "models/k")


def test_a_folder_that_another_process_moved_aside_first_is_no_error(storage: Storage) -> None:
    write_folder(storage, "models/k", _save("abc"), {})
    (storage.local_path("models/k") / "weights").write_text("abd")
    move_aside(storage, "models/k")
    move_aside(storage, "models/k")
    assert not storage.exists("models/k")


def test_a_folder_that_was_written_anew_meanwhile_is_not_moved_aside(storage: Storage) -> None:
    write_folder(storage, "models/k", _save("abc"), {})
    move_aside(storage, "models/k")  # of a process that saw a damaged one there before
    assert (local_folder(storage, "models/k") / "weights").read_text() == "abc"
    assert [path.name for path in storage.local_path("models").iterdir()] == ["k"]


def test_a_result_that_was_committed_anew_meanwhile_is_not_moved_aside(storage: Storage) -> None:
    _commit(storage, "k", 1.0)
    set_aside(storage, [result_path(STAGE, "k"), result_path(STAGE, "gone")])
    assert scan_results(storage, STAGE).committed == {"k"}


def test_a_writer_that_fails_leaves_nothing(storage: Storage) -> None:
    def fail(folder: Path) -> None:
        (folder / "weights").write_text("a")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_folder(storage, "models/k", fail, {})
    assert list(storage.local_path("models").iterdir()) == []


def test_a_deleted_folder_is_gone(storage: Storage) -> None:
    write_folder(storage, "embeddings/k", _save("abc"), {})
    delete_folder(storage, "embeddings/k")
    assert not storage.exists("embeddings", "k")
    delete_folder(storage, "embeddings/k")
