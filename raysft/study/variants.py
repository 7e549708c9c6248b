"""Names for groups of trials that may be averaged: the method, and whatever else differs within it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysft.study.tables import reals

_WORDS: dict[str, Callable[[Any], str]] = {
    "size": lambda size: "all rows" if size is None else f"{size:,} rows",
    "learning_rate": lambda rate: f"lr {rate:g}" if rate is not None else "lr unknown",
    "schedule": lambda schedule: schedule or "schedule unknown",
    "epochs": lambda epochs: f"{epochs} epochs",
}


def trial_variants(*tables: pa.Table) -> dict[str, str]:
    """Trial key -> variant: `full`, or `full, 1,000 rows` where trials of that method differ in size, and so on.

    Models, datasets and seeds never enter, because the study averages over them. `tables` have the identity columns.
    """
    trials = _distinct_trials(*tables)
    seen: dict[tuple[str, str], set[Any]] = defaultdict(set)
    for trial in trials:
        for field in _WORDS:
            seen[trial["method"] or "", field].add(trial[field])
    return {trial["trial"]: _label(trial, seen) for trial in trials}


def _distinct_trials(*tables: pa.Table) -> list[dict[str, Any]]:
    columns = ["trial", "method", *_WORDS]
    stacked = pa.concat_tables([table.select(columns).replace_schema_metadata() for table in tables])
    tuned = stacked.filter(pc.is_valid(stacked["trial"]))
    return tuned.group_by(columns, use_threads=False).aggregate([]).to_pylist()


def _label(trial: dict[str, Any], seen: dict[tuple[str, str], set[Any]]) -> str:
    method = trial["method"] or "unnamed method"
    differing = [word(trial[field]) for field, word in _WORDS.items() if len(seen[trial["method"] or "", field]) > 1]
    return ", ".join([method, *differing])


def with_variants(table: pa.Table, variants: dict[str, str]) -> pa.Table:
    """`table` with a `variant` column; null for base models, the method for a trial that `variants` lacks."""
    labels = [
        None if trial is None else variants.get(trial, method)
        for trial, method in zip(table["trial"].to_pylist(), table["method"].to_pylist(), strict=True)
    ]
    return table.append_column("variant", pa.array(labels, pa.string()))


def with_final(table: pa.Table) -> pa.Table:
    """`table` with a `final` column: whether the row's epoch is the last one that its trial has in this table."""
    trials, epochs = table["trial"].to_pylist(), reals(table, "epoch")
    last: dict[str | None, float] = defaultdict(lambda: -np.inf)
    for trial, epoch in zip(trials, epochs, strict=True):
        last[trial] = max(last[trial], epoch)
    return table.append_column(
        "final",
        pa.array([epoch == last[trial] for trial, epoch in zip(trials, epochs, strict=True)], pa.bool_()),
    )
