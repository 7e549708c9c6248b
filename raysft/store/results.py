"""Results: one Parquet file per stage and key, committed once.

Protocol. A writer writes to a dot-prefixed name in the same folder, syncs it, and publishes it under its final name
with a hard link, which fails if the name is taken: the first commit wins, a later one is dropped, and a reader never
sees half a file. On an object store a file appears when its upload is closed, and the final name is looked up before
the upload. Nothing published is ever rewritten; a file that turns out to be damaged is moved aside, not deleted.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import traceback
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysft.store.layout import Storage, StorageError, one_line
from raysft.store.schema import RESULTS, SCHEMA_VERSION

_RECORDED_PACKAGES = ("raysft", "ray", "torch", "transformers", "peft", "lm-eval", "pyarrow", "numpy")


@dataclass(frozen=True)
class Cost:
    """Wall seconds of a piece of work, and wall seconds times the GPUs held."""

    wall_s: float
    gpu_s: float = 0.0


@dataclass(frozen=True)
class ResultScan:
    """Keys of one stage that are committed, and the files that are there but damaged (relative to the storage)."""

    committed: frozenset[str]
    damaged: tuple[str, ...]


def result_path(stage: str, key: str) -> str:
    """Path of a result, relative to the storage."""
    return f"results/{stage}/{key}.parquet"


def commit_result(
    storage: Storage, stage: str, key: str, table: pa.Table, subject: Mapping[str, Any], cost: Cost
) -> bool:
    """Publish `table` as the result of (stage, key); False if another commit was first.

    `table` is cast to the stage's schema; a missing column is a ValueError. `subject` is stored as JSON metadata.
    """
    schema = RESULTS[stage]
    table = table.select(schema.names).cast(schema).replace_schema_metadata(_metadata(stage, key, subject, cost))
    final = storage.path(result_path(stage, key))
    if storage.exists(result_path(stage, key)):
        return False
    storage.filesystem.create_dir(storage.path("results", stage), recursive=True)
    if not storage.is_local:
        pq.write_table(table, final, filesystem=storage.filesystem)
        return True
    temporary = f"{storage.path('results', stage)}/.{key}.{uuid.uuid4().hex}"
    try:
        pq.write_table(table, temporary)
        _sync(temporary)
        return _publish(temporary, final)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_result(storage: Storage, stage: str, key: str) -> pa.Table:
    """The payload of a result, in the stage's current schema: columns that the file lacks are null."""
    path = result_path(stage, key)
    try:
        table = pq.read_table(storage.path(path), filesystem=storage.filesystem)
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(f"{path}: not a readable Parquet file ({one_line(error)})") from error
    written = int((table.schema.metadata or {}).get(b"schema_version", b"0"))
    if written > SCHEMA_VERSION:
        raise StorageError(f"{path}: schema version {written}, this raysft reads up to {SCHEMA_VERSION}")
    return conform(table, RESULTS[stage])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly the columns of `schema`; missing ones are null. Metadata of the table is kept."""
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema.with_metadata(table.schema.metadata))


def scan_results(storage: Storage, stage: str) -> ResultScan:
    """List a stage's results and, on a local storage, look at each file's last bytes, where Parquet puts its mark.

    An object appears only when its upload was closed, so remote files are not opened one by one.
    """
    committed, damaged = set(), []
    for name in storage.names("results", stage):
        if not name.endswith(".parquet"):
            continue
        if not storage.is_local or _has_footer(storage, f"results/{stage}/{name}"):
            committed.add(name.removesuffix(".parquet"))
        else:
            damaged.append(f"results/{stage}/{name}")
    return ResultScan(frozenset(committed), tuple(damaged))


def set_aside(storage: Storage, paths: Iterable[str]) -> None:
    """Move damaged files to dot-prefixed names beside them, so that they are redone and still there to look at."""
    for path in paths:
        folder, name = path.rsplit("/", 1)
        storage.filesystem.move(storage.path(path), storage.path(folder, f".damaged-{uuid.uuid4().hex[:8]}-{name}"))


def record_failure(
    storage: Storage, stage: str, key: str, error: BaseException, subject: Mapping[str, Any]
) -> dict[str, Any]:
    """Leave a record of a failed attempt, its traceback beside it, and return the record."""
    attempt = 1 + sum(name.endswith(".json") for name in storage.names("failures", stage, key))
    log = f"failures/{stage}/{key}/{attempt}.log"
    record = {
        "stage": stage,
        "key": key,
        "attempt": attempt,
        "error": type(error).__name__,
        "message": one_line(error),
        "log": log,
        "host": platform.node(),
        "at": _now(),
        "subject": dict(subject),
    }
    storage.write_bytes("".join(traceback.format_exception(error)).encode(), log)
    storage.write_bytes(json.dumps(record, indent=1).encode(), "failures", stage, key, f"{attempt}.json")
    return record


def read_failures(storage: Storage, stage: str, key: str) -> list[dict[str, Any]]:
    """Every recorded failure of (stage, key), first attempt first."""
    names = [name for name in storage.names("failures", stage, key) if name.endswith(".json")]
    records = [json.loads(storage.read_bytes("failures", stage, key, name)) for name in names]
    return sorted(records, key=lambda record: record["attempt"])


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages whose behaviour is in the numbers."""
    versions = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


@functools.cache
def git_revision() -> str:
    """Commit of the source tree that this package runs from; empty when it is not in a git checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _metadata(stage: str, key: str, subject: Mapping[str, Any], cost: Cost) -> dict[str, str]:
    return {
        "schema_version": str(SCHEMA_VERSION),
        "stage": stage,
        "key": key,
        "subject": json.dumps(subject, sort_keys=True),
        "versions": json.dumps(package_versions()),
        "git_revision": git_revision(),
        "host": platform.node(),
        "wall_s": repr(cost.wall_s),
        "gpu_s": repr(cost.gpu_s),
        "finished_at": _now(),
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(temporary: str, final: str) -> bool:
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    _sync(str(Path(final).parent))  # makes the new name itself survive a power cut
    return True


def _has_footer(storage: Storage, path: str) -> bool:
    with storage.filesystem.open_input_file(storage.path(path)) as file:
        size = file.size()
        return size >= 12 and file.read_at(4, size - 4) == b"PAR1"
