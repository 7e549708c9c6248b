"""Mixed-effects regression: gain on a predictor with crossed random intercepts for models, datasets (and tasks).

Unlike fixed effects it has a slope for what varies only between datasets, such as their length. It takes the random
effects as unrelated to the predictor; where the slope is far from the fixed-effects one, they are related (Mundlak 1978).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from raysft.study.association import Within, within
from raysft.study.statistics.grid import Labels, grid_of
from raysft.study.tables import Reals


@dataclass(frozen=True)
class Mixed:
    """Slope of y on x, its standard error, two-sided p of Student's t on `df`; NaN with a `reason` where undefined."""

    slope: float = np.nan
    stderr: float = np.nan
    df: int = 0
    p: float = np.nan
    reason: str | None = None


def mixed_effects(x: Reals, y: Reals, groups: Sequence[Labels]) -> Mixed:
    """Restricted maximum likelihood of y = a + b x + an effect of each grouping's level + noise; shapes (n,).

    Degrees of freedom are those of the stratum in which x varies (Pinheiro and Bates 2000, 2.4.2): residual ones if
    it varies within models and datasets, levels - 2 if it varies between the levels of one grouping only.
    """
    grid = grid_of(x, y, groups)
    if grid.reason is not None:
        return Mixed(reason=grid.reason)
    if min(grid.shape) < 2:
        return Mixed(reason="one model or one dataset only: its random effect cannot be told from the mean")
    known = np.isfinite(x) & np.isfinite(y)
    x, y, labels = x[known], y[known], [np.asarray(group)[known] for group in groups]
    fixed = within(x, y, labels)
    if "gain" in (fixed.reason or ""):
        return Mixed(reason=fixed.reason)  # no noise, so no likelihood
    df = _degrees_of_freedom(x, fixed, labels)
    if df < 1:
        return Mixed(df=max(df, 0), reason="no degrees of freedom left for the slope")
    slope, error = _standardised_fit((x - x.mean()) / x.std(), (y - y.mean()) / y.std(), labels)
    if not (np.isfinite(slope) and error > 0):
        return Mixed(df=df, reason="the mixed-effects fit did not converge")
    scale = float(y.std() / x.std())
    return Mixed(slope * scale, error * scale, df, float(2 * stats.t.sf(abs(slope) / error, df)))


def _degrees_of_freedom(x: Reals, fixed: Within, labels: Sequence[np.ndarray]) -> int:
    if fixed.reason is None:
        return fixed.df
    levels = [np.unique(group, return_inverse=True)[1] for group in labels]
    alone = [len(np.unique(level)) - 2 for level in levels if _constant_within(x, level)]
    return min(alone) if alone else min(len(np.unique(level)) for level in levels) - 2


def _constant_within(x: Reals, level: np.ndarray) -> bool:
    means = np.bincount(level, x) / np.bincount(level)
    return bool(np.abs(x - means[level]).max() <= 1e-10 * np.abs(x).max())


def _standardised_fit(x: Reals, y: Reals, labels: Sequence[np.ndarray]) -> tuple[float, float]:
    """Slope and standard error, NaN where the likelihood has no maximum."""
    # Imported here: statsmodels takes two seconds to load, and an empty study need not wait for it.
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec
    from statsmodels.tools.sm_exceptions import ConvergenceWarning

    dummies = [np.eye(len(np.unique(group)))[np.unique(group, return_inverse=True)[1]] for group in labels]
    names = [f"grouping {place}" for place in range(len(labels))]
    columns = [[[f"{name} {level}" for level in range(one.shape[1])]] for name, one in zip(names, dummies, strict=True)]
    components = VCSpec(names, columns, [[one] for one in dummies])
    model = MixedLM(y, np.column_stack([np.ones_like(x), x]), np.zeros(len(x)), exog_re=None, exog_vc=components)
    with warnings.catch_warnings():
        # A variance of zero lies on the boundary and is no failure; what did not converge is read from the fit.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)
        try:
            fit = model.fit(reml=True)
        except np.linalg.LinAlgError:
            return np.nan, np.nan
    return (float(fit.fe_params[1]), float(fit.bse_fe[1])) if fit.converged else (np.nan, np.nan)
