"""Paired tests: whether one kind of trial gains more than another on the same models and datasets.

Differences of pairs are clustered too: a model for which LoRA is better is so on many datasets. Beside the plain tests,
which take pairs as independent, stands one whose error knows both clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from raysft.study.association import FEWEST, constant
from raysft.study.statistics.grid import Labels
from raysft.study.tables import Reals


@dataclass(frozen=True)
class Paired:
    """Tests of first - second over `n` pairs: the mean difference and, two-sided, whether it is zero.

    `low` and `high` are the 95% interval and `p` the test whose standard error is clustered by every grouping, of
    Student's t on `df`. `t_p` (paired t) and `wilcoxon_p` (signed ranks) take pairs as independent.
    """

    n: int
    mean: float = np.nan
    stderr: float = np.nan
    df: int = 0
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan
    t_p: float = np.nan
    wilcoxon_p: float = np.nan
    reason: str | None = None


def paired(first: Reals, second: Reals, groups: Sequence[Labels], level: float = 0.95) -> Paired:
    """Compare two outcomes of the same points, shapes (points,); points without both are left out."""
    difference = first - second
    known = np.isfinite(difference)
    difference, labels = difference[known], [np.asarray(group)[known] for group in groups]
    n = len(difference)
    if n < FEWEST:
        return Paired(n, float(difference.mean()) if n else np.nan, reason=f"{n} pairs, {FEWEST} needed")
    mean = float(difference.mean())
    if constant(difference, float(np.abs(np.concatenate([first[known], second[known]])).max())):
        return Paired(n, mean, reason="every pair differs by the same")
    plain = float(stats.ttest_1samp(difference, 0).pvalue)
    ranks = float(stats.wilcoxon(difference).pvalue)
    # With one model, or one dataset, only the other way is left to cluster.
    levels = [places for places in (np.unique(group, return_inverse=True)[1] for group in labels) if places.max() > 0]
    if not levels:
        return Paired(n, mean, t_p=plain, wilcoxon_p=ranks, reason="all pairs are of one model and one dataset")
    df = min(int(places.max()) for places in levels)
    error = _clustered_error(difference, levels)
    half = error * float(stats.t.ppf((1 + level) / 2, df))
    p = float(2 * stats.t.sf(abs(mean) / error, df))
    return Paired(n, mean, error, df, mean - half, mean + half, p, plain, ranks)


def _clustered_error(difference: Reals, levels: Sequence[np.ndarray]) -> float:
    """Standard error of the mean under clusters in every grouping (Cameron, Gelbach and Miller 2011).

    The variances by each grouping add up, less that of single pairs which each of them holds. That may fall below one
    of them, or zero, by chance: the largest of all is taken.
    """
    n = len(difference)
    left = difference - difference.mean()
    single = float(left @ left) / n**2 * n / (n - 1)
    by_group = []
    for level in levels:
        sums = np.bincount(level, left)
        by_group.append(float(sums @ sums) / n**2 * len(sums) / (len(sums) - 1))
    return float(np.sqrt(max(sum(by_group) - (len(by_group) - 1) * single, single, *by_group)))
