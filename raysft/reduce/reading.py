"""Reading committed results in order, several at a time, out of packs where they are packed."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from raysft.spec.plan import Work
from raysft.store.layout import DamagedError, Storage
from raysft.store.packs import Entry, Kind, Packs
from raysft.store.results import Facts, NewerSchemaError, read_result, result_facts, result_path

_BATCH = 16  # results that a thread reads in one go
_LOCAL_READERS, _REMOTE_READERS = 2, 32  # threads; reading an object is waiting, and a file is computing
_LARGEST_PACK = 512
_SMALLEST_PACK = 128  # as many are read one by one each time


@dataclass(frozen=True)
class Wanted:
    """A committed result, and the columns of it that come into tables: none where only its metadata does."""

    work: Work
    columns: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        return self.work.stage, self.columns


@dataclass(frozen=True)
class Found:
    """The columns of a result that are wanted, and what its metadata says of how it was made."""

    wanted: Wanted
    table: pa.Table
    facts: Facts


@dataclass(frozen=True)
class Unread:
    """A result that is left out: its path and a line that says why."""

    path: str
    line: str
    newer: bool = False


def read_results(storage: Storage, wanted: Sequence[Wanted], left_out: list[Unread]) -> Iterator[Found]:
    """These results in their order; those that cannot be read are added to `left_out`.

    StorageAccessError for one that could not be had.
    """
    packs = Packs(storage, ((one.kind, one.work.key) for one in wanted))
    read_loose = functools.partial(_read_loose, storage, packs)
    with _Packing(packs) as packing:
        for one, read in zip(wanted, _ahead(read_loose, wanted, storage), strict=True):
            found = read or _unpacked(packs, one) or _read(storage, one)
            if isinstance(found, Unread):
                left_out.append(found)
                continue
            if read is not None:
                packing.add(found)
            yield found
        packing.finish()
    packs.forget_others()


class _Packing:
    """What was read of single files, on its way into packs, which a thread writes."""

    def __init__(self, packs: Packs) -> None:
        self._packs = packs
        self._entries: dict[Kind, list[Entry]] = {}
        self._thread = ThreadPoolExecutor(1)
        self._written: list[Future[None]] = []

    def __enter__(self) -> _Packing:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def add(self, found: Found) -> None:
        work, kind = found.wanted.work, found.wanted.kind
        stamp = self._packs.stamp(work.stage, work.key)
        if stamp is None:
            return  # it came after the files were listed
        entries = self._entries.setdefault(kind, [])
        entries.append(Entry(work.key, stamp, found.facts, found.table))
        if len(entries) == _LARGEST_PACK:
            self._written.append(self._thread.submit(self._packs.keep, kind, self._entries.pop(kind)))

    def finish(self) -> None:
        """Pack what is left, if it is worth it; StorageAccessError where packs could not be written."""
        for kind, entries in self._entries.items():
            if len(entries) >= _SMALLEST_PACK:
                self._packs.keep(kind, entries)
        for written in self._written:
            written.result()


def _unpacked(packs: Packs, wanted: Wanted) -> Found | None:
    held = packs.take(wanted.kind, wanted.work.key)
    return None if held is None else Found(wanted, *held)


def _read_loose(storage: Storage, packs: Packs, wanted: Wanted) -> Found | Unread | None:
    """A result that is in no pack."""
    return None if packs.holds(wanted.kind, wanted.work.key) else _read(storage, wanted)


def _read(storage: Storage, wanted: Wanted) -> Found | Unread:
    stage, key = wanted.work.stage, wanted.work.key
    try:
        table = read_result(storage, stage, key, wanted.columns)
        return Found(wanted, table.replace_schema_metadata(None), result_facts(stage, key, table))
    except (DamagedError, NewerSchemaError) as error:
        return Unread(result_path(stage, key), str(error), newer=isinstance(error, NewerSchemaError))


def _ahead(
    read: Callable[[Wanted], Found | Unread | None], wanted: Sequence[Wanted], storage: Storage
) -> Iterator[Found | Unread | None]:
    """What `read` makes of each, in order, by threads that are not far ahead."""
    readers = _LOCAL_READERS if storage.is_local else _REMOTE_READERS
    batches = deque(wanted[start : start + _BATCH] for start in range(0, len(wanted), _BATCH))
    with ThreadPoolExecutor(readers) as pool:
        reading = deque(pool.submit(list, map(read, batches.popleft())) for _ in range(min(len(batches), 2 * readers)))
        while reading:
            done = reading.popleft().result()
            if batches:
                reading.append(pool.submit(list, map(read, batches.popleft())))
            yield from done
