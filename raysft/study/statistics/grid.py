"""Points as a grid with one axis for each grouping: models x datasets, or models x datasets x tasks.

Permuting or resampling whole models and whole datasets means moving whole slices of this grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysft.study.association import FEWEST, constant, fixed_effects_residuals
from raysft.study.tables import Reals

Labels = Sequence[Any]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Grid:
    """Complete points laid out on a grid.

    `x` has shape (columns, cells), `y` and `known` (cells,), cells in C order of `shape`: the number of levels of each
    grouping. Cells without a point are not `known` and hold zeros. `reason` says why nothing can be computed.
    """

    shape: tuple[int, ...]
    x: Reals
    y: Reals
    known: Flags
    reason: str | None = None

    @property
    def complete(self) -> bool:
        """Whether every cell has a point."""
        return bool(self.known.all())


def grid_of(x: Reals, y: Reals, groups: Sequence[Labels]) -> Grid:
    """Lay out the points that have y and every column of x, by the sorted levels of each grouping.

    Args:
        x: predictors, shape (columns, points) or (points,).
        y: outcome, shape (points,).
        groups: one sequence of labels for each grouping; no two points share all of theirs.

    Raises:
        ValueError: two points have the same labels.
    """
    columns = np.atleast_2d(x)
    whole = np.isfinite(columns).all(axis=0) & np.isfinite(y)
    levels = [np.unique(np.asarray(labels)[whole], return_inverse=True) for labels in groups]
    shape = tuple(len(names) for names, _ in levels)
    if whole.sum() < FEWEST:
        few = f"{int(whole.sum())} common points, {FEWEST} needed"
        return Grid(shape, np.zeros((len(columns), 0)), np.zeros(0), np.zeros(0, dtype=bool), few)
    at = np.ravel_multi_index([place.ravel() for _, place in levels], shape)
    if len(np.unique(at)) < len(at):
        raise ValueError("groups: two points have the same labels; average them first")
    laid_x, laid_y = np.zeros((len(columns), int(np.prod(shape)))), np.zeros(int(np.prod(shape)))
    known = np.zeros(laid_y.shape, dtype=bool)
    laid_x[:, at], laid_y[at], known[at] = columns[:, whole], y[whole], True
    reason = "constant" if constant(y[whole]) or all(constant(column[whole]) for column in columns) else None
    return Grid(shape, laid_x, laid_y, known, reason)


def centred(grid: Grid, fixed: bool) -> Grid:
    """`grid` with the mean taken out of x and y, or with `fixed` an effect of every level of every grouping.

    Columns that do not vary beyond rounding become zero; `reason` says if none is left, or y.
    """
    if grid.reason is not None:
        return grid
    places = np.unravel_index(np.flatnonzero(grid.known), grid.shape) if fixed else ()
    points = np.vstack([grid.x, grid.y])[:, grid.known]
    left, _ = fixed_effects_residuals(points.T, places)
    sizes = np.abs(points).max(axis=1)
    flat = np.array([constant(column, size) for column, size in zip(left.T, sizes, strict=True)])
    out = np.zeros((len(points), grid.y.size))
    out[:, grid.known] = np.where(flat, 0.0, left).T
    inside = " within models and datasets" if fixed else ""
    reason = f"the gain does not vary{inside}" if flat[-1] else None
    reason = f"the predictor does not vary{inside}" if flat[:-1].all() else reason
    return Grid(grid.shape, out[:-1], out[-1], grid.known, reason)
