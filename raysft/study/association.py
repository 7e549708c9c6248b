"""How strongly two columns go together: plain, and with what their groups share taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from raysft.study.tables import Reals

FEWEST = 3  # two points always lie on a line


@dataclass(frozen=True)
class Association:
    """Plain coefficients over `n` complete pairs; NaN with a `reason` where they are undefined."""

    n: int
    pearson: float = np.nan
    spearman: float = np.nan
    slope: float = np.nan
    reason: str | None = None


@dataclass(frozen=True)
class Within:
    """Coefficients with fixed effects; `r` is the partial correlation. NaN with a `reason` where undefined."""

    r: float = np.nan
    slope: float = np.nan
    df: int = 0
    p: float = np.nan
    reason: str | None = None


def constant(values: Reals, scale: float | None = None) -> bool:
    """Whether `values` do not vary beyond rounding at `scale` (default: their own largest magnitude)."""
    if values.size == 0:
        return True
    size = float(np.abs(values).max()) if scale is None else scale
    return bool(np.ptp(values) <= 1e-10 * size)


def pearson(x: Reals, y: Reals) -> tuple[float, int, str | None]:
    """Pearson's r over the complete pairs, how many there are, and why r is NaN where it is."""
    both = np.isfinite(x) & np.isfinite(y)
    x, y, n = x[both], y[both], int(both.sum())
    if n < FEWEST:
        return np.nan, n, f"{n} common points, {FEWEST} needed"
    if constant(x) or constant(y):
        return np.nan, n, "constant"
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1)), n, None


def associate(x: Reals, y: Reals) -> Association:
    """Pearson's r, Spearman's rho and the least-squares slope of y on x, over the complete pairs; shapes (n,)."""
    both = np.isfinite(x) & np.isfinite(y)
    r, n, reason = pearson(x, y)
    if reason is not None:
        return Association(n, reason=reason)
    x, y = x[both], y[both]
    slope = r * float(y.std() / x.std())
    return Association(n, r, float(stats.spearmanr(x, y).statistic), slope)


def within(x: Reals, y: Reals, groups: Sequence[Sequence[Any] | np.ndarray]) -> Within:
    """Slope of y on x with a fixed effect for every level of every grouping (the within estimator).

    Both are regressed on the groups' dummies and the residuals on each other, which is the full regression
    (Frisch and Waugh 1933, Lovell 1963) and holds for unbalanced panels.

    Args:
        x: predictor, shape (n,).
        y: outcome, shape (n,).
        groups: one sequence of n labels for each grouping, such as models and datasets.
    """
    both = np.isfinite(x) & np.isfinite(y)
    x, y = x[both], y[both]
    if x.size < FEWEST:
        return Within(reason=f"{x.size} common points, {FEWEST} needed")
    points = np.column_stack([x, y])
    left, rank = fixed_effects_residuals(points, [np.asarray(labels)[both] for labels in groups])
    x_left, y_left = left.T
    df = int(x.size - rank - 1)
    if df < 1:
        return Within(df=max(df, 0), reason="no degrees of freedom left after the fixed effects")
    if constant(x_left, scale=float(np.abs(x).max())):
        return Within(df=df, reason="the predictor does not vary within models and datasets")
    if constant(y_left, scale=float(np.abs(y).max())):
        return Within(df=df, reason="the gain does not vary within models and datasets")
    r = float(np.clip(x_left @ y_left / np.sqrt((x_left @ x_left) * (y_left @ y_left)), -1, 1))
    return Within(r, float(x_left @ y_left / (x_left @ x_left)), df, _p_of_r(r, df))


def fixed_effects_residuals(values: Reals, groups: Sequence[Sequence[Any] | np.ndarray]) -> tuple[Reals, int]:
    """What is left of each column of `values` (n, columns) after an effect of every level of every grouping.

    Returns:
        The residuals, shape (n, columns), and the rank of the effects. Without groups the effect is the mean.
    """
    dummies = np.hstack([np.ones((len(values), 1)), *(_dummies(np.asarray(labels)) for labels in groups)])
    fitted, _, rank, _ = np.linalg.lstsq(dummies, values, rcond=None)
    return values - dummies @ fitted, int(rank)


def _dummies(labels: np.ndarray) -> Reals:
    levels, level = np.unique(labels, return_inverse=True)
    return np.eye(len(levels))[level]


def _p_of_r(r: float, df: int) -> float:
    if abs(r) == 1:
        return 0.0
    return float(2 * stats.t.sf(abs(r) * np.sqrt(df / (1 - r * r)), df))
