"""Whether a trial whose process died is tried again.

A trial that dies of a node that went, or of a storage that cannot be written, did nothing wrong: it is tried again, as
often as that happens. One whose own process dies is tried again `resources.max_retries` times, since it may be what
kills it. Each death is a record of the failures table, with its cause.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from raysft.cluster.deaths import Death, ProcessDiedError, StorageLostError, death_of
from raysft.spec.plan import Unit, Work
from raysft.store.layout import Storage, StorageError
from raysft.store.results import record_failure

# No cluster loses so many nodes under one trial: this one takes its nodes down.
_MOST_LOSSES = 20

_PATIENCE_S = 600.0  # with a storage that refuses writes
_LOOK_EVERY_S = 2.0


@dataclass(frozen=True)
class UnitDeath:
    """The end of a process of a unit, what ended it, and whether the unit is tried again."""

    unit: Unit
    death: Death
    again: bool


class Retries:
    """The deaths of a run's units. `works` are by the unit's key those that it was to do."""

    def __init__(self, storage: Storage, works: dict[str, list[Work]], max_retries: int) -> None:
        self._storage = storage
        self._works = works
        self._max_retries = max_retries
        self._own: Counter[str] = Counter()
        self._losses: Counter[str] = Counter()
        self._unrecorded: list[tuple[Unit, Death]] = []
        self._refused_since: float | None = None
        self._looked_at = float("-inf")

    def judge(self, unit: Unit, error: BaseException | None) -> UnitDeath:
        """Take note that a process of `unit` died of `error`, and say whether the unit is to be tried again."""
        death = death_of(error)
        # A storage that takes what others write is not to blame: this trial's checkpoint may be too big for it.
        own = self._is_writable() if isinstance(death, StorageLostError) else isinstance(death, ProcessDiedError)
        self._unrecorded.append((unit, death))
        self._record()
        counter, most = (self._own, self._max_retries) if own else (self._losses, _MOST_LOSSES)
        counter[unit.key] += 1
        return UnitDeath(unit, death, counter[unit.key] <= most)

    def is_storage_there(self) -> bool:
        """Whether units may start: False while the storage refuses writes, after it refused those of a unit.

        StorageError when it has done so for ten minutes.
        """
        if self._refused_since is None:
            return True
        if time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return False
        if self._is_writable():
            self._record()
            return True
        if time.monotonic() - self._refused_since > _PATIENCE_S:
            self._storage.check_writable()
        return False

    def close(self) -> None:
        """Record what could not be recorded before. StorageError if it cannot be now."""
        self._storage.check_writable()
        self._record()

    def _is_writable(self) -> bool:
        try:
            self._storage.check_writable()
        except StorageError:
            self._refused_since = self._refused_since or time.monotonic()
            self._looked_at = time.monotonic()
            return False
        self._refused_since = None
        return True

    def _record(self) -> None:
        while self._unrecorded:
            unit, death = self._unrecorded[0]
            work = self._works[unit.key][0]
            try:
                record_failure(self._storage, work.stage, work.key, death, work.subject.as_row())
            except (OSError, StorageError):
                self._is_writable()
                return
            self._unrecorded.pop(0)
