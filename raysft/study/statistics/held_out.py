"""How well gains can be told for a model, or a dataset, that no trial has seen.

Every model (dataset) is held out in turn and its gains are predicted from the others'. What a predictor must beat is
the mean of the others: of other models on the same dataset, or of other datasets on the same model. Ridge regression
(Hoerl and Kennard 1970) on standardised predictors; its penalty is chosen by holding out the remaining groups in turn,
so nothing of the held-out group is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysft.study.association import FEWEST, constant
from raysft.study.statistics.grid import Labels
from raysft.study.tables import Reals

_PENALTIES = np.logspace(-3, 3, 7)  # over the number of points
_RESAMPLES = 999
FORMS = ("alone", "added")
"""By the predictors; or the mean of the others, corrected by how the predictors differ from their own such mean."""


@dataclass(frozen=True)
class HeldOut:
    """Predictions of points while their group was held out, shapes (points,): NaN where there is none."""

    actual: Reals
    predicted: Reals
    baseline: Reals
    groups: np.ndarray
    reason: str | None = None


@dataclass(frozen=True)
class Accuracy:
    """How good held-out predictions are beside the baseline's; NaN with a `reason` where undefined.

    `skill` = 1 - squared errors / the baseline's, with a 95% interval over resampled held-out groups.
    """

    n: int
    groups: int = 0
    r2: float = np.nan
    baseline_r2: float = np.nan
    rmse: float = np.nan
    baseline_rmse: float = np.nan
    skill: float = np.nan
    skill_low: float = np.nan
    skill_high: float = np.nan
    reason: str | None = None


def hold_out(x: Reals, y: Reals, held: Labels, kept: Labels, form: str = "added") -> HeldOut:
    """Predict the points of every level of `held` from the points of its other levels.

    Args:
        x: predictors, shape (points, predictors). A point that lacks one, or y, is left out. Without any, the mean
            of the others is the prediction.
        y: outcome, shape (points,).
        held: what is held out in turn, such as the model of each point.
        kept: what the baseline averages within, such as the dataset of each point.
        form: one of `FORMS`.

    Raises:
        ValueError: `form` is another.
    """
    if form not in FORMS:
        raise ValueError(f"form: {form!r} given, valid: {', '.join(FORMS)}")
    whole = np.isfinite(x).all(axis=1) & np.isfinite(y)
    x, y, groups, within = x[whole], y[whole], np.asarray(held)[whole], np.asarray(kept)[whole]
    nothing = np.full(len(y), np.nan)
    if reason := _why_not(x, y, groups):
        return HeldOut(y, nothing, nothing, groups, reason)
    predicted, baseline = nothing.copy(), nothing.copy()
    for group in np.unique(groups):
        out = groups == group
        baseline[out] = _means(y[~out, None], within[~out], within[out])[:, 0]
        if not x.shape[1]:
            predicted[out] = baseline[out]
            continue
        if form == "alone":
            predicted[out] = ridge(x[~out], y[~out], groups[~out], x[out])
            continue
        left_x, left_y = _less_the_others(x[~out], within[~out]), _less_the_others(y[~out, None], within[~out])[:, 0]
        usable = np.isfinite(left_y)
        if np.unique(groups[~out][usable]).size < 2:
            continue
        moved = x[out] - _means(x[~out], within[~out], within[out])
        known = np.isfinite(moved).all(axis=1)
        correction = ridge(left_x[usable], left_y[usable], groups[~out][usable], moved[known])
        predicted[np.flatnonzero(out)[known]] = baseline[np.flatnonzero(out)[known]] + correction
    return HeldOut(y, predicted, baseline, groups)


def accuracy(found: HeldOut, seed: int = 0) -> Accuracy:
    """R2, error and skill over the points that both the predictors and the mean of the others predict."""
    known = np.isfinite(found.predicted) & np.isfinite(found.baseline)
    n = int(known.sum())
    if found.reason is not None:
        return Accuracy(n, reason=found.reason)
    if n < FEWEST:
        return Accuracy(n, reason=f"{n} points with a prediction and a mean of the others, {FEWEST} needed")
    actual = found.actual[known]
    if constant(actual):
        return Accuracy(n, reason="constant")
    names, group = np.unique(found.groups[known], return_inverse=True)
    ours, theirs = ((actual - values[known]) ** 2 for values in (found.predicted, found.baseline))
    total = float(((actual - actual.mean()) ** 2).sum())
    if theirs.sum() <= 1e-20 * total:
        return Accuracy(n, len(names), baseline_r2=1.0, reason="the mean of the others is never wrong")
    low, high = skill_interval(_sums(group, ours), _sums(group, theirs), seed)
    return Accuracy(
        n,
        len(names),
        1 - float(ours.sum()) / total,
        1 - float(theirs.sum()) / total,
        float(np.sqrt(ours.mean())),
        float(np.sqrt(theirs.mean())),
        1 - float(ours.sum() / theirs.sum()),
        low,
        high,
    )


def _why_not(x: Reals, y: Reals, groups: np.ndarray) -> str | None:
    if len(y) < FEWEST:
        return f"{len(y)} points with every predictor, {FEWEST} needed"
    if (count := len(np.unique(groups))) < 3:
        return f"{count} to hold out in turn, 3 needed"
    if constant(y):
        return "constant"
    return "no predictor varies" if x.shape[1] and all(constant(column) for column in x.T) else None


def _means(values: Reals, within: np.ndarray, at: np.ndarray) -> Reals:
    """Mean of `values` (points, columns) for each level of `within`, read at the levels `at`; NaN where none is."""
    levels, level = np.unique(within, return_inverse=True)
    sums = np.zeros((len(levels), values.shape[1]))
    np.add.at(sums, level, values)
    means = sums / np.bincount(level)[:, None]
    place = np.minimum(np.searchsorted(levels, at), len(levels) - 1)
    return np.where((levels[place] == at)[:, None], means[place], np.nan)


def _less_the_others(values: Reals, within: np.ndarray) -> Reals:
    """`values` less the mean of the other points of the same level; NaN where there is no other."""
    _, level = np.unique(within, return_inverse=True)
    counts = np.bincount(level)[level][:, None].astype(np.float64)
    mean = _means(values, within, within)
    # value - (sum - value) / (n - 1) = (value - mean) n / (n - 1)
    return np.divide((values - mean) * counts, counts - 1, out=np.full_like(values, np.nan), where=counts > 1)


def ridge(x: Reals, y: Reals, groups: np.ndarray, new: Reals) -> Reals:
    """Ridge regression fitted to x, y, at `new`, under the penalty that predicts held-out groups of its own best."""
    mean, spread = x.mean(axis=0), x.std(axis=0)
    scale = np.where(spread > 1e-10 * np.abs(x).max(axis=0), spread, np.inf)  # inf: a constant column says nothing
    left, sizes, right = np.linalg.svd((x - mean) / scale, full_matrices=False)
    shrunk = sizes**2 / (sizes**2 + _PENALTIES[:, None] * len(x))
    errors = _errors_out_of_group(left, shrunk, y, groups)
    best = len(errors) - 1 - int(errors[::-1].argmin())  # of equal ones the stronger penalty
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(sizes > 1e-12 * sizes.max(initial=0), shrunk[best] / sizes, 0)
    slopes = (inverse * (left.T @ (y - y.mean()))) @ right
    return y.mean() + ((new - mean) / scale) @ slopes


def _errors_out_of_group(left: Reals, shrunk: Reals, y: Reals, groups: np.ndarray) -> Reals:
    """Squared errors under every penalty with each group predicted by a fit to the others, shape (penalties,).

    For a linear fit H y the residuals of a group that is left out are (I - H_gg)^-1 of its residuals (Golub, Heath and
    Wahba 1979 for single points). The intercept bears no penalty, so H has 1/n everywhere.
    """
    residuals = y - y.mean() - (shrunk * (left.T @ (y - y.mean()))) @ left.T
    errors = np.zeros(len(shrunk))
    for group in np.unique(groups):
        out = np.flatnonzero(groups == group)
        hat = (left[out] * shrunk[:, None, :]) @ left[out].T + 1 / len(y)
        alone = np.linalg.solve(np.eye(len(out)) - hat, residuals[:, out, None])[..., 0]
        errors += (alone**2).sum(axis=1)
    return errors


def _sums(level: np.ndarray, values: Reals) -> Reals:
    return np.bincount(level, values).astype(np.float64)


def skill_interval(ours: Reals, theirs: Reals, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of 1 - sum of `ours` / sum of `theirs`, both (groups,), under groups drawn with replacement."""
    drawn = np.random.default_rng(seed).integers(len(ours), size=(_RESAMPLES, len(ours)))
    bottom = theirs[drawn].sum(axis=1)
    skill = 1 - ours[drawn].sum(axis=1)[bottom > 0] / bottom[bottom > 0]
    low, high = np.quantile(skill, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
