"""Results that no trial made: planted into a storage with the cost that a test wants them to have."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from raysft.spec.units import Work
from raysft.store.layout import Storage
from raysft.store.results import Cost, commit_result
from raysft.store.schema import RESULTS


def plant(storage: Storage, works: Iterable[Work], cost: Callable[[Work], Cost] = lambda _: Cost(1.0)) -> None:
    """Commit an empty result for each work."""
    for work in works:
        table = RESULTS[work.stage].empty_table()
        commit_result(storage, work.stage, work.key, table, work.subject.as_row(), cost(work))
