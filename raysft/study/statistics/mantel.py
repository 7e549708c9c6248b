"""Mantel's test (1967): whether two square matrices over the same objects go together.

The entries of a matrix are not independent, its objects are: the rows and columns of one matrix are permuted together.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations as orders
from math import factorial

import numpy as np
from scipy.stats import rankdata

from raysft.study.association import constant
from raysft.study.tables import Reals

PERMUTATIONS = 9999
_FEWEST = 4  # three objects have six orders, and no p under 1/6
_ENUMERATED = 8  # objects of which all 40,320 orders are tried
_ROUNDING = 1e-9
_AT_ONCE = 2_000_000  # permuted entries held in memory


@dataclass(frozen=True)
class Mantel:
    """r of the lower triangles of `n` objects and its two-sided p; `permutations` include the identity if `exact`."""

    n: int
    r: float = np.nan
    p: float = np.nan
    permutations: int = 0
    exact: bool = False
    reason: str | None = None


def mantel(x: Reals, y: Reals, ranks: bool = False, permutations: int = PERMUTATIONS, seed: int = 0) -> Mantel:
    """Correlate the triangles below the diagonals of two symmetric matrices, shape (objects, objects).

    Up to eight objects all orders are tried, otherwise `permutations` random ones. Objects are left out, the one with
    most missing entries first, until none is missing. `ranks` gives Spearman's rho instead of Pearson's r. Without
    `permutations` there is no p.

    Raises:
        ValueError: the matrices are not square and of one shape.
    """
    if x.shape != y.shape or x.ndim != 2 or x.shape[0] != x.shape[1]:
        raise ValueError(f"mantel: matrices of shapes {x.shape} and {y.shape}, two square ones of one shape needed")
    kept = _complete(x, y)
    n = len(kept)
    if n < _FEWEST:
        return Mantel(n, reason=f"{n} objects with every entry, {_FEWEST} needed")
    below = np.tril_indices(n, k=-1)
    first, second = x[np.ix_(kept, kept)][below], y[np.ix_(kept, kept)][below]
    if constant(first) or constant(second):
        return Mantel(n, reason="constant")
    if ranks:
        first, second = rankdata(first), rankdata(second)
    square = np.zeros((n, n))
    square[below] = _unit(first)
    square += square.T
    other = _unit(second)
    r = float(square[below] @ other)
    if permutations == 0:
        return Mantel(n, float(np.clip(r, -1, 1)))
    exact = n <= _ENUMERATED
    tried = _orders(n, exact, permutations, seed)
    step = max(1, _AT_ONCE // len(other))
    beaten, own = 0, 0 if exact else 1
    for start in range(0, len(tried), step):
        orders_now = tried[start : start + step]
        moved = square[orders_now[:, below[0]], orders_now[:, below[1]]] @ other
        beaten += int((np.abs(moved) >= abs(r) - _ROUNDING).sum())
    return Mantel(n, float(np.clip(r, -1, 1)), (beaten + own) / (len(tried) + own), len(tried), exact)


def _unit(values: Reals) -> Reals:
    centred = values - values.mean()
    return centred / np.linalg.norm(centred)


def _orders(n: int, exact: bool, permutations: int, seed: int) -> np.ndarray:
    if exact:
        return np.fromiter(orders(range(n)), dtype=np.dtype((np.intp, n)), count=factorial(n))
    return np.random.default_rng(seed).permuted(np.tile(np.arange(n), (permutations, 1)), axis=1)


def _complete(x: Reals, y: Reals) -> list[int]:
    """Objects that have every entry off the diagonal in both matrices."""
    missing = ~(np.isfinite(x) & np.isfinite(y))
    missing |= missing.T
    np.fill_diagonal(missing, False)
    kept = list(range(len(x)))
    while kept and (counts := missing[np.ix_(kept, kept)].sum(axis=1)).any():
        kept.pop(int(counts.argmax()))
    return kept
