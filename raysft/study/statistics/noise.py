"""Noise ceilings: how strongly gains that are measured with error can correlate with anything at all.

The variance of measured gains is that of true gains plus that of their errors. The share that is not error is their
reliability; the largest correlation with a perfectly measured predictor is its root (Spearman 1904).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raysft.study.association import FEWEST, fixed_effects_residuals
from raysft.study.statistics.grid import Labels
from raysft.study.tables import Reals


@dataclass(frozen=True)
class Ceiling:
    """Variance over `n` cells, of which errors make `noise`; `reliability` = 1 - noise / variance, at least 0.

    `r` = sqrt(reliability) is the ceiling of a correlation, `reliability` that of an R2.
    """

    n: int
    variance: float = np.nan
    noise: float = np.nan
    reliability: float = np.nan
    r: float = np.nan
    reason: str | None = None


def noise_ceiling(gains: Reals, noise: Reals, groups: Sequence[Labels] = ()) -> Ceiling:
    """The ceiling of gains (cells,) with error variances `noise` (cells,), NaN where unknown.

    With `groups` it is the ceiling of what is left after an effect of every level of each: of partial correlations.
    """
    known = np.isfinite(gains) & np.isfinite(noise)
    n = int(known.sum())
    if n < FEWEST:
        return Ceiling(n, reason=f"{n} gains with a known error, {FEWEST} needed")
    left, rank = fixed_effects_residuals(gains[known, None], [np.asarray(labels)[known] for labels in groups])
    if n - rank < 1:
        return Ceiling(n, reason="no degrees of freedom left after the fixed effects")
    variance, error = float((left**2).sum() / (n - rank)), float(noise[known].mean())
    if variance <= 1e-20 * max(1.0, float(np.abs(gains[known]).max())) ** 2:
        return Ceiling(n, variance, error, reason="the gain does not vary")
    reliability = max(0.0, 1 - error / variance)
    reason = "gains vary no more than their errors do" if reliability == 0 else None
    return Ceiling(n, variance, error, reliability, float(np.sqrt(reliability)), reason)


def seed_variance(values: Reals, cells: Labels) -> tuple[float, int]:
    """Variance between seeds of one cell, pooled over cells with two or more seeds, and its degrees of freedom.

    Args:
        values: one gain for each trial, shape (trials,), NaN where not measured.
        cells: the cell of each trial: everything but its seed.

    Returns:
        NaN and 0 where no cell has two seeds.
    """
    known = np.isfinite(values)
    if not known.any():
        return np.nan, 0
    _, level = np.unique(np.asarray(cells)[known], return_inverse=True)
    values = values[known]
    counts = np.bincount(level)
    left = values - (np.bincount(level, values) / counts)[level]
    df = int((counts - 1).sum())
    return (float(left @ left / df), df) if df else (np.nan, 0)
