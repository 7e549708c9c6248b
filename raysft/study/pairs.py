"""One method against another, full fine-tuning against LoRA first of all: pairs of trials that agree in all else."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from raysft.study.gains import final_gains
from raysft.study.statistics.multiplicity import q_values
from raysft.study.statistics.paired import paired
from raysft.study.statistics.schema import PAIRS
from raysft.study.tables import Reals, from_rows

_SAME = ("model", "dataset", "size", "schedule", "epoch", "seed")

Row = dict[str, Any]
Place = tuple[Any, ...]  # values of _SAME


def pairs_table(gains: pa.Table) -> pa.Table:
    """Every two methods on every task, of schema `PAIRS`; `gains` are the study's.

    Final gains of a method that has several trials in one place (of several learning rates) are averaged first.
    """
    rows: list[Row] = []
    methods = _by_method(final_gains(gains))
    for first, second in combinations(sorted(methods), 2):
        tasks = sorted(set(methods[first]) | set(methods[second]))
        ours = [_row(task, first, second, methods[first][task], methods[second][task]) for task in tasks]
        for row, q in zip(ours, q_values(np.array([row["p"] for row in ours])), strict=True):
            row["q"] = float(q)
        rows += ours
    return from_rows(rows, PAIRS)


def _by_method(final: pa.Table) -> dict[str, dict[str, dict[Place, tuple[float, float]]]]:
    """Method -> task -> place -> mean gain and scale."""
    found: dict[str, dict[str, dict[Place, list[tuple[float, float]]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in final.select([*_SAME, "method", "task", "gain", "scale"]).to_pylist():
        place = tuple(row[name] for name in _SAME)
        found[row["method"] or ""][row["task"]][place].append((row["gain"], row["scale"]))
    return {
        method: defaultdict(
            dict, {task: {at: _mean(seen) for at, seen in places.items()} for task, places in tasks.items()}
        )
        for method, tasks in found.items()
    }


def _mean(seen: list[tuple[float, float]]) -> tuple[float, float]:
    return float(np.mean([gain for gain, _ in seen])), seen[0][1]


def _row(
    task: str, first: str, second: str, a: dict[Place, tuple[float, float]], b: dict[Place, tuple[float, float]]
) -> Row:
    places = sorted(set(a) & set(b), key=lambda place: [str(value) for value in place])
    models, datasets = ([place[at] for place in places] for at in (0, 1))
    test = paired(_gains(a, places), _gains(b, places), [models, datasets])
    return {
        "task": task,
        "first": first,
        "second": second,
        "n": test.n,
        "models": len(set(models)),
        "datasets": len(set(datasets)),
        "mean_difference": test.mean,
        "scale": a[places[0]][1] if places else np.nan,
        "stderr": test.stderr,
        "df": test.df or None,
        "low": test.low,
        "high": test.high,
        "p": test.p,
        "t_p": test.t_p,
        "wilcoxon_p": test.wilcoxon_p,
        "reason": test.reason,
    }


def _gains(of: dict[Place, tuple[float, float]], places: list[Place]) -> Reals:
    return np.array([of[place][0] for place in places], dtype=np.float64)
