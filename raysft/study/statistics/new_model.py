"""Gains of a model that no trial has seen, from those of other models, with prediction intervals.

The mean of the other models on the same dataset is the baseline. `correct` adds what ridge regression makes of how the
new model's properties differ from the others': each training model in turn plays the new one, so the regression learns
from differences between models and not between datasets, which the baseline already knows.

Intervals are those of the jackknife+ (Barber, Candes, Ramdas and Tibshirani 2021) with whole models left out: what is
exchangeable is the model, not the cell, so every model has the same weight however many cells it has (Lee, Barber and
Willett 2023), and one share is the new model's own. Of m models no interval can promise more than m / (m + 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysft.study.association import constant
from raysft.study.statistics.held_out import ridge
from raysft.study.tables import Reals

FEWEST_TO_CORRECT = 4  # each is held out in turn, and two of the rest tell no more than one difference
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Panel:
    """One outcome of models x datasets.

    `gains` has shape (models, datasets), NaN where not measured; `properties` (models, datasets, predictors);
    `distances` (models, models) between base models, or None. A row of NaN gains is a model to predict.
    """

    gains: Reals
    properties: Reals
    distances: Reals | None = None

    @property
    def known(self) -> np.ndarray:
        """Places of the models that have gains."""
        return np.flatnonzero(np.isfinite(self.gains).any(axis=1))


def predict(panel: Panel, train: np.ndarray, model: int, correct: bool) -> Reals:
    """Gains of `model` on every dataset, shape (datasets,), from the models at the places `train`."""
    baseline = _mean(panel.gains[train])
    if not correct:
        return baseline
    others = [train[train != one] for one in train]
    x = np.concatenate([_differences(panel, rest, one) for rest, one in zip(others, train, strict=True)])
    y = np.concatenate([panel.gains[one] - _mean(panel.gains[rest]) for rest, one in zip(others, train, strict=True)])
    groups = np.repeat(train, panel.gains.shape[1])
    whole = np.isfinite(x).all(axis=1) & np.isfinite(y)
    new = _differences(panel, train, model)
    there = np.isfinite(new).all(axis=1)
    if len(np.unique(groups[whole])) < 2 or all(constant(column) for column in x[whole].T):
        return baseline
    moved = baseline.copy()
    moved[there] += ridge(x[whole], y[whole], groups[whole], new[there])
    return moved


def held_out_predictions(panel: Panel, correct: bool) -> Reals:
    """Every known model predicted from the other ones, shape (models, datasets); NaN rows for the rest."""
    found = np.full_like(panel.gains, np.nan)
    for model in panel.known:
        found[model] = predict(panel, panel.known[panel.known != model], int(model), correct)
    return found


def possible_level(models: int, level: float) -> float:
    """The level of an interval from so many models that is nearest to `level`, not above m / (m + 1)."""
    return min(level, models / (models + 1))


def jackknife_plus(panel: Panel, held_out: Reals, model: int, correct: bool, level: float) -> tuple[Reals, Reals]:
    """Lower and upper ends, shapes (datasets,), of prediction intervals for `model` at `possible_level`.

    Args:
        held_out: `held_out_predictions` of the same panel and form.
    """
    known = panel.known
    share = possible_level(len(known), level)
    low, high = np.full((2, panel.gains.shape[1]), np.nan)
    without = np.array([predict(panel, known[known != one], model, correct) for one in known])
    errors = np.abs(panel.gains - held_out)[known]
    counted = np.isfinite(errors)
    weights = counted / np.maximum(counted.sum(axis=1, keepdims=True), 1) / (len(known) + 1)
    for dataset in range(panel.gains.shape[1]):
        centre = without[:, dataset, None]
        use = counted & np.isfinite(centre)
        if use.any():
            high[dataset] = _quantile((centre + errors)[use], weights[use], share)
            low[dataset] = -_quantile((errors - centre)[use], weights[use], share)
    return low, high


def _quantile(values: Reals, weights: Reals, share: float) -> float:
    """The smallest value that `share` of the weight lies at or below; the rest of the weight lies at infinity."""
    order = np.argsort(values, kind="stable")
    at = int(np.searchsorted(np.cumsum(weights[order]), share - _ROUNDING))
    return float(values[order][at]) if at < len(values) else np.inf


def _mean(values: Reals) -> Reals:
    """Mean over the first axis of what is there, NaN where nothing is."""
    there = np.isfinite(values)
    count = there.sum(axis=0)
    total = np.where(there, values, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _differences(panel: Panel, others: np.ndarray, model: int) -> Reals:
    """How a model differs from others on every dataset, shape (datasets, predictors): in its properties, and in what
    the models that are near it gain."""
    moved = panel.properties[model] - _mean(panel.properties[others])
    if panel.distances is None:
        return moved
    near = np.exp(-panel.distances[model, others] / _usual(panel.distances, others))[:, None]
    there = np.isfinite(panel.gains[others])
    total = (near * there).sum(axis=0)
    gains = (near * np.where(there, panel.gains[others], 0.0)).sum(axis=0)
    alike = np.divide(gains, total, out=np.full(total.shape, np.nan), where=total > 0)
    return np.column_stack([moved, alike - _mean(panel.gains[others])])


def _usual(distances: Reals, models: np.ndarray) -> float:
    """The median distance of two of these models."""
    between = distances[np.ix_(models, models)][np.triu_indices(len(models), k=1)]
    usual = float(np.median(between)) if between.size else 0.0
    return usual if usual > 0 else 1.0
