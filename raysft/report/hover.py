"""Values under the pointer: where a figure's cells and points lie on its SVG, and what each says.

The page's script draws one transparent rectangle for each region and finds the cell or the nearest point by itself, so
a matrix costs its numbers and not an element for each cell. Everything is text to the script and never markup.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from raysft.study.tables import Reals

MOST_CELLS = 60_000
MOST_CORRELATIONS = 2_000**2  # 2.7 MB of the page
MOST_DOTS = 4_000
_POINTS_PER_INCH = 72
_UNKNOWN = -128  # of what is a whole number of hundredths from -100 to 100


@dataclass(frozen=True)
class Cells:
    """A heat map that fills `axes`: `texts` has shape (rows, columns), empty where nothing is to be said."""

    axes: Axes
    rows: Sequence[str]
    columns: Sequence[str]
    texts: Sequence[Sequence[str]]

    @property
    def count(self) -> int:
        return len(self.rows) * len(self.columns)


@dataclass(frozen=True)
class Correlations:
    """A heat map of correlations that fills `axes`: `values` is symmetric, shape (names, names), NaN where unknown.

    A cell costs the page less than a byte and not a text of its own, so that a thousand fine-tunings have theirs too.
    """

    axes: Axes
    names: Sequence[str]
    values: Reals

    @property
    def count(self) -> int:
        return len(self.names) ** 2


@dataclass(frozen=True)
class Dots:
    """Points of `axes` in its data coordinates, each with its text."""

    axes: Axes
    x: Sequence[float]
    y: Sequence[float]
    texts: Sequence[str]

    @property
    def count(self) -> int:
        return len(self.texts)


Hover = Cells | Correlations | Dots
_MOST: dict[type[Hover], int] = {Cells: MOST_CELLS, Correlations: MOST_CORRELATIONS, Dots: MOST_DOTS}


def dots_of(axes: Axes, points: Sequence[tuple[float, float, str]]) -> Dots:
    """Points as (x, y, text)."""
    return Dots(axes, [x for x, _, _ in points], [y for _, y, _ in points], [text for _, _, text in points])


def signed(values: np.ndarray, digits: int = 3, unit: str = "") -> list[list[str]]:
    """A matrix as texts: `+0.125`, and empty where there is no number. Adding zero turns -0.0 into 0.0."""
    return [[f"{round(v, digits) + 0.0:+.{digits}f}{unit}" if np.isfinite(v) else "" for v in row] for row in values]


def regions(hovers: Iterable[Hover]) -> list[dict[str, Any]]:
    """Regions for the page's script, in the SVG's own units (points from the top left), once the layout is settled."""
    return [_region(hover) for hover in hovers if hover.count and _fits(hover)]


def too_many(hovers: Iterable[Hover]) -> bool:
    """Whether some region has more values than a page should carry."""
    return any(not _fits(hover) for hover in hovers)


def _fits(hover: Hover) -> bool:
    return hover.count <= _MOST[type(hover)]


def _region(hover: Hover) -> dict[str, Any]:
    if isinstance(hover, Dots):
        return _dots(hover)
    return _cells(hover) if isinstance(hover, Cells) else _correlations(hover)


def _cells(hover: Cells) -> dict[str, Any]:
    texts = [list(row) for row in hover.texts]
    named = {"rows": list(hover.rows), "columns": list(hover.columns), "texts": texts}
    return {"kind": "cells", "box": _box(hover.axes), **named}


def _correlations(hover: Correlations) -> dict[str, Any]:
    """Hundredths of the lower triangle, diagonal included, row by row: a signed byte each, in base64."""
    lower = np.asarray(hover.values, dtype=np.float64)[np.tril_indices(len(hover.names))]
    hundredths = np.where(np.isfinite(lower), np.rint(100 * lower), _UNKNOWN).astype(np.int8)
    packed = base64.b64encode(hundredths.tobytes()).decode("ascii")
    return {"kind": "correlations", "box": _box(hover.axes), "names": list(hover.names), "hundredths": packed}


def _dots(hover: Dots) -> dict[str, Any]:
    places = hover.axes.transData.transform(np.column_stack([hover.x, hover.y]))
    x, y = _on_svg(hover.axes, places).T
    dots = [
        [round(float(a), 1), round(float(b), 1), text]
        for a, b, text in zip(x, y, hover.texts, strict=True)
        if np.isfinite(a) and np.isfinite(b)
    ]
    return {"kind": "dots", "box": _box(hover.axes), "dots": dots}


def _box(axes: Axes) -> list[float]:
    """Left, top, width and height of the axes."""
    (left, bottom), (right, top) = _on_svg(axes, axes.get_window_extent().get_points())
    return [round(float(number), 2) for number in (left, top, right - left, bottom - top)]


def _on_svg(axes: Axes, pixels: np.ndarray) -> np.ndarray:
    figure = axes.get_figure(root=True)
    assert figure is not None
    points = pixels * _POINTS_PER_INCH / figure.dpi
    points[:, 1] = figure.get_figheight() * _POINTS_PER_INCH - points[:, 1]
    return points
