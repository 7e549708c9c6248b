"""A drawn figure with the table it shows, and the look that all figures share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import pyarrow as pa
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from raysft.report.hover import Hover

INK, MUTED, MISSING = "#1f2933", "#6b7785", "#e8ebef"
GAIN, LOSS, NEUTRAL = "#0b6e8a", "#b5471b", "#9aa5b1"
# Not quite white, and not quite the axes' grey: what the page's dark colours may replace is told from a cell's colour.
PAPER, EDGE, GRID = "#fffffe", "#c3cad2", "#eef1f4"
OUTLINE = "#1f2934"  # ink on a cell, which keeps its colour in the dark

# Rust for worse, white for unchanged, teal for better: apart for every common kind of colour vision.
DIVERGING = LinearSegmentedColormap.from_list(
    "loss_gain", ["#7f2704", LOSS, "#eeb08a", "#fafaf8", "#93ccd8", GAIN, "#053f52"]
)

LOOK: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": EDGE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    # Names come from the user: a dollar sign in one is no formula.
    "text.parse_math": False,
    # Text stays text: it can be searched, copied and read aloud, and the page is a third of the size.
    "svg.fonttype": "none",
}

# Paul Tol's muted scheme, made for colour-blind readers.
_MUTED_SCHEME = ["#332288", "#cc6677", "#44aa99", "#ddaa33", "#882255", "#88ccee", "#117733", "#aa4499", "#999933"]
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
_DASHES = ("-", "--", ":", "-.")
_LONGEST = 30
MOST_LINED = 60
"""Rows or columns of a heat map beyond which its cells have no lines between them and are drawn as pixels."""

MOST_DRAWN = 2000
"""Points of a figure beyond which they are drawn as pixels: as shapes they would weigh megabytes."""

_LEGEND_ROWS_PER_INCH = 5.2
_INCHES_PER_LETTER = 0.075


@dataclass(frozen=True)
class Plot:
    """One figure: `name` is its file name, `data` what it shows.

    `caption` is a sentence or two in plain text; `numbers` are statistics that belong under it, one a line; `code` is
    Python that draws it from its CSV; `hover` are the values to show under a pointer.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    data: pa.Table
    numbers: tuple[str, ...] = ()
    code: str = ""
    hover: tuple[Hover, ...] = ()


@dataclass(frozen=True)
class Absent:
    """A figure that could not be drawn, and why."""

    name: str
    title: str
    reason: str


def slug(text: str) -> str:
    """`text` as a file name: lower case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


def slugs(names: Iterable[str]) -> dict[str, str]:
    """A file name for each name; those that would share one are numbered."""
    found: dict[str, str] = {}
    for name in sorted(set(names)):
        stem = candidate = slug(name)
        number = 2
        while candidate in found.values():
            candidate, number = f"{stem}-{number}", number + 1
        found[name] = candidate
    return found


def short(name: str) -> str:
    """`name`, cut where it would not fit beside an axis."""
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def dataset_colours(names: Sequence[str]) -> dict[str, Any]:
    """A colour for each dataset, told apart by every common kind of colour vision up to ten."""
    return _coloured(names, sns.color_palette("colorblind", 10))


def model_colours(names: Sequence[str]) -> dict[str, Any]:
    """A colour for each base model, apart from the datasets' where nine or fewer are asked for."""
    return _coloured(names, _MUTED_SCHEME)


def _coloured(names: Sequence[str], palette: Sequence[Any]) -> dict[str, Any]:
    enough = palette if len(names) <= len(palette) else sns.color_palette("tab20", 20)
    enough = enough if len(names) <= len(enough) else sns.husl_palette(len(names), l=0.55)
    return dict(zip(names, enough, strict=False))


def markers(names: Sequence[str]) -> dict[str, str]:
    """A marker for each name; they repeat after twelve."""
    return dict(zip(names, cycle(_MARKERS), strict=False))


def dashes(names: Sequence[str]) -> dict[str, str]:
    """A line style for each name; they repeat after four."""
    return dict(zip(names, cycle(_DASHES), strict=False))


