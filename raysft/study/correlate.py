"""What goes with gain: properties of the data as the base model sees it, and where in the stack the weights moved.

Gains are clustered by model and by dataset: on null grids of 12 x 10, plain Pearson finds something in 25% of cases at
a nominal 5%, fixed effects for model and dataset in 4%. So every row holds both coefficients, and tests and intervals
that move whole models and whole datasets (`raysft/study/correlation_tests.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysft.study.cells import Cell, Pair, Slice, gain_cells, slices
from raysft.study.correlation_tests import coefficients, correlation_tests, with_q
from raysft.study.depth import at_equal_epochs, depth_profiles
from raysft.study.schema import CORRELATIONS
from raysft.study.tables import from_rows

LAYERWISE = "weight_change"
"""Tested as what it is, one of many correlated layers, in `layer_tests`."""

# Similarity hardly differs between models, and what a dataset does to a task is common to them: tests that take cells
# as independent but for effects of model, dataset and task find something in 37% of nulls, permutations in 5%.
_INDEPENDENT = ("within_p", "mixed_p", "mixed_stderr", "mixed_df")
_SHARED = "cells of a dataset and task are alike in every model: only permutation_p and the intervals hold"

Row = dict[str, object]


def correlation_table(gains: pa.Table, properties: pa.Table, by_depth: pa.Table) -> pa.Table:
    """Every predictor against every slice of the gains, of schema `CORRELATIONS`.

    Args:
        gains: the study's `gains`.
        properties: the sweep's `data_properties`.
        by_depth: the study's `weight_change_by_depth`.
    """
    cells = gain_cells(gains)
    parts = list(slices(cells))
    rows = [
        *_property_rows(cells, parts, properties),
        *_similarity_rows(cells, parts, properties),
        *_depth_rows(gains, by_depth),
    ]
    return from_rows(with_q(rows), CORRELATIONS)


def _row(predictor: str, part: Slice, x: Sequence[float], y: Sequence[float], *groups: Sequence[str]) -> Row:
    """One row; `groups` are the points' models, datasets and any further labels to hold fixed."""
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return {
        "predictor": predictor,
        "variant": part.variant,
        "scope": part.scope,
        "task": part.task,
        **coefficients(xs, ys, groups),
        **(correlation_tests(xs, ys, groups) if predictor != LAYERWISE else {}),
    }


def _pair_row(predictor: str, part: Slice, values: dict[Pair, float]) -> Row:
    """One row whose points are the (model, dataset) pairs that have both a value and a gain."""
    gains = part.gains()
    shared = [pair for pair in sorted(gains) if pair in values]
    models, datasets = [model for model, _ in shared], [dataset for _, dataset in shared]
    return _row(predictor, part, [values[pair] for pair in shared], [gains[pair] for pair in shared], models, datasets)


def dataset_properties(properties: pa.Table, models: Iterable[str] | None = None) -> dict[str, dict[Pair, float]]:
    """Property -> (model, dataset) -> value, for properties of a dataset that are of no benchmark.

    How the rows' own values are spread is left out. What no model enters is the same for every one of `models`, by
    default those that other properties have.
    """
    of_all = pc.and_(pc.is_null(properties["about"]), pc.is_null(properties["statistic"]))
    alone = properties.filter(pc.and_(of_all, pc.is_valid(properties["value"])))
    every = pc.unique(properties["model"]).drop_null().to_pylist() if models is None else list(models)
    found: dict[str, dict[Pair, float]] = defaultdict(dict)
    for row in alone.select(["property", "model", "dataset", "value"]).to_pylist():
        for model in every if row["model"] is None else (row["model"],):
            found[row["property"]][model, row["dataset"]] = row["value"]
    return dict(sorted(found.items()))


def task_similarities(properties: pa.Table) -> dict[tuple[str, str, str], float]:
    """(model, dataset, task) -> similarity of the dataset's and the task's texts in the base model's eyes."""
    about = properties.filter(pc.and_(pc.equal(properties["property"], "similarity"), pc.is_valid(properties["about"])))
    rows = about.select(["model", "dataset", "about", "value"]).to_pylist()
    return {(row["model"], row["dataset"], row["about"]): row["value"] for row in rows if row["value"] is not None}


def _property_rows(cells: list[Cell], parts: list[Slice], properties: pa.Table) -> list[Row]:
    measured = dataset_properties(properties, {cell.model for cell in cells})
    return [_pair_row(name, part, values) for name, values in measured.items() for part in parts]


def _similarity_rows(cells: list[Cell], parts: list[Slice], properties: pa.Table) -> list[Row]:
    similarity = task_similarities(properties)
    if not similarity:
        return []
    rows = [_pair_row("similarity", part, mean_similarity(part.cells, similarity)) for part in parts]
    for variant in sorted({cell.variant for cell in cells}):
        ours = [cell for cell in cells if cell.variant == variant]
        known = [cell for cell in ours if (cell.model, cell.dataset, cell.task) in similarity]
        x = [similarity[cell.model, cell.dataset, cell.task] for cell in known]
        labels = ([cell.model for cell in known], [cell.dataset for cell in known], [cell.task for cell in known])
        part = Slice(variant, "cells", None, tuple(known))
        row = _row("similarity", part, x, [cell.gain for cell in known], *labels)
        rows.append({**row, **dict.fromkeys(_INDEPENDENT, np.nan), "tests_reason": _tests_reason(row)})
    return rows


def _tests_reason(row: Row) -> str:
    return f"{_SHARED}; {row['tests_reason']}" if row.get("tests_reason") else _SHARED


def mean_similarity(cells: Sequence[Cell], similarity: dict[tuple[str, str, str], float]) -> dict[Pair, float]:
    grouped: dict[Pair, list[float]] = defaultdict(list)
    for cell in cells:
        key = (cell.model, cell.dataset, cell.task)
        if key in similarity:
            grouped[cell.model, cell.dataset].append(similarity[key])
    return {pair: float(np.mean(values)) for pair, values in grouped.items()}


def _depth_rows(gains: pa.Table, by_depth: pa.Table) -> list[Row]:
    paired, changes = at_equal_epochs(gains, by_depth)
    profiles = depth_profiles(changes)
    rows: list[Row] = []
    for part in slices(gain_cells(paired)):
        ours = {pair: curve for (variant, pair), curve in profiles.curves.items() if variant == part.variant}
        for index, depth in enumerate(profiles.depths if ours else ()):
            values = {pair: float(curve[index]) for pair, curve in ours.items()}
            rows.append({**_pair_row(LAYERWISE, part, values), "depth": float(depth)})
    return rows
