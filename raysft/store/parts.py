"""Parquet files that many processes write into one folder, each named by its content.

A part is there whole or not at all, and its name says whether it is still what was written. Whoever goes on after a
kill reads which rows are there already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysft.store.checkpoints import gathering_place, publish_gathered, read_manifest
from raysft.store.layout import DamagedError, Storage

_PART = ".parquet"


def write_part(storage: Storage, folder: str, table: pa.Table) -> str:
    """Write a table as a part of a folder that gathers; its name."""
    sink = pa.BufferOutputStream()
    # Numbers in fp32 neither compress nor repeat.
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    data = sink.getvalue().to_pybytes()
    name = f"{hashlib.sha256(data).hexdigest()}{_PART}"
    storage.write_bytes(data, gathering_place(storage, folder), name)
    return name


def gathered(storage: Storage, folder: str, columns: Sequence[str]) -> dict[str, pa.Table]:
    """Name -> these columns of every sound part that is there; one that is damaged is deleted."""
    place = gathering_place(storage, folder)
    found = {}
    for name in storage.names(place):
        if not name.endswith(_PART):
            continue
        data = storage.read_bytes(place, name)
        if hashlib.sha256(data).hexdigest() == name.removesuffix(_PART):
            found[name] = pq.read_table(pa.BufferReader(data), columns=list(columns))
        else:
            storage.delete(place, name)
    return found


def publish_parts(storage: Storage, folder: str, names: Sequence[str], facts: dict[str, Any]) -> bool:
    """Publish a folder of these parts; False if another process was first."""
    place = gathering_place(storage, folder)
    sizes = storage.sizes([storage.path(place, name) for name in names])
    files = {name: {"bytes": size, "sha256": name.removesuffix(_PART)} for name, size in zip(names, sizes, strict=True)}
    if gone := [name for name, size in zip(names, sizes, strict=True) if size is None]:
        raise DamagedError(f"{place}/{gone[0]}: no such file")
    done = publish_gathered(storage, folder, files, facts)
    if not done and storage.is_local:  # on an object store, what was first published may lie in the same place
        forget_gathered(storage, folder)
    return done


def forget_gathered(storage: Storage, folder: str) -> None:
    """Delete what gathers for a folder."""
    storage.delete_tree(gathering_place(storage, folder))


def read_parts(storage: Storage, folder: str, columns: Sequence[str]) -> pa.Table:
    """These columns of all parts of a published folder. DamagedError for one that is not complete."""
    return pq.ParquetDataset(_paths(storage, folder), filesystem=storage.filesystem).read(columns=list(columns))


def each_part(storage: Storage, folder: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of the parts of a published folder, one part in memory at a time, in the order of `read_parts`."""
    for path in _paths(storage, folder):
        yield pq.read_table(path, columns=list(columns), filesystem=storage.filesystem)


def part_columns(storage: Storage, folder: str) -> list[str]:
    """Names of the columns that the parts of a published folder have."""
    first = _paths(storage, folder)[0]
    return list(pq.read_schema(first, filesystem=storage.filesystem).names)


def _paths(storage: Storage, folder: str) -> list[str]:
    manifest = read_manifest(storage, folder)
    place = f"{folder}/{manifest['attempt']}" if "attempt" in manifest else folder
    return [storage.path(place, name) for name in manifest["files"]]
