"""Compiled core of the exact neighbour table on a CPU: candidates out of fp32 products, then their fp64 distances.

For points x, y whose mean was taken off, |x - y|^2 = |x|^2 + |y|^2 - 2 x.y. An fp32 product of width D is off by at
most D u |x||y|, u = 2^-24, in whatever order it is summed (Higham 2002, Accuracy and Stability of Numerical
Algorithms, section 3.1). So, with g a little above D u, (1 - g)(|x|^2 + |y|^2) - 2 x.y is never above the squared
distance, and 2 g (|x|^2 + |y|^2) more is never below it. A row keeps every point whose lower bound does not exceed its
`cut`, which is never below its k-th smallest squared distance: whatever the data are, the k nearest are kept. Only
what is kept is computed in fp64, from the points as they were given.

Kept points wait in a buffer. When it is full, the k-th smallest upper bound in it lowers the cut; where that makes too
little room (near-duplicates, which fp32 cannot tell apart) they are refined at once. Equal distances are ordered by
index. So the table depends on the points alone: not on blocks, threads or shards, nor on the order they came in.

Points are scaled by a power of two, exactly, before they are rounded to fp32; bounds and cuts are of scaled points.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

_UNIT = 2.0**-24
_ROUNDINGS = 24  # u for rounding centred points, norms, their sum, the bound and the cut: 16 by count
TINY = 1e-30  # what underflow can hide in products of scaled points, whose largest entry is near 1
_CHUNK = 64  # bounds that are compared at once before any is looked at by itself


class Points(NamedTuple):
    """n points as the kernels see them; `first` is the index of the first in the whole table.

    given: (n, D), fp32 or fp64, as they came; centred: fp32 (n, D), scaled; norms: fp32 (n,), squared, of `centred`;
    near: (1 - g) norms; slack: 2 g; scale2: what the square of a given distance is multiplied by to be a scaled one.
    """

    given: Any
    centred: Any
    norms: Any
    near: Any
    slack: Any
    scale2: Any
    first: int


class Kept(NamedTuple):
    """What n rows hold so far: `waiting` (n, room) local indices with their lower bounds `lower`, `count` (n,) of them;
    `cut` (n,); and the refined, `found` int32 (n, k) indices in the whole table with their fp64 `squares`, ascending.
    """

    waiting: Any
    lower: Any
    count: Any
    cut: Any
    found: Any
    squares: Any


def relative_slack(width: int) -> float:
    """g of the module's docstring, for points of `width` entries."""
    error = (width + _ROUNDINGS) * _UNIT
    return error / (1 - error)


# Sums may be taken in the order of the processor's vectors. Exchanging x and y changes no bit.
@njit(nogil=True, cache=True, fastmath={"reassoc"})
def squared_distance(x: Any, y: Any) -> Any:
    """|x - y|^2 in fp64 of two points of any real dtype."""
    total = 0.0
    for entry in range(x.shape[0]):
        difference = np.float64(x[entry]) - np.float64(y[entry])
        total += difference * difference
    return total


@njit(nogil=True, cache=True)
def _upwards(square: Any) -> Any:
    """An fp32 number that is not below a squared distance."""
    return np.float32(square) * np.float32(1.0000003) + np.float32(TINY)


@njit(nogil=True, cache=True)
def _insert(square: Any, index: Any, squares: Any, found: Any) -> None:
    """Put a point into one row's list, which is sorted by (square, index), if it belongs there."""
    place = len(squares) - 1
    if square > squares[place] or (square == squares[place] and index > found[place]):
        return
    while place > 0 and (square < squares[place - 1] or (square == squares[place - 1] and index < found[place - 1])):
        squares[place], found[place] = squares[place - 1], found[place - 1]
        place -= 1
    squares[place], found[place] = square, index


@njit(nogil=True, cache=True)
def _drop_far(row: Any, rows: Any, others: Any, kept: Any) -> None:
    """Lower one row's cut to the k-th smallest upper bound among its waiting points, and drop those beyond it."""
    size, nearest = kept.count[row], kept.found.shape[1]
    if size >= nearest:
        upper = np.empty(size, np.float32)
        for place in range(size):
            norms = rows.norms[row] + others.norms[kept.waiting[row, place]]
            upper[place] = kept.lower[row, place] + rows.slack * norms
        kept.cut[row] = min(kept.cut[row], _upwards(np.partition(upper, nearest - 1)[nearest - 1]))
    left = 0
    for place in range(size):
        if kept.lower[row, place] <= kept.cut[row]:
            kept.waiting[row, left] = kept.waiting[row, place]
            kept.lower[row, left] = kept.lower[row, place]
            left += 1
    kept.count[row] = left


