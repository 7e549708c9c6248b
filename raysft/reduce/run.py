"""The reducer: every committed result of a sweep into one Parquet table per kind of result.

Tables hold this sweep's subjects with the names that the YAML gives them now, sorted by `SORTED_BY`. Equal results give
equal bytes, but for costs and failures, which say when and where things happened, and these too when nothing is new.

Protocol. Results never change, so what was read of many small files is kept in a few large ones (`raysft.store.packs`)
and is not read again. All tables are written under hidden names first, and then each takes its own by a rename. Of two
reducers at once, each publishes whole tables, and the later one's stay.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from raysft.reduce.assembly import assemble, identity_of, wanted_columns
from raysft.reduce.order import place
from raysft.reduce.reading import Found, Unread, Wanted, read_results
from raysft.reduce.trials import failure_table, trial_table
from raysft.reduce.writing import table_files
from raysft.spec.plan import Plan, Work, make_plan
from raysft.spec.sweep import Sweep
from raysft.store.layout import Storage
from raysft.store.schema import RESULTS

_AT_ONCE = 256  # results whose rows are in memory together

_STAGES = {stage: place for place, stage in enumerate(RESULTS)}


@dataclass(frozen=True)
class Reduced:
    """Rows of each table written; a line for each result that could not be read, and the paths of those files; a line
    for each that is left out because a newer version of this package wrote it."""

    rows: Mapping[str, int]
    unreadable: tuple[str, ...]
    damaged: tuple[str, ...]
    newer: tuple[str, ...] = ()


def reduce_sweep(sweep: Sweep, storage: Storage) -> Reduced:
    """Assemble the tables of a sweep into `tables/` of its storage; StorageError where that is not let be."""
    with _uncollected():
        return _reduce(make_plan(sweep, storage), storage)


def _reduce(plan: Plan, storage: Storage) -> Reduced:
    left_out = [Unread(path, f"{path}: truncated") for path in plan.damaged]
    left_out += [Unread(line.partition(":")[0], line, newer=True) for line in plan.newer]
    training: list[pa.Table] = []
    with table_files(storage) as files:
        for found in _in_blocks(read_results(storage, wanted_results(plan), left_out)):
            tables = assemble(found, plan.diverged)
            for name, table in tables.items():
                files.append(name, table)
            training += [tables[name] for name in ("training",) if name in tables]
        failures = failure_table(plan, storage)
        files.append("failures", failures)
        files.append("trials", trial_table(plan, training, failures))
    damaged = {unread.path: unread.line for unread in left_out if not unread.newer}
    newer = {unread.path: unread.line for unread in left_out if unread.newer}
    return Reduced(files.rows, tuple(sorted(damaged.values())), tuple(sorted(damaged)), tuple(sorted(newer.values())))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without looking for cycles meanwhile: thousands of plain rows are gone through each time, and there are none."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def wanted_results(plan: Plan) -> list[Wanted]:
    """Committed results in the order of the tables, and which of their columns are read."""
    works = [work for work in plan.works() if plan.is_done(work)]
    last = _last_measured(works)
    return [
        Wanted(work, wanted_columns(work.stage, work.subject.epoch == last.get(work.subject.trial)))
        for work in sorted(works, key=_place)
    ]


def _place(work: Work) -> tuple[object, ...]:
    """The place of a result's rows; those of one subject by stage, and then by what the work is about."""
    return (*place(identity_of(work)), _STAGES[work.stage], work.about or "", work.key)


def _last_measured(works: Iterable[Work]) -> dict[str | None, int | None]:
    """Trial -> the last epoch whose weights are among `works`: only updates of that one are compared with others."""
    last: dict[str | None, int | None] = {}
    for work in works:
        if work.stage == "weight_change":
            last[work.subject.trial] = max(last.get(work.subject.trial) or 0, work.subject.epoch or 0)
    return last


def _in_blocks(every: Iterable[Found]) -> Iterator[list[Found]]:
    block: list[Found] = []
    for found in every:
        block.append(found)
        if len(block) == _AT_ONCE:
            yield block
            block = []
    if block:
        yield block
