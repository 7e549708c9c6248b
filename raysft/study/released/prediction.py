"""Can a gain be foretold for a model, or a dataset, that was not in the sweep?

The baseline is what one would say without any statistics: the mean of the other models (or datasets) in the same cell.
Nothing of the held-out fold enters a prediction but its base scores, which cost no fine-tuning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.linear_model import LinearRegression

from raysft.study.association import constant
from raysft.study.released_schemas import PREDICTION
from raysft.study.tables import Reals, from_rows, reals

# split -> the column whose levels are held out one by one
SPLITS = {"leave_one_model_out": "model", "leave_one_dataset_out": "dataset"}
OTHERS = "mean of the others"
PREDICTORS = (("base score",), (OTHERS, "base score"))
ALL = "all"
_CELL = ("model", "dataset", "method", "epoch", "size", "schedule", "seed", "task")


@dataclass(frozen=True)
class _Gains:
    """Gains as arrays of shape (gains,): the gain, the base's score, who is held out together, and the cell besides."""

    gain: Reals
    base: Reals
    fold: npt.NDArray[np.intp]
    cell: npt.NDArray[np.intp]


def prediction_table(gains: pa.Table) -> tuple[pa.Table, dict[str, str]]:
    """R2 of every target, predictors and split, of schema `PREDICTION`, and what could not be predicted.

    `gains` is of schema `GAINS`. The target `all` takes scaled gains and base scores of every task.
    """
    rows: list[dict[str, object]] = []
    skipped: dict[str, str] = {}
    tasks = sorted(set(gains["task"].to_pylist()))
    for split, column in SPLITS.items():
        reason = _impossible(_arrays(gains, column), column)
        if reason:
            skipped[f"predictions, {split}"] = reason
            continue
        for target in [ALL, *tasks] if len(tasks) > 1 else tasks:
            chosen = (
                gains if target == ALL else gains.filter(pa.array([t == target for t in gains["task"].to_pylist()]))
            )
            data = _arrays(chosen, column)
            reason = _impossible(data, column)
            if reason:
                skipped[f"{target}, {split}"] = reason
                continue
            rows += [{"target": target, "split": split, **row} for row in _scores(data)]
    return from_rows(rows, PREDICTION), skipped


def _arrays(gains: pa.Table, held_out: str) -> _Gains:
    scale = reals(gains, "scale")
    labels = [gains[name].to_pylist() for name in _CELL if name != held_out]
    cells = list(zip(*labels, strict=True))
    at = {cell: place for place, cell in enumerate(dict.fromkeys(cells))}
    fold = np.unique(gains[held_out].to_pylist(), return_inverse=True)[1] if gains.num_rows else np.empty(0, np.intp)
    cell = np.array([at[cell] for cell in cells], dtype=np.intp)
    return _with_others(_Gains(reals(gains, "scaled_gain"), reals(gains, "base") / scale, fold, cell))


def _with_others(data: _Gains) -> _Gains:
    """Those gains whose cell holds three folds or more, so that a training row too has another to be the mean of."""
    folds: dict[int, set[int]] = defaultdict(set)
    for cell, fold in zip(data.cell.tolist(), data.fold.tolist(), strict=True):
        folds[cell].add(fold)
    kept = np.array([len(folds[cell]) > 2 for cell in data.cell.tolist()], dtype=bool)
    return _Gains(data.gain[kept], data.base[kept], data.fold[kept], data.cell[kept])


def _impossible(data: _Gains, column: str) -> str | None:
    folds = len(set(data.fold.tolist()))
    if folds < 3:
        return f"{folds} {column}s in common cells, 3 needed"
    return "the gains are constant" if constant(data.gain) else None


def _scores(data: _Gains) -> list[dict[str, object]]:
    baseline = np.empty(len(data.gain))
    predicted = {predictors: np.empty(len(data.gain)) for predictors in PREDICTORS}
    for fold in np.unique(data.fold):
        test = data.fold == fold
        train = ~test
        columns = {"base score": data.base, OTHERS: _means_of_others(data, int(fold))}
        baseline[test] = columns[OTHERS][test]
        for predictors in PREDICTORS:
            x = np.column_stack([columns[name] for name in predictors])
            fitted = LinearRegression().fit(x[train], data.gain[train])
            predicted[predictors][test] = fitted.predict(x[test])
    return [
        {
            "predictors": " + ".join(predictors),
            "r2": r_squared(data.gain, values),
            "baseline_r2": r_squared(data.gain, baseline),
        }
        for predictors, values in predicted.items()
    ]


def _means_of_others(data: _Gains, held_out: int) -> Reals:
    """For each gain the mean of its cell over folds that are neither its own nor held out, shape (gains,)."""
    known = data.fold != held_out
    cells = int(data.cell.max()) + 1
    total = np.bincount(data.cell[known], weights=data.gain[known], minlength=cells)
    count = np.bincount(data.cell[known], minlength=cells).astype(np.float64)
    # Cells hold one gain a fold, or several where a column tells them apart that the file lacks: all of one's own go.
    own = data.cell * (int(data.fold.max()) + 1) + data.fold
    own_total = np.bincount(own[known], weights=data.gain[known], minlength=int(own.max()) + 1)[own]
    own_count = np.bincount(own[known], minlength=int(own.max()) + 1)[own]
    mean: Reals = (total[data.cell] - own_total) / (count[data.cell] - own_count)
    return mean


def r_squared(true: Reals, predicted: Sequence[float] | Reals) -> float:
    """1 - sum of squared errors / sum of squares about the mean of `true`; both of shape (n,)."""
    true, predicted = np.asarray(true), np.asarray(predicted)
    return float(1 - ((true - predicted) ** 2).sum() / ((true - true.mean()) ** 2).sum())
