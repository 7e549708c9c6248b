"""How much an estimate from a neighbour table would differ on other texts: its spread over random halves of them.

A half is drawn without replacement. Drawing with replacement, as a bootstrap does, would put a point beside itself,
which no estimator of intrinsic dimension survives. The two halves of a split are samples that have nothing in common,
so half the squared difference of their estimates is the variance of either, and a quarter that of the whole sample's,
which is twice as large: the random group method with two groups (Wolter 2007, Introduction to Variance Estimation,
chapter 2), averaged over random splits. The spread of halves about their mean, as a delete-d jackknife has it, would be
too wide: that a half also thins out the neighbourhoods adds to it. The interval is the estimate with 1.96 standard
errors on either side.

The neighbours of a half are read off the whole table. It is made so deep that it nearly always holds as many as an
estimate needs; a row for which it does not is left out of that half, which biases nothing, because it depends only on
which points were drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import njit

from raysft.probes.geometry.estimators import Estimates, estimates_of
from raysft.probes.geometry.neighbours import Neighbours

_SPREADS = 4  # standard deviations of how many of a point's neighbours are in a half: one row in 30,000 has fewer
_QUANTILE = 1.959964  # 97.5% of the normal distribution


def depth_for_halves(deepest: int) -> int:
    """The k of a table off which the halves' `deepest` nearest neighbours can be read in nearly every row.

    Of k neighbours about k / 2 are in a half, with a standard deviation of at most sqrt(k) / 2.
    """
    root = (_SPREADS + math.sqrt(_SPREADS**2 + 8 * deepest)) / 2
    return math.ceil(root**2)


def intervals(
    table: Neighbours, estimates: Estimates, neighbours: int, mle_neighbours: int, splits: int, seed: int
) -> dict[tuple[str, int], tuple[float, float]]:
    """95% interval (low, high) of each of `estimates`, which are those of `estimates_of` for the whole table.

    NaN where a half has no estimate. ValueError without a split.
    """
    if splits < 1:
        raise ValueError(f"an interval takes at least one split into halves, found {splits}")
    deepest = max(scale for _, scale in estimates)
    differences: dict[tuple[str, int], list[float]] = {place: [] for place in estimates}
    for first, second in split_tables(table, splits, seed, deepest):
        one, other = (estimates_of(half, neighbours, mle_neighbours) for half in (first, second))
        for place, found in differences.items():
            found.append(one[place] - other[place])
    spans = {}
    for place, value in estimates.items():
        error = float(np.sqrt(np.mean(np.square(differences[place])))) / 2
        spans[place] = (float(np.maximum(0.0, value - _QUANTILE * error)), value + _QUANTILE * error)
    return spans


def split_tables(table: Neighbours, splits: int, seed: int, deepest: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Distances fp64 (rows, deepest) of the points of both halves of each random split to their nearest in the same
    half, rows in the order of the table; NaN beyond what the table tells. The first half has n // 2 points."""
    random = np.random.default_rng(seed)
    count = len(table.indices)
    for _ in range(splits):
        first = np.zeros(count, np.bool_)
        first[random.permutation(count)[: count // 2]] = True
        yield _half(table, first, deepest), _half(table, ~first, deepest)


def _half(table: Neighbours, inside: np.ndarray, deepest: int) -> np.ndarray:
    rows = np.flatnonzero(inside)
    distances = np.full((len(rows), deepest), np.nan)
    _read_off(table.indices, table.distances, inside, rows, distances)
    return distances


@njit(nogil=True, cache=True)
def _read_off(indices: Any, distances: Any, inside: Any, rows: Any, out: Any) -> None:
    for line in range(len(rows)):
        row, found = rows[line], 0
        for place in range(indices.shape[1]):
            if inside[indices[row, place]]:
                out[line, found] = distances[row, place]
                found += 1
                if found == out.shape[1]:
                    break
