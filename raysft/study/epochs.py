"""How gains go on over epochs, for every size and schedule: what more data and longer training bring."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa

from raysft.study.schema import EPOCH_GAINS
from raysft.study.tables import aggregate, from_rows

_CURVE = ("model", "method", "schedule", "task")
_AT = ("size", "epoch")

Row = dict[str, Any]


def epoch_gains_table(gains: pa.Table) -> pa.Table:
    """Mean gains over datasets at every epoch, of schema `EPOCH_GAINS`.

    A curve of one model, method, schedule and task is over the datasets that are there at every size and epoch of it: a
    set that was too small for the larger size, or measured once, would otherwise make a step where there is none.

    Args:
        gains: of schema `GAINS`, every epoch; only primary metrics are looked at.
    """
    by_curve: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    keys = [*_CURVE, *_AT, "dataset"]
    means = aggregate(gains.filter(gains["primary"]), keys, ("gain", "mean"), ("scaled_gain", "mean"))
    for row in means.to_pylist():
        by_curve[tuple(row[name] for name in _CURVE)].append(row)
    rows = [row for curve, points in by_curve.items() for row in _rows(curve, points)]
    return from_rows(rows, EPOCH_GAINS)


def _rows(curve: tuple[Any, ...], points: list[Row]) -> list[Row]:
    datasets: dict[Any, set[str]] = defaultdict(set)
    for point in points:
        datasets[point["size"], point["epoch"]].add(point["dataset"])
    common = set.intersection(*datasets.values())
    grouped: dict[tuple[Any, Any], list[Row]] = defaultdict(list)
    for point in points:
        if point["dataset"] in common:
            grouped[point["size"], point["epoch"]].append(point)
    named = dict(zip(_CURVE, curve, strict=True))
    return [{**named, **dict(zip(_AT, at, strict=True)), **_mean(found)} for at, found in grouped.items()]


def _mean(found: list[Row]) -> Row:
    scaled = np.array([row["scaled_gain_mean"] for row in found])
    spread = float(scaled.std(ddof=1) / np.sqrt(len(scaled))) if len(scaled) > 1 else np.nan
    gain = float(np.mean([row["gain_mean"] for row in found]))
    return {"gain": gain, "scaled_gain": float(scaled.mean()), "stderr": spread, "datasets": len(found)}
