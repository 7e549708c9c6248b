"""Tests and intervals of one correlation with gain that know its points are clustered by model and by dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from raysft.study.association import associate, within
from raysft.study.statistics.bootstrap import Interval, too_few_levels, two_way_interval
from raysft.study.statistics.grid import Labels
from raysft.study.statistics.mixed import mixed_effects
from raysft.study.statistics.multiplicity import q_values
from raysft.study.statistics.permutation import permutation_test
from raysft.study.tables import Reals

Row = dict[str, Any]

_TESTED = {"permutation_p": "permutation_q", "within_p": "within_q", "mixed_p": "mixed_q"}


def coefficients(x: Reals, y: Reals, groups: Sequence[Labels]) -> Row:
    """The columns of `CORRELATIONS` from `n` to `reason` of one row; arguments as of `correlation_tests`."""
    plain, fixed = associate(x, y), within(x, y, groups)
    models, datasets = groups[:2]
    known = np.isfinite(x) & np.isfinite(y)
    return {
        "n": plain.n,
        "models": len(set(np.asarray(models)[known])),
        "datasets": len(set(np.asarray(datasets)[known])),
        "pearson": plain.pearson,
        "spearman": plain.spearman,
        "slope": plain.slope,
        "within": fixed.r,
        "within_slope": fixed.slope,
        "within_df": fixed.df,
        "within_p": fixed.p,
        "reason": plain.reason or fixed.reason,
    }


def correlation_tests(x: Reals, y: Reals, groups: Sequence[Labels]) -> Row:
    """The columns `TEST_COLUMNS` of one row, but for q.

    Args:
        x: predictor, shape (points,).
        y: gain, shape (points,).
        groups: labels of models, datasets and whatever else is held fixed, one of each for every point.
    """
    permuted = permutation_test(x, y, groups, fixed=False)
    if permuted.reason is not None:
        return {"tests_reason": permuted.reason}
    plain, fixed = _interval(x, y, groups, fixed=False), _interval(x, y, groups, fixed=True)
    fit = mixed_effects(x, y, groups)
    return {
        "permutation_p": float(permuted.p[0]),
        "pearson_low": plain.low,
        "pearson_high": plain.high,
        "within_low": fixed.low,
        "within_high": fixed.high,
        "mixed_slope": fit.slope,
        "mixed_stderr": fit.stderr,
        "mixed_df": fit.df if np.isfinite(fit.p) else np.nan,
        "mixed_p": fit.p,
        "tests_reason": plain.reason or fixed.reason or fit.reason,
    }


def _interval(x: Reals, y: Reals, groups: Sequence[Labels], fixed: bool) -> Interval:
    known = np.isfinite(x) & np.isfinite(y)
    few = too_few_levels([len(Counter(np.asarray(labels)[known].tolist())) for labels in groups])
    return Interval(reason=few) if few else two_way_interval(x, y, groups, fixed)


def with_q(rows: list[Row]) -> list[Row]:
    """`rows` with q-values: a family is every predictor and task of one variant and scope, weight change by itself."""
    families = [(row["variant"], row["scope"], "depth" in row) for row in rows]
    for p, q in _TESTED.items():
        values = np.array([row.get(p, np.nan) for row in rows], dtype=np.float64)
        for row, value in zip(rows, q_values(values, families), strict=True):
            row[q] = float(value)
    return rows
