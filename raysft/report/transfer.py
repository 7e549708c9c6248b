"""Gains on a benchmark in English beside those on it in another language, and the tests of their correlation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raysft.study.cells import Cell, gain_cells
from raysft.study.correlation_tests import coefficients, correlation_tests, with_q
from raysft.study.languages import ENGLISH, language_families
from raysft.study.schema import CORRELATIONS
from raysft.study.tables import from_rows

Row = dict[str, Any]


def transfer_points(gains: pa.Table) -> list[Row]:
    """One point for each pair of tasks, variant, model and dataset that has a gain on both; gains are scaled ones."""
    cells = gain_cells(gains)
    families = language_families(cell.task for cell in cells)
    return [point for benchmark, tasks in families.items() for point in _points(benchmark, tasks, cells)]


def _points(benchmark: str, tasks: dict[str, str], cells: list[Cell]) -> list[Row]:
    gains = {(cell.variant, cell.model, cell.dataset, cell.task): cell.gain for cell in cells}
    english = tasks[ENGLISH]
    return [
        {
            "benchmark": benchmark,
            "language": language,
            "english": english,
            "other": task,
            "variant": variant,
            "model": model,
            "dataset": dataset,
            "english_gain": gain,
            "other_gain": gains[variant, model, dataset, task],
        }
        for language, task in tasks.items()
        if language != ENGLISH
        for (variant, model, dataset, found), gain in gains.items()
        if found == english and (variant, model, dataset, task) in gains
    ]


def transfer_tests(points: Sequence[Row]) -> pa.Table:
    """A row for each pair of tasks and variant, of schema `CORRELATIONS`; q is over the pairs of one variant.

    The predictor is the gain in English, `task` the one in the other language.
    """
    places = sorted({(point["english"], point["other"], point["variant"]) for point in points})
    rows = [_row(*place, [point for point in points if _place(point) == place]) for place in places]
    return from_rows(with_q(rows), CORRELATIONS)


def _place(point: Row) -> tuple[str, str, str]:
    return point["english"], point["other"], point["variant"]


def _row(english: str, other: str, variant: str, points: Sequence[Row]) -> Row:
    x, y = (np.array([point[side] for point in points]) for side in ("english_gain", "other_gain"))
    groups = [[point[axis] for point in points] for axis in ("model", "dataset")]
    return {
        "predictor": f"gain on {english}",
        "variant": variant,
        "scope": "task",
        "task": other,
        **coefficients(x, y, groups),
        **correlation_tests(x, y, groups),
    }