@njit(nogil=True, cache=True)
def _refine(row: Any, rows: Any, others: Any, kept: Any) -> None:
    """Compute the waiting points of one row in fp64, keep the k nearest of all so far, and lower the cut to them."""
    last = kept.found.shape[1] - 1
    for place in range(kept.count[row]):
        if kept.lower[row, place] <= kept.cut[row]:
            other = kept.waiting[row, place]
            square = squared_distance(rows.given[row], others.given[other])
            _insert(square, others.first + other, kept.squares[row], kept.found[row])
            if kept.squares[row, last] < np.inf:
                kept.cut[row] = min(kept.cut[row], _upwards(kept.squares[row, last] * rows.scale2))
    kept.count[row] = 0


@njit(nogil=True, cache=True)
def _make_room(row: Any, rows: Any, others: Any, kept: Any) -> None:
    """Empty half of one row's buffer at least."""
    _drop_far(row, rows, others, kept)
    if 2 * kept.count[row] > kept.waiting.shape[1]:
        _refine(row, rows, others, kept)


# Arrays are taken out of their tuples once, since handing a tuple to a function counts references to all it holds;
# and a part of a row is a view, since an index that might be negative keeps the compiler from using vectors.
@njit(nogil=True, cache=True)
def offer_columns(tile: Any, top: Any, left: Any, rows: Any, others: Any, kept: Any) -> None:
    """Offer to each row of a tile its columns. `tile`: products fp32, of rows[top:] with others[left:]."""
    waiting, lower, count, cut, two = kept.waiting, kept.lower, kept.count, kept.cut, np.float32(2)
    room, near = kept.waiting.shape[1], others.near[left : left + tile.shape[1]]
    for line in range(tile.shape[0]):
        row = top + line
        base, own = rows.near[row], rows.first + row - others.first - left  # own: the column that is the row itself
        for start in range(0, tile.shape[1], _CHUNK):
            products, norms = tile[line, start : start + _CHUNK], near[start : start + _CHUNK]
            limit, close = cut[row], 0
            for entry in range(len(products)):
                close += (base + norms[entry]) - two * products[entry] <= limit
            for entry in range(len(products) if close else 0):
                bound = (base + norms[entry]) - two * products[entry]
                if bound <= cut[row] and start + entry != own:
                    if count[row] == room:
                        _make_room(row, rows, others, kept)
                    waiting[row, count[row]] = left + start + entry
                    lower[row, count[row]] = bound
                    count[row] += 1


@njit(nogil=True, cache=True)
def offer_rows(tile: Any, top: Any, left: Any, points: Any, kept: Any) -> None:
    """Offer to each column of a tile off the diagonal its rows; both are of `points`, and so is `kept`."""
    waiting, lower, count, two = kept.waiting, kept.lower, kept.count, np.float32(2)
    cut, near = kept.cut[left : left + tile.shape[1]], points.near[left : left + tile.shape[1]]
    room = kept.waiting.shape[1]
    for line in range(tile.shape[0]):
        base = points.near[top + line]
        for start in range(0, tile.shape[1], _CHUNK):
            products, norms = tile[line, start : start + _CHUNK], near[start : start + _CHUNK]
            limits, close = cut[start : start + _CHUNK], 0
            for entry in range(len(products)):
                close += (base + norms[entry]) - two * products[entry] <= limits[entry]
            for entry in range(len(products) if close else 0):
                bound = (base + norms[entry]) - two * products[entry]
                if bound <= limits[entry]:
                    row = left + start + entry
                    if count[row] == room:
                        _make_room(row, points, points, kept)
                    waiting[row, count[row]] = top + line
                    lower[row, count[row]] = bound
                    count[row] += 1


@njit(nogil=True, cache=True)
def refine_rows(first: Any, last: Any, rows: Any, others: Any, kept: Any) -> None:
    """Compute in fp64 what waits for rows[first:last]; what waits are indices into `others`."""
    for row in range(first, last):
        _drop_far(row, rows, others, kept)
        _refine(row, rows, others, kept)
