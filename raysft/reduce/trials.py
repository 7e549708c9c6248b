"""The two tables that are made of the plan: how far each trial is, and what failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from raysft.reduce.order import place
from raysft.spec.plan import Plan, Unit, Work, divergence_work
from raysft.spec.sweep import Sweep
from raysft.store.layout import Storage
from raysft.store.lease import DRIVER
from raysft.store.results import read_failures
from raysft.store.schema import DIVERGED, IDENTITY, TABLES

_FROM_TRAINING = ("rows", "step", "supervised_tokens", "loss", "oom_retries")


def failure_table(plan: Plan, storage: Storage) -> pa.Table:
    """The deaths of the sweep's drivers in their order, and every recorded failure of its works."""
    recorded = {(stage, key) for stage in storage.names("failures") for key in storage.names("failures", stage)}
    nothing = dict.fromkeys(IDENTITY.names) | {"resolved": True, DIVERGED.name: False}
    deaths = [record for stage, key in recorded if stage == DRIVER for record in read_failures(storage, stage, key)]
    rows = [{**nothing, **record} for record in sorted(deaths, key=lambda record: record["at"])]
    rows += [
        {
            **work.subject.as_row(),
            **record,
            "resolved": plan.is_done(work),
            DIVERGED.name: work.subject.trial in plan.diverged,
        }
        for work in [*plan.works(), *(divergence_work(trial) for trial in plan.trials)]
        if (work.stage, work.key) in recorded
        for record in read_failures(storage, work.stage, work.key)
    ]
    return _table("failures", rows)


def _table(name: str, rows: Iterable[dict[str, Any]]) -> pa.Table:
    names = TABLES[name].names
    ordered = [{name: row.get(name) for name in names} for row in sorted(rows, key=place)]
    return pa.Table.from_pylist(ordered, schema=TABLES[name])


def trial_table(plan: Plan, training: Iterable[pa.Table], failures: pa.Table) -> pa.Table:
    """One row for each base model and each fine-tuning. `training`: rows of that table."""
    epochs = _epochs(training)
    open_failures = [row for row in failures.to_pylist() if not row["resolved"]]
    failed = {(row["stage"], row["key"]) for row in open_failures}
    measured_apart: dict[tuple[str, str | None], list[Work]] = {}
    for work in [*(work for unit in plan.units if unit.kind == "checkpoint" for work in unit.works), *plan.geometry]:
        if work.stage not in ("embed", "neighbours"):
            measured_apart.setdefault((work.subject.model, work.subject.trial), []).append(work)
    rows = []
    for unit in plan.units:
        if unit.kind in ("pretrain", "checkpoint"):
            continue
        works = [*unit.works, *measured_apart.get((unit.model, unit.subject.trial), [])]
        ended = plan.diverged.get(unit.key)
        state = _state(filter(plan.can_be_had, works), plan.is_done, failed)
        if state == "done" and ended is not None:
            state = "diverged"
        row = _trial_row(plan.sweep, unit, epochs)
        rows.append({**row, "state": state, "diverged": ended is not None, "diverged_in_epoch": ended})
    return _table("trials", rows)


def _epochs(tables: Iterable[pa.Table]) -> dict[str, list[dict[str, Any]]]:
    """Trial -> its epochs, of rows of the table `training`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for table in tables:
        for row in table.select(["trial", *_FROM_TRAINING]).to_pylist():
            found.setdefault(row["trial"], []).append(row)
    return found


def _state(works: Iterable[Work], is_done: Callable[[Work], bool], failed: set[tuple[str, str]]) -> str:
    missing = [work for work in works if not is_done(work)]
    if not missing:
        return "done"
    keys = {(work.stage, work.key) for work in missing} | {("embed", work.source) for work in missing if work.source}
    return "failed" if keys & failed else "missing"


def _trial_row(sweep: Sweep, unit: Unit, training: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    trial = unit.trial
    if trial is None:
        return {**unit.subject.as_row(), "epoch": 0, "kind": "base", "blocks": ""}
    row = {
        **unit.subject.as_row(),
        "epoch": trial.epochs,
        "kind": "fine-tuning",
        "blocks": "+".join(trial.blocks),
        "method_kind": sweep.method(trial.method).kind,
        "batch_size": trial.optimisation.batch_size,
    }
    epochs = training.get(trial.key)
    if epochs:
        row |= {
            "rows": epochs[-1]["rows"],
            "steps": epochs[-1]["step"],
            "supervised_tokens": _total(epochs, "supervised_tokens"),
            "final_loss": epochs[-1]["loss"],
            "oom_retries": _total(epochs, "oom_retries"),
        }
    return row


def _total(epochs: list[dict[str, Any]], name: str) -> int | None:
    """Sum over the epochs; null where a result of an older version does not say it."""
    values = [epoch[name] for epoch in epochs]
    return None if None in values else sum(values)
