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
    scales = _scales(first, second)
    for pair in found:
        ours, theirs = _cells(first, pair.first, scales[0]), _cells(second, pair.second, scales[1])
        for dataset, task in sorted(ours.keys() & theirs.keys()):
            a, b = ours[dataset, task], theirs[dataset, task]
            rows.append({"variant": pair.label, "dataset": dataset, "task": task, **_row(a, b)})
    for row, q in zip(rows, q_values(np.array([row["p"] for row in rows], dtype=np.float64)), strict=True):
        row["q"] = float(q)
    return from_rows(rows, COMPARED)


def scale_notes(first: Side, second: Side) -> list[str]:
    """Sentences on tasks whose scores look to be on different scales in the two."""
    own, used = (_own_scale(first), _own_scale(second)), _scales(first, second)
    notes = []
    for task in sorted(own[0].keys() & own[1].keys()):
        (a, b), (by_a, by_b) = ((of[0][task], of[1][task]) for of in (own, used))
        if a != b:
            by = f"of {by_a:g} in both" if by_a == by_b else f"of {by_a:g} in A and of {by_b:g} in B"
            notes.append(f"Scores of {task} fit a scale of {a:g} in A and {b:g} in B: its gains are shares {by}.")
    return notes


def _scales(first: Side, second: Side) -> tuple[dict[str, float], dict[str, float]]:
    """Task -> what each side's gains are divided by.

    A scale is guessed from scores. Percentages that are all below 10 in one study look like scores out of 10 there, so
    of two scales above 1 the larger holds for both; scores of at most 1 are shares, whatever the other study gives.
    """
    ours, theirs = _own_scale(first), _own_scale(second)
    for task in ours.keys() & theirs.keys():
        if min(ours[task], theirs[task]) > 1:
            ours[task] = theirs[task] = max(ours[task], theirs[task])
    return ours, theirs


def _own_scale(side: Side) -> dict[str, float]:
    final = final_gains(side.findings.study["gains"])
    return dict(zip(final["task"].to_pylist(), map(float, reals(final, "scale")), strict=True))


def _cells(side: Side, variant: str, scales: dict[str, float]) -> dict[tuple[str, str], Models]:
    """(dataset, task) -> what each model gained there, as a share of the task's scale."""
    final = final_gains(select(side.findings.study["gains"], variant=variant))
    scale = np.array([scales[task] for task in final["task"].to_pylist()])
    gain, error = reals(final, "gain") / scale, reals(final, "stderr") / scale
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
