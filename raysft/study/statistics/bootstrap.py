"""Two-way bootstrap: models and datasets are resampled, each as a whole (the pigeonhole bootstrap, Owen 2007).

A cell counts as often as its model was drawn times as often as its dataset was. The interval holds for other models and
other datasets of the same kind. It errs on the wide side: noise of single cells counts up to three times (Owen 2007).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysft.study.statistics.grid import Grid, Labels, grid_of
from raysft.study.tables import Reals

RESAMPLES = 999
_FEWEST_LEVELS = 4  # of three, one resample in nine draws a single one
_MOST_UNDEFINED = 0.1
_MOST_PASSES = 30
_SETTLED = 1e-5
_AT_ONCE = 1_000_000  # weighted numbers held in memory


@dataclass(frozen=True)
class Interval:
    """A percentile interval, NaN with a `reason` where there is none; `resamples` that were defined."""

    low: float = np.nan
    high: float = np.nan
    resamples: int = 0
    reason: str | None = None


def two_way_interval(
    x: Reals,
    y: Reals,
    groups: Sequence[Labels],
    fixed: bool,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the plain or, with `fixed`, the partial correlation of x with y, shapes (points,)."""
    drawn, reason = resampled_coefficients(x, y, groups, fixed, resamples, seed)
    return percentile_interval(drawn[:, 0], level) if reason is None else Interval(reason=reason)


def resampled_coefficients(
    x: Reals, y: Reals, groups: Sequence[Labels], fixed: bool, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Reals, str | None]:
    """Correlations of every column of x (columns, points) with y in every resample, and why there are none.

    Returns:
        Shape (resamples, columns), NaN where a resample has nothing that varies.
    """
    grid = grid_of(x, y, groups)
    if reason := grid.reason or too_few_levels(grid.shape):
        return np.full((0, len(grid.x)), np.nan), reason
    random = np.random.default_rng(seed)
    draws = [random.multinomial(size, np.full(size, 1 / size), size=resamples) for size in grid.shape]
    step = max(1, _AT_ONCE // grid.x.size)
    parts = [
        _weighted_correlations(grid, [draw[start : start + step].astype(np.float64) for draw in draws], fixed)
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts), None


def percentile_interval(drawn: Reals, level: float = 0.95) -> Interval:
    """The middle `level` of the defined numbers in `drawn`, shape (resamples,)."""
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < (1 - _MOST_UNDEFINED) * len(drawn):
        return Interval(
            resamples=len(defined), reason=f"undefined in {len(drawn) - len(defined)} of {len(drawn)} resamples"
        )
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), len(defined))


def too_few_levels(shape: Sequence[int]) -> str | None:
    """Why models or datasets of these numbers cannot be resampled."""
    if min(shape) < _FEWEST_LEVELS:
        return f"{min(shape)} models or datasets, {_FEWEST_LEVELS} needed to resample them"
    return None


def _weighted_correlations(grid: Grid, draws: list[Reals], fixed: bool) -> Reals:
    """Correlations (resamples, columns) where levels of an axis count as often as `draws` (resamples, levels) says."""
    count = len(draws[0])
    weights = grid.known.reshape(1, *grid.shape).astype(np.float64)
    for axis, draw in enumerate(draws):
        weights = weights * draw.reshape(count, *(draw.shape[1] if other == axis else 1 for other in range(len(draws))))
    points = np.vstack([grid.x, grid.y])
    points = points - points[:, grid.known].mean(axis=1, keepdims=True)
    sizes = np.sqrt((points[:, grid.known] ** 2).mean(axis=1))
    points = points / np.where(sizes > 0, sizes, 1.0)[:, None]
    left = _without_effects(points.reshape(1, len(points), *grid.shape), weights[:, None], fixed, grid.complete)
    flat, weight = left.reshape(count, len(points), -1), weights.reshape(count, 1, -1)
    x, y = flat[:, :-1], flat[:, -1:]
    top = (weight * x * y).sum(axis=2)
    bottom = np.sqrt((weight * x * x).sum(axis=2) * (weight * y * y).sum(axis=2))
    defined = bottom > 1e-10 * weight.sum(axis=2)
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=defined)


def _without_effects(points: Reals, weights: Reals, fixed: bool, complete: bool) -> Reals:
    """`points` less the weighted mean, or the weighted effects of all levels, by taking means out axis by axis.

    Projections on the axes of a complete grid commute, so one pass is exact; with missing cells they are repeated.
    """
    axes = tuple(range(2, points.ndim))
    everywhere = [axes] if not fixed else [tuple(other for other in axes if other != axis) for axis in axes]
    for _ in range(1 if complete or not fixed else _MOST_PASSES):
        before = points
        for over in everywhere:
            total = weights.sum(axis=over, keepdims=True)
            mean = (weights * points).sum(axis=over, keepdims=True) / np.where(total > 0, total, 1.0)
            points = points - mean
        if np.abs(points - before).max() < _SETTLED:
            break
    return points
