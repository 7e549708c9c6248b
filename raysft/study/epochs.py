"""How gains go on over epochs, for every size and schedule: what more data and longer training bring."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa

from raysft.study.schema import EPOCH_GAINS
from raysft.study.tables import aggregate, from_rows

_FAMILY = ("model", "method", "learning_rate", "schedule", "epochs", "task")

Row = dict[str, Any]
Trial = tuple[Any, Any]  # (dataset, seed)
Points = dict[int, dict[Trial, tuple[float, float]]]  # epoch -> trial -> gain and scaled gain


def epoch_gains_table(gains: pa.Table) -> pa.Table:
    """Mean gains over datasets at every epoch, of schema `EPOCH_GAINS`.

    A curve is of one model, method, learning rate, schedule, planned length, size and task, over the datasets whose
    every seed was measured at every epoch of it: one that was measured at the end only would make a step where there is
    none. Sizes that have datasets in common are compared on those.

    Args:
        gains: of schema `GAINS`, every epoch; only primary metrics are looked at.
    """
    families: dict[tuple[Any, ...], dict[Any, Points]] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    keys = [*_FAMILY, "size", "epoch", "dataset", "seed"]
    means = aggregate(gains.filter(gains["primary"]), keys, ("gain", "mean"), ("scaled_gain", "mean"))
    for row in means.to_pylist():
        points = families[tuple(row[name] for name in _FAMILY)][row["size"]]
        points[row["epoch"]][row["dataset"], row["seed"]] = (row["gain_mean"], row["scaled_gain_mean"])
    rows = [row for family, sizes in families.items() for row in _rows(family, sizes)]
    return from_rows(rows, EPOCH_GAINS)


def _rows(family: tuple[Any, ...], sizes: dict[Any, Points]) -> list[Row]:
    whole = {size: _everywhere(points) for size, points in sizes.items()}
    common = set.intersection(*whole.values())
    named = dict(zip(_FAMILY, family, strict=True))
    rows = []
    for size, points in sizes.items():
        datasets = common or whole[size]
        for epoch, trials in points.items() if datasets else ():
            place = {**named, "size": size, "epoch": epoch}
            rows.append({**place, **_mean(trials, sorted(datasets)), "same_datasets": bool(common)})
    return rows


def _everywhere(points: Points) -> set[str]:
    """Datasets of which no seed lacks an epoch that another trial of the curve has."""
    trials = set.union(*(set(found) for found in points.values()))
    partial = {dataset for dataset, seed in trials if any((dataset, seed) not in found for found in points.values())}
    return {dataset for dataset, _ in trials} - partial


def _mean(trials: dict[Trial, tuple[float, float]], datasets: list[str]) -> Row:
    of_dataset = [np.mean([value for (name, _), value in trials.items() if name == dataset], 0) for dataset in datasets]
    gain, scaled = np.array(of_dataset).T
    error = float(scaled.std(ddof=1) / np.sqrt(len(scaled))) if len(scaled) > 1 else np.nan
    return {"gain": float(gain.mean()), "scaled_gain": float(scaled.mean()), "stderr": error, "datasets": len(scaled)}
