"""Whether forward passes of the base alone predict the gains of models and datasets that no trial has seen.

The base model's score is among the predictors. Its error is part of the gain too, with the other sign, so that it
predicts gains of noise alone: what it adds is to be read beside the noise ceilings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from raysft.study.cells import Pair, Slice, gain_cells, slices
from raysft.study.correlate import dataset_properties, mean_similarity, task_similarities
from raysft.study.statistics.held_out import FORMS, accuracy, hold_out
from raysft.study.statistics.schema import PREDICTION
from raysft.study.tables import from_rows

SPLITS = {"leave_one_model_out": 0, "leave_one_dataset_out": 1}
"""What is held out in turn, and its place in a (model, dataset) pair."""

BASE = "base score"

BASELINE = "baseline"
"""The form of a row without predictors: the mean of the others by itself."""

Row = dict[str, Any]


def prediction_table(gains: pa.Table, properties: pa.Table) -> pa.Table:
    """Every slice of the gains by each property, and by all together, of schema `PREDICTION`.

    Args:
        gains: the study's `gains`.
        properties: the sweep's `data_properties`.
    """
    cells = gain_cells(gains)
    measured = dataset_properties(properties, {cell.model for cell in cells})
    similarity = task_similarities(properties)
    rows: list[Row] = []
    for part in slices(cells):
        predictors = {**measured, "similarity": mean_similarity(part.cells, similarity)} if similarity else measured
        rows += slice_rows(part, {BASE: part.bases(), **predictors})
    return from_rows(rows, PREDICTION)


def slice_rows(part: Slice, predictors: dict[str, dict[Pair, float]]) -> list[Row]:
    """The rows of one slice; `predictors` are name -> (model, dataset) -> value.

    A predictor that no pair of the slice has is not used together with the others.
    """
    gains = part.gains()
    pairs = sorted(gains)
    values = {name: np.array([of.get(pair, np.nan) for pair in pairs]) for name, of in predictors.items()}
    present = [name for name, column in values.items() if np.isfinite(column).any()]
    y = np.array([gains[pair] for pair in pairs])
    rows: list[Row] = []
    for chosen in _sets(present, part):
        x = np.array([values[name] for name in chosen]).reshape(len(chosen), len(pairs)).T
        for split, place in SPLITS.items():
            held, kept = ([pair[at] for pair in pairs] for at in (place, 1 - place))
            for form in FORMS if chosen else (BASELINE,):
                found = accuracy(hold_out(x, y, held, kept, form if chosen else FORMS[0]))
                names = " + ".join(chosen) if chosen else "mean of the others"
                named = {"target": part.task or part.scope, "predictors": names, "form": form}
                rows.append({"variant": part.variant, **named, "split": split, **asdict(found)})
    return rows


def _sets(names: Sequence[str], part: Slice) -> list[tuple[str, ...]]:
    """None, then all predictors together; for a choice of several tasks also every one by itself."""
    alone: list[tuple[str, ...]] = [] if part.scope == "task" and len(names) > 1 else [(name,) for name in names]
    return [(), *alone] if len(names) < 2 else [(), *alone, tuple(names)]
