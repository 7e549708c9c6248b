"""Results: one Parquet file per stage and key, committed once.

Protocol. The first commit wins, and a later one, of a slower writer or of one that comes back late, changes nothing. A
file appears under its final name whole or not at all: locally by a hard link of a synced, dot-prefixed file, which
fails if the name is taken, and on an object store by a put on the condition that there is no such object. Nothing
published is ever rewritten; a file that turns out to be damaged is moved aside, not deleted.
"""

from __future__ import annotations

import functools
import io
import json
import os
import platform
import subprocess
import traceback
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysft.store.layout import DamagedError, Storage, StorageError, one_line
from raysft.store.schema import RESULTS, SCHEMA_VERSION


class NewerSchemaError(StorageError):
    """A result that a newer version of this package wrote: it may mean what this one does not know."""


Facts = dict[str, Any]

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
    if storage.exists(result_path(stage, key)):
        return False
    buffer = io.BytesIO()
    # A result is read whole and never searched: dictionaries and statistics would only make it larger and slower.
    pq.write_table(table, buffer, use_dictionary=False, write_statistics=False)
    return storage.create_bytes(buffer.getvalue(), result_path(stage, key))


def read_result(storage: Storage, stage: str, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The payload of a result, in the stage's current schema: columns that the file lacks are null.

    `columns`: of the schema, those that are wanted; every one by default. DamagedError for a file that cannot be made
    out; NewerSchemaError for one of a newer version; StorageAccessError for one that could not be had.
    """
    path = result_path(stage, key)
    return _payload(stage, path, storage.read_bytes(path), columns)


def _payload(stage: str, path: str, content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    schema = RESULTS[stage] if columns is None else _part(stage, tuple(columns))
    table = _parsed(path, content, None if len(schema) == len(RESULTS[stage]) else columns)
    written = int((table.schema.metadata or {}).get(b"schema_version", b"0"))
    if written > SCHEMA_VERSION:
        raise NewerSchemaError(f"{path}: schema version {written}, this raysft reads up to {SCHEMA_VERSION}")
    try:
        return conform(table, schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DamagedError(f"{path}: not a result of {stage} ({one_line(error)})") from error


@functools.cache
def _part(stage: str, columns: tuple[str, ...]) -> pa.Schema:
    return pa.schema([RESULTS[stage].field(name) for name in columns])


def _parsed(path: str, content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        # Not read_table: around files this small, what it makes to read many at once takes twice the time of reading.
        return pq.ParquetFile(pa.BufferReader(content)).read(columns, use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise DamagedError(f"{path}: not a readable Parquet file ({one_line(error)})") from error


def result_facts(stage: str, key: str, table: pa.Table) -> Facts:
    """What the metadata of a result says of how it was made: the columns of the table `costs` by name.

    DamagedError where it does not say so, as no file does that `commit_result` wrote.
    """
    metadata = table.schema.metadata or {}
    try:
        return {
            "wall_s": float(metadata[b"wall_s"]),
            "gpu_s": float(metadata[b"gpu_s"]),
            "host": metadata[b"host"].decode(),
            "finished_at": metadata[b"finished_at"].decode(),
            "versions": _versions_text(metadata.get(b"versions", b"{}")),
        }
    except (KeyError, ValueError, AttributeError) as error:
        raise DamagedError(f"{result_path(stage, key)}: its metadata is not that of a result ({error!r})") from error


@functools.lru_cache
def _versions_text(versions: bytes) -> str:
    return "; ".join(f"{package} {version}" for package, version in sorted(json.loads(versions).items()))


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly the columns of `schema`; missing ones are null. Metadata of the table is kept."""
    if table.schema.equals(schema):  # as nearly every one is, of thousands
        return table
    names = set(table.column_names)
    columns = [
        table.column(field.name).cast(field.type) if field.name in names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema.with_metadata(table.schema.metadata))


def scan_results(storage: Storage, stage: str, sound: Collection[str] = frozenset()) -> ResultScan:
    """List a stage's results and, on a local storage, look at each file's last bytes, where Parquet puts its mark.

    An object appears only when its upload was closed, so remote files are not opened one by one; nor are those of the
    keys that were found `sound` before, since what is published is never rewritten.
    """
    committed, damaged = set(), []
    for name in storage.names("results", stage):
        if not name.endswith(".parquet"):
            continue
        key = name.removesuffix(".parquet")
        if not storage.is_local or key in sound or _has_footer(storage.path("results", stage, name)):
            committed.add(key)
        else:
            damaged.append(f"results/{stage}/{name}")
    return ResultScan(frozenset(committed), tuple(damaged))


def set_aside(storage: Storage, paths: Iterable[str]) -> None:
    """Move damaged files to dot-prefixed names beside them, so that they are redone and still there to look at.

    One that reads well by now was committed anew by another process, and stays.
    """
    for path in paths:
        content = storage.find_bytes(path)
        if content is None:
            continue
        folder, name = path.rsplit("/", 1)
        stage, key = folder.rpartition("/")[2], name.removesuffix(".parquet")
        try:
            result_facts(stage, key, _payload(stage, path, content))
        except NewerSchemaError:
            continue
        except DamagedError:
            storage.move(path, f"{folder}/.damaged-{uuid.uuid4().hex[:8]}-{name}")


def record_failure(
    storage: Storage, stage: str, key: str, error: BaseException, subject: Mapping[str, Any]
) -> dict[str, Any]:
    """Leave a record of a failed attempt, its traceback beside it, and return the record."""
    written_by = f"{platform.node()}, process {os.getpid()}, {datetime.now(timezone.utc).isoformat()}\n"
    text = (written_by + "".join(traceback.format_exception(error))).encode()
    attempt = 1 + sum(name.endswith(".log") for name in storage.names("failures", stage, key))
    while not storage.create_bytes(text, log := f"failures/{stage}/{key}/{attempt}.log"):
        attempt += 1  # another process recorded a failure at the same time
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
        "commit": uuid.uuid4().hex,  # no two writers write the same bytes
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _has_footer(path: str) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        return size >= 12 and os.pread(descriptor, 4, size - 4) == b"PAR1"
    finally:
        os.close(descriptor)