def panels(rows: int, columns: int, width: float, height: float, **shared: Any) -> tuple[Figure, Any]:
    """A figure of rows x columns axes of the given size in inches, and the axes as an array of that shape."""
    # Taken from the class, not pyplot: no global state, no display, nothing to close.
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def heat_panels(
    grid: tuple[int, int], names: tuple[Sequence[str], Sequence[str]], cell: tuple[float, float], beside: float
) -> tuple[Figure, Any]:
    """A figure of heat maps that share their rows and columns, large enough for the cells and for every name.

    Args:
        grid: rows and columns of heat maps.
        names: of a heat map's rows and of its columns.
        cell: width and height of a cell, in inches.
        beside: inches for what stands right of the heat maps: a colour bar or a legend.
    """
    (down, across), (row_names, column_names) = grid, names
    row_label, column_label = (
        _INCHES_PER_LETTER * max([len(short(name)) for name in some], default=0) for some in names
    )
    # Turned by 40 degrees, a column's name reaches about two thirds of its length down and to the left.
    width = cell[0] * len(column_names) + 0.3 + 0.4 * column_label
    figure = Figure(
        figsize=(
            across * width + row_label + beside + 0.4,
            down * (cell[1] * len(row_names) + 0.35) + 0.65 * column_label + 0.5,
        ),
        layout="constrained",
    )
    return figure, figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)


def key_line(label: str, **style: Any) -> Line2D:
    """A legend entry."""
    return Line2D([], [], label=short(label), **{"color": MUTED, "linestyle": "none", "markersize": 6, **style})


def legend(figure: Figure, **groups: Sequence[Line2D]) -> None:
    """One legend right of the figure: the groups below each other, each under its name, in columns where it is long."""
    shown = {name: entries for name, entries in groups.items() if entries}
    total = sum(1 + len(entries) for entries in shown.values())
    columns = -(-total // max(1, int(figure.get_figheight() * _LEGEND_ROWS_PER_INCH)))
    rows = -(-total // columns) if columns else 0
    entries: list[Line2D] = []
    for name, group in shown.items():
        # A name at the foot of a column would stand apart from what it names.
        entries += [key_line("")] if len(entries) % rows == rows - 1 and columns > 1 else []
        entries += [Line2D([], [], linestyle="none", label=name), *group]
    columns = -(-len(entries) // rows) if rows else 1
    entries += [key_line("")] * (columns * rows - len(entries))
    # The panels keep their size: the figure grows by what the legend takes.
    longest = max((len(str(entry.get_label())) for entry in entries), default=0)
    figure.set_figwidth(figure.get_figwidth() + columns * (0.6 + _INCHES_PER_LETTER * longest))
    drawn = figure.legend(handles=entries, loc="outside right upper", ncols=columns, alignment="left")
    for text in drawn.get_texts():
        if text.get_text() in shown:
            text.set_fontweight("bold")


def plain_log_ticks(axis: Axis, base: float = 10) -> None:
    """A log scale's ticks as plain numbers; matplotlib's own are formulas, which `LOOK` does not set.

    Call it once everything is drawn: over more than two decades there is room for the powers alone.
    """
    low, high = axis.get_view_interval()
    narrow = base == 10 and high < 100 * low
    axis.set_major_locator(LogLocator(base, subs=(1, 2, 5) if narrow else (1,), numticks=6))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def extent(values: np.ndarray) -> float:
    """The largest finite magnitude, or 1 where there is none: half the width of a scale centred at zero."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0


def heat(axes: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], **options: Any) -> None:
    """A heat map with its names on the axes; what is missing is grey, and names are turned only where they must be."""
    axes.set_facecolor(MISSING)
    axes.grid(False)
    look = {"cmap": DIVERGING, "linewidths": 0.8, "linecolor": PAPER, **options}
    if max(values.shape) > MOST_LINED:
        look |= {"linewidths": 0.0, "rasterized": True}
    # Left to itself seaborn draws the whole figure to see whether names overlap.
    look |= {"xticklabels": False, "yticklabels": False}
    sns.heatmap(values, ax=axes, mask=~np.isfinite(values), **look)
    axes.set_xticks(
        np.arange(len(columns)) + 0.5,
        [short(name) for name in columns],
        rotation=40,
        ha="right",
        rotation_mode="anchor",
    )
    axes.set_yticks(np.arange(len(rows)) + 0.5, [short(name) for name in rows], rotation=0)
    axes.tick_params(length=0)
