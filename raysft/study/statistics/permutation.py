"""Permutation tests that move whole models and whole datasets, for one predictor or for the strongest of many.

If the predictor has nothing to do with the gains, its rows (models) and columns (datasets) could have stood in any
order: each is permuted as a whole, all columns of x alike, so what cells of one model or one dataset share stays shared
in every permutation. The maximum over columns is compared with its own distribution (Westfall and Young 1993), so that
"the strongest of 33 layers" is tested as just that. For a complete grid the tests are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations as orders
from itertools import product
from math import factorial, prod

import numpy as np
import numpy.typing as npt

from raysft.study.statistics.grid import Grid, Labels, centred, grid_of
from raysft.study.tables import Reals

PERMUTATIONS = 4999
_ROUNDING = 1e-9
_AT_ONCE = 2_000_000  # numbers of permuted outcomes held in memory

Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class PermutationTest:
    """For each column of x: its coefficient, two-sided p by itself, and p adjusted for taking the strongest column.

    All three have shape (columns,), NaN where a column does not vary. `exact` where every permutation was tried, and
    `permutations` then counts them, the identity included. Where nothing could be tested, `reason` says why.
    """

    r: Reals
    p: Reals
    p_max: Reals
    permutations: int = 0
    exact: bool = False
    reason: str | None = None


def permutation_test(
    x: Reals, y: Reals, groups: Sequence[Labels], fixed: bool, permutations: int = PERMUTATIONS, seed: int = 0
) -> PermutationTest:
    """Test correlations of x with y against permutations of the levels of every grouping.

    All permutations are enumerated where there are no more than `permutations` + 1, else so many are drawn.

    Args:
        x: predictors, shape (columns, points) or (points,). A point without all of them is left out.
        y: outcome, shape (points,).
        groups: one sequence of labels for each grouping, such as models and datasets.
        fixed: correlate what is left after an effect of every level (partial correlation), else plain Pearson's r.
        permutations: how many are drawn.
        seed: of the draws.
    """
    grid = centred(grid_of(x, y, groups), fixed)
    undefined = np.full(len(grid.x), np.nan)
    if grid.reason is not None:
        return PermutationTest(undefined, undefined, undefined, reason=grid.reason)
    exact = prod(factorial(levels) for levels in grid.shape) <= permutations + 1
    found = np.arange(grid.y.size)[None]
    observed = np.abs(_coefficients(grid, found)[0])
    varies = np.isfinite(observed)
    beaten, beaten_max, tried = np.zeros(len(grid.x)), np.zeros(len(grid.x)), 0
    for places in _all_places(grid.shape) if exact else _drawn_places(grid.shape, permutations, seed):
        sizes = np.nan_to_num(np.abs(_coefficients(grid, places)))  # an order in which no cell has both correlates none
        beaten += (sizes >= observed - _ROUNDING).sum(axis=0)
        strongest = sizes[:, varies].max(axis=1)
        beaten_max += (strongest[:, None] >= observed - _ROUNDING).sum(axis=0)
        tried += len(places)
    own = 0 if exact else 1  # a drawn sample does not hold the identity, an enumeration does
    p, p_max = ((count + own) / (tried + own) for count in (beaten, beaten_max))
    return PermutationTest(
        _coefficients(grid, found)[0],
        np.where(varies, p, np.nan),
        np.where(varies, p_max, np.nan),
        tried,
        exact,
    )


def _coefficients(grid: Grid, places: Places) -> Reals:
    """r of every column with y moved to `places` (orders, cells), shape (orders, columns).

    Where cells are missing, an order has fewer cells with both than the data, and its r spreads no less: p is rather
    too large than too small. (r sqrt(cells) would be too small: with half of the cells missing 9% are below 5%.)
    """
    moved = grid.y[places]
    top = moved @ grid.x.T
    if grid.complete:
        bottom = np.sqrt((grid.y @ grid.y) * (grid.x**2).sum(axis=1))[None]
    else:
        there, known = grid.known[places].astype(np.float64), grid.known.astype(np.float64)
        bottom = np.sqrt((there @ (grid.x**2).T) * (moved**2 @ known)[:, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)


def _cells(shape: tuple[int, ...], axes: Sequence[Places]) -> Places:
    """Flat indices (orders, cells) of a grid whose every axis is taken in the orders (orders, levels) of `axes`."""
    flat = np.zeros((len(axes[0]), *(1 for _ in shape)), dtype=np.intp)
    for axis, order in enumerate(axes):
        spread = [1] * len(shape)
        spread[axis] = shape[axis]
        flat = flat * shape[axis] + order.reshape(-1, *spread)
    return flat.reshape(len(axes[0]), -1)


def _all_places(shape: tuple[int, ...]) -> Iterator[Places]:
    every = [list(orders(range(levels))) for levels in shape]
    chosen = list(product(*every))
    yield _cells(shape, [np.array([order[axis] for order in chosen]) for axis in range(len(shape))])


def _drawn_places(shape: tuple[int, ...], permutations: int, seed: int) -> Iterator[Places]:
    random = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // prod(shape))
    for start in range(0, permutations, step):
        count = min(step, permutations - start)
        yield _cells(shape, [random.permuted(np.tile(np.arange(size), (count, 1)), axis=1) for size in shape])
