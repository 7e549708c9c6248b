"""Packs: what was read of many small results, kept in few large files, so that it is not read from them again.

```
packs/<stage>-<digest>/<id>.arrow    payloads one below the other, and in the schema's metadata whose they are
```

A result never changes, so its copy is as good as long as the file has the size and time that it was read with. The
digest is that of the columns: results that were read in another schema are read anew. The folder may be deleted at any
time.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from raysft.store.layout import Storage
from raysft.store.results import Facts
from raysft.store.schema import RESULTS, SCHEMA_VERSION

FOLDER = "packs"

# What is raised by a file that is not there, or is no pack. It is only a copy: the results themselves are read then,
# and what goes wrong with those is said.
_UNREADABLE = (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError)

Kind = tuple[str, tuple[str, ...]]  # stage, and the columns that were read


@dataclass(frozen=True)
class Entry:
    """One result: key, stamp of its file, its facts as JSON has them, and its rows."""

    key: str
    stamp: str
    facts: Facts
    table: pa.Table


@dataclass(frozen=True)
class _Place:
    path: str
    stamp: str
    facts: Facts
    start: int
    rows: int


def stamps(storage: Storage, stage: str) -> dict[str, str]:
    """Key -> size and time of every result of a stage, which tell a file from another of its name."""
    selector = pafs.FileSelector(storage.path("results", stage), allow_not_found=True)
    infos = storage.filesystem.get_file_info(selector)
    return {info.base_name.removesuffix(".parquet"): f"{info.size}-{info.mtime_ns}" for info in infos}


class Packs:
    """The packs of a storage, as a mapping from results to what was read of them.

    A pack is loaded when a result in it is first taken, and let go once all of `wanted` that it holds were taken.
    """

    def __init__(self, storage: Storage, wanted: Iterable[tuple[Kind, str]]) -> None:
        self._storage = storage
        self._stamps: dict[str, dict[str, str]] = {}
        self._places: dict[tuple[Kind, str], _Place] = {}
        self._loaded: dict[str, pa.Table | None] = {}
        asked = Counter(wanted)
        self._kinds = tuple(dict.fromkeys(kind for kind, _ in asked))
        for kind in self._kinds:
            self._index(kind)
        self._left: Counter[str] = Counter()
        for what, times in asked.items():
            if what in self._places:
                self._left[self._places[what].path] += times

    def stamp(self, stage: str, key: str) -> str | None:
        """Stamp of a result's file as it was listed; None where there was none."""
        return self._stamps[stage].get(key)

    def holds(self, kind: Kind, key: str) -> bool:
        return (kind, key) in self._places

    def take(self, kind: Kind, key: str) -> tuple[pa.Table, Facts] | None:
        """Columns and facts of a result; None if it is in no pack, or in one that can no longer be read."""
        place = self._places.get((kind, key))
        if place is None:
            return None
        table = self._load(place.path)
        self._left[place.path] -= 1
        if not self._left[place.path]:
            del self._loaded[place.path]
        return None if table is None else (table.slice(place.start, place.rows), place.facts)

    def keep(self, kind: Kind, entries: Sequence[Entry]) -> None:
        """Write a pack of these results."""
        results, start = [], 0
        for entry in entries:
            results.append([entry.key, entry.stamp, entry.facts, start, entry.table.num_rows])
            start += entry.table.num_rows
        table = pa.concat_tables([entry.table.replace_schema_metadata(None) for entry in entries])
        table = table.combine_chunks().replace_schema_metadata({"results": json.dumps(results)})
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_file(buffer, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
            writer.write_table(table)
        self._storage.write_bytes(buffer.getvalue(), FOLDER, _folder(kind), f"{uuid.uuid4().hex}.arrow")

    def forget_others(self) -> None:
        """Delete packs of columns that nobody wants any more, as an older version of this package read them."""
        for name in set(self._storage.names(FOLDER)) - {_folder(kind) for kind in self._kinds}:
            self._storage.delete_tree(FOLDER, name)

    def _index(self, kind: Kind) -> None:
        stage = kind[0]
        if stage not in self._stamps:
            self._stamps[stage] = stamps(self._storage, stage)
        for name in self._storage.names(FOLDER, _folder(kind)):
            path = f"{FOLDER}/{_folder(kind)}/{name}"
            for key, stamp, facts, start, rows in self._results(path):
                if self._stamps[stage].get(key) == stamp:
                    self._places[kind, key] = _Place(path, stamp, facts, start, rows)

    def _results(self, path: str) -> list[Any]:
        try:
            with self._storage.filesystem.open_input_file(self._storage.path(path)) as file:
                found: list[Any] = json.loads(pa.ipc.open_file(file).schema.metadata[b"results"])
        except _UNREADABLE:
            return []
        return found

    def _load(self, path: str) -> pa.Table | None:
        if path not in self._loaded:
            try:
                content = self._storage.read_bytes(path)
                self._loaded[path] = pa.ipc.open_file(content).read_all()
            except _UNREADABLE:
                self._loaded[path] = None
        return self._loaded[path]


def _folder(kind: Kind) -> str:
    stage, columns = kind
    types = {name: str(RESULTS[stage].field(name).type) for name in columns}
    meaning = json.dumps([SCHEMA_VERSION, types])
    return f"{stage}-{hashlib.sha256(meaning.encode()).hexdigest()[:12]}"
