"""Gains of two studies by dataset and task, and their differences with intervals.

Everything is a share of the task's scale, which the two may have scored differently. Where they share models, only
those count, and the interval is over models: each model's difference is one observation, so it holds for other models
of the kind, and errors over items, seeds and models are all in it. Below three shared models it is that of the items.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from raysft.report.comparison.sides import Pair, Side
from raysft.study.association import FEWEST, constant
from raysft.study.gains import final_gains
from raysft.study.statistics.multiplicity import q_values
from raysft.study.tables import Reals, from_rows, reals, select

LEVEL = 0.95
_TEXT, _REAL, _WHOLE = pa.string(), pa.float64(), pa.int64()
COMPARED = pa.schema(
    [
        *((name, _TEXT) for name in ("variant", "dataset", "task")),
        *((name, _REAL) for name in ("A", "B", "difference", "low", "high", "p", "q")),
        *((name, _WHOLE) for name in ("models", "A_models", "B_models")),
        ("interval", _TEXT),
    ]
)

Models = dict[str, tuple[float, float]]  # model -> mean scaled gain over seeds, its variance over items (NaN: unknown)


@dataclass(frozen=True)
class Difference:
    """B - A; NaN where there is no interval, `interval` says over what it is, or why there is none."""

    mean: float
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan
    interval: str = ""


def compare_gains(first: Side, second: Side, found: Sequence[Pair]) -> pa.Table:
    """One row for each variant, dataset and task that both have, of schema `COMPARED`; q is over all of them."""
    rows: list[dict[str, Any]] = []
    for pair in found:
        ours, theirs = _cells(first, pair.first), _cells(second, pair.second)
        for dataset, task in sorted(ours.keys() & theirs.keys()):
            a, b = ours[dataset, task], theirs[dataset, task]
            rows.append({"variant": pair.label, "dataset": dataset, "task": task, **_row(a, b)})
    for row, q in zip(rows, q_values(np.array([row["p"] for row in rows], dtype=np.float64)), strict=True):
        row["q"] = float(q)
    return from_rows(rows, COMPARED)


def _cells(side: Side, variant: str) -> dict[tuple[str, str], Models]:
    """(dataset, task) -> what each model gained there."""
    final = final_gains(select(side.findings.study["gains"], variant=variant))
    scale = reals(final, "scale")
    gain, error = reals(final, "scaled_gain"), reals(final, "stderr") / scale
    seeds: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    places = zip(*(final[name].to_pylist() for name in ("dataset", "task", "model")), strict=True)
    for place, value, wide in zip(places, gain, error, strict=True):
        seeds[place].append((float(value), float(wide)))
    cells: dict[tuple[str, str], Models] = defaultdict(dict)
    for (dataset, task, model), values in seeds.items():
        gains, errors = np.array(values).T
        # Seeds share their base's error: their mean is taken to be as uncertain as one of them, never less.
        cells[dataset, task][model] = float(gains.mean()), float((errors**2).mean())
    return cells


def _row(a: Models, b: Models) -> dict[str, Any]:
    shared = sorted(a.keys() & b.keys())
    ours, theirs = (np.array([of[model] for model in shared or sorted(of)]) for of in (a, b))
    found = _paired(ours, theirs) if shared else _unpaired(ours, theirs)
    means = {"A": float(ours[:, 0].mean()), "B": float(theirs[:, 0].mean())}
    test = {"difference": found.mean, "low": found.low, "high": found.high, "p": found.p, "interval": found.interval}
    return {**means, **test, "models": len(shared), "A_models": len(a), "B_models": len(b)}


def _paired(a: Reals, b: Reals) -> Difference:
    differences = b[:, 0] - a[:, 0]
    n = len(differences)
    if n < FEWEST or constant(differences, float(np.abs(np.concatenate([a[:, 0], b[:, 0]])).max())):
        return _over_items(a, b)
    error = float(differences.std(ddof=1) / np.sqrt(n))
    return _interval(float(differences.mean()), error, n - 1, f"over {n} shared models")


def _unpaired(a: Reals, b: Reals) -> Difference:
    """No model in common: the means over each one's own models (Welch 1947)."""
    if min(len(a), len(b)) < FEWEST:
        return _over_items(a, b)
    variances = [of[:, 0].var(ddof=1) / len(of) for of in (a, b)]
    if not sum(variances) > 0:
        return _over_items(a, b)
    df = sum(variances) ** 2 / sum(v**2 / (len(of) - 1) for v, of in zip(variances, (a, b), strict=True))
    mean = float(b[:, 0].mean() - a[:, 0].mean())
    return _interval(mean, float(np.sqrt(sum(variances))), df, "over models, none of them shared")


def _over_items(a: Reals, b: Reals) -> Difference:
    mean = float(b[:, 0].mean() - a[:, 0].mean())
    variance = sum(of[:, 1].sum() / len(of) ** 2 for of in (a, b))
    if not variance > 0:
        return Difference(mean, interval="none: too few models, and no standard errors of the scores")
    return _interval(mean, float(np.sqrt(variance)), np.inf, "over items")


def _interval(mean: float, error: float, df: float, over: str) -> Difference:
    half = float(stats.t.ppf((1 + LEVEL) / 2, df)) * error
    return Difference(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, df)), over)
