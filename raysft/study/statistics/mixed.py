"""Mixed-effects regression: gain on a predictor with crossed random intercepts for models, datasets (and tasks).

Unlike fixed effects it has a slope for what varies only between datasets, such as their length. It takes the random
effects as unrelated to the predictor; a slope far from the fixed-effects one says that they are not (Mundlak 1978).

The restricted likelihood is profiled down to the relative standard deviations of the random effects and needs only
cross products, so that a fit takes milliseconds (Bates et al. 2015, "Fitting Linear Mixed-Effects Models Using lme4").
statsmodels' MixedLM has the same maximum, but its optimisers stop short of it where a variance is near zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from raysft.study.association import Within, constant, fixed_effects_residuals, within
from raysft.study.statistics.grid import Labels, grid_of
from raysft.study.tables import Reals

_TOLERANCE = 1e-6
_MOST_STEPS = 2000
_LARGEST = 1e6  # spread of an effect over that of the noise; beyond it cross products run out of digits


@dataclass(frozen=True)
class Mixed:
    """Slope of y on x, its standard error, two-sided p of Student's t on `df`; NaN with a `reason` where undefined.

    `spreads` are the standard deviations of the effects of each grouping and, last, of the noise, in units of y.
    """

    slope: float = np.nan
    stderr: float = np.nan
    df: float = 0.0
    p: float = np.nan
    spreads: tuple[float, ...] = ()
    reason: str | None = None


def mixed_effects(x: Reals, y: Reals, groups: Sequence[Labels]) -> Mixed:
    """Restricted maximum likelihood of y = a + b x + an effect of each grouping's level + noise; shapes (n,).

    Degrees of freedom are those of the strata in which x varies, within models and datasets (residual ones) and
    between the levels of each grouping (levels - 2), combined by what each tells of the slope (Satterthwaite 1946): a
    count of tokens that differs little between tokenizers is a property of the dataset, with a few degrees of freedom.
    """
    grid = grid_of(x, y, groups)
    if grid.reason is not None:
        return Mixed(reason=grid.reason)
    if min(grid.shape) < 2:
        return Mixed(reason="one model or one dataset only: its random effect cannot be told from the mean")
    known = np.isfinite(x) & np.isfinite(y)
    x, y, labels = x[known], y[known], [np.asarray(group)[known] for group in groups]
    if not _noisy(x, y, labels):
        return Mixed(reason="models, datasets and the predictor leave nothing of the gain: no noise to measure it by")
    fixed = within(x, y, labels)
    strata = _strata(x, fixed, labels)
    if not strata:
        return Mixed(reason="no degrees of freedom left for the slope")
    wide, high = float(x.std()), float(y.std())
    products = _Products.of((x - x.mean()) / wide, (y - y.mean()) / high, labels)
    # Mirrored at zero instead of bounded: clipped to a bound, the simplex collapses there and never leaves it.
    found = optimize.minimize(
        lambda theta: products.deviance(np.abs(theta)) if np.abs(theta).max() < _LARGEST else np.inf,
        np.ones(len(labels)),
        method="Nelder-Mead",
        options={"xatol": _TOLERANCE, "fatol": _TOLERANCE, "maxiter": _MOST_STEPS},
    )
    if not found.success:
        return Mixed(reason="the mixed-effects fit did not converge")
    theta = np.abs(found.x)
    slope, error, noise = products.solution(theta)
    df = _degrees_of_freedom(strata, theta)
    spreads = tuple(float(spread) * high for spread in (*(noise * theta), noise))
    return Mixed(slope * high / wide, error * high / wide, df, float(2 * stats.t.sf(abs(slope) / error, df)), spreads)


def _noisy(x: Reals, y: Reals, labels: Sequence[np.ndarray]) -> bool:
    """Whether y has anything left after the effects of every level and x, without which the likelihood has no end."""
    left, rank = fixed_effects_residuals(np.column_stack([x, y]), labels)
    size = float(left[:, 0] @ left[:, 0])
    slope = float(left[:, 0] @ left[:, 1]) / size if not constant(left[:, 0], float(np.abs(x).max())) else 0.0
    return len(y) > rank + 1 and not constant(left[:, 1] - slope * left[:, 0], float(np.abs(y).max()))


@dataclass(frozen=True)
class _Stratum:
    """Where x varies: its sum of squares there, degrees of freedom, and whose effects are noise there.

    `grouping` is -1 within all groupings, and else the place of the grouping whose levels x differs between, with
    `size` points each on average.
    """

    squares: float
    df: int
    grouping: int
    size: float


def _strata(x: Reals, fixed: Within, labels: Sequence[np.ndarray]) -> list[_Stratum]:
    """The strata in which x varies that have degrees of freedom."""
    left, _ = fixed_effects_residuals(x[:, None], labels)
    found = [_Stratum(float((left**2).sum()), fixed.df if fixed.reason is None else 0, -1, 1.0)]
    for place, group in enumerate(labels):
        level = np.unique(group, return_inverse=True)[1]
        counts = np.bincount(level)
        means = np.bincount(level, x) / counts
        squares = float((counts * (means - x.mean()) ** 2).sum())
        found.append(_Stratum(squares, len(counts) - 2, place, len(x) / len(counts)))
    negligible = 1e-12 * float(((x - x.mean()) ** 2).sum())
    return [one for one in found if one.df > 0 and one.squares > negligible]


def _degrees_of_freedom(strata: Sequence[_Stratum], theta: Reals) -> float:
    """(sum of information)^2 / sum of (information^2 / df), at effects `theta` times as large as the noise."""
    noise = [1.0 if one.grouping < 0 else 1 + one.size * theta[one.grouping] ** 2 for one in strata]
    told = np.array([one.squares for one in strata]) / np.array(noise)
    return float(told.sum() ** 2 / (told**2 / np.array([one.df for one in strata])).sum())


@dataclass(frozen=True)
class _Products:
    """Cross products of the columns [1, x, y] (n, 3) and of the dummies (n, q) of all groupings.

    `grouping` (q,) says whose level a dummy is. Everything is relative to the noise: the effects of grouping k have the
    standard deviation theta_k times its own.
    """

    columns: Reals
    dummies: Reals
    mixed: Reals
    grouping: np.ndarray
    n: int

    @classmethod
    def of(cls, x: Reals, y: Reals, labels: Sequence[np.ndarray]) -> _Products:
        columns = np.column_stack([np.ones_like(x), x, y])
        each = [np.eye(len(np.unique(group)))[np.unique(group, return_inverse=True)[1]] for group in labels]
        dummies = np.hstack(each)
        grouping = np.repeat(np.arange(len(each)), [one.shape[1] for one in each])
        return cls(columns.T @ columns, dummies.T @ dummies, dummies.T @ columns, grouping, len(x))

    def _weighted(self, theta: Reals) -> tuple[Reals, float]:
        """[1, x, y]' W^-1 [1, x, y] for the relative covariance W of the outcome, and log |W|."""
        spread = theta[self.grouping]
        inner = self.dummies * np.outer(spread, spread)
        inner.flat[:: len(spread) + 1] += 1
        factor = np.linalg.cholesky(inner)
        half = np.linalg.solve(factor, spread[:, None] * self.mixed)
        return self.columns - half.T @ half, 2 * float(np.log(np.diag(factor)).sum())

    def deviance(self, theta: Reals) -> float:
        """-2 times the restricted log-likelihood, profiled over intercept, slope and noise, less constants."""
        weighted, log_determinant = self._weighted(theta)
        slopes = weighted[0, 0] * weighted[1, 1] - weighted[0, 1] ** 2
        residual = _residual(weighted)
        if slopes <= 0 or residual <= 0:  # digits have run out
            return math.inf
        return log_determinant + math.log(slopes) + (self.n - 2) * math.log(residual)

    def solution(self, theta: Reals) -> tuple[float, float, float]:
        """Slope, its standard error and the standard deviation of the noise."""
        weighted, _ = self._weighted(theta)
        noise = _residual(weighted) / (self.n - 2)
        inverse = np.linalg.inv(weighted[:2, :2])
        return float(inverse[1] @ weighted[:2, 2]), float(np.sqrt(noise * inverse[1, 1])), float(np.sqrt(noise))


def _residual(weighted: Reals) -> float:
    """Weighted sum of squares that intercept and slope leave of y, by the inverse of two by two numbers.

    It is asked for a hundred times a fit, where a solver takes longer to be called than to solve.
    """
    (a, b, u), (_, c, v), (_, _, total) = weighted.tolist()
    return float(total - (c * u * u - 2 * b * u * v + a * v * v) / (a * c - b * b))
