"""A figure as the page needs it: SVG inside the page, PNG and PDF beside it, the same bytes every time."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from raysft.report.hover import regions, too_many
from raysft.report.plot import EDGE, GAIN, GRID, INK, LOOK, LOSS, MISSING, MUTED, NEUTRAL, PAPER, Plot

_PIXELS_PER_POINT = 4 / 3
_PNG_DPI = 160
_SVG_DPI = 150  # of what is drawn as pixels inside an SVG
_PLACES = 5  # of the figure's width or height
_NARROWEST = 0.75  # of its own width: below that, a figure's text is too small and it scrolls instead

# Colours of a figure that follow the page's light and dark, and the name of their CSS variable.
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    PAPER: "paper",
    EDGE: "edge",
    GRID: "grid",
    MISSING: "missing",
    NEUTRAL: "neutral",
    GAIN: "gain",
    LOSS: "loss",
    # Hues of the palettes that are too dark to be seen on a dark page.
    "#332288": "indigo",
    "#882255": "wine",
    "#117733": "green",
    "#0173b2": "blue",
}


@dataclass(frozen=True)
class Drawing:
    """One figure in all its formats, and the regions of its SVG that show a value under the pointer."""

    svg: Markup
    png: bytes
    pdf: bytes
    regions: list[dict[str, Any]]
    too_many: bool


def render(plot: Plot) -> Drawing:
    """Draw `plot` as SVG, PNG and PDF."""
    with mpl.rc_context({**LOOK, "svg.hashsalt": plot.name}):
        png, svg, pdf = io.BytesIO(), io.StringIO(), io.BytesIO()
        _settle(plot.figure)
        plot.figure.savefig(png, format="png", dpi=_PNG_DPI, metadata={"Software": None})
        undated = {"Date": None, "Creator": None, "Format": None, "Type": None}
        plot.figure.savefig(svg, format="svg", dpi=_SVG_DPI, metadata=undated)
        anonymous = {"CreationDate": None, "Creator": None, "Producer": None}
        plot.figure.savefig(pdf, format="pdf", dpi=_PNG_DPI, metadata=anonymous)
        found = regions(plot.hover)
    drawing = inline_svg(svg.getvalue(), plot.name, plot.title)
    return Drawing(drawing, png.getvalue(), pdf.getvalue(), found, too_many(plot.hover))


def _settle(figure: Figure) -> None:
    """Lay the figure out once, for all formats.

    The solver's last bits differ from run to run, and matplotlib hashes them into the SVG's names: places are rounded.
    """
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine(None)
    for axes in figure.axes:
        left, bottom, width, height = (round(number, _PLACES) for number in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))


def inline_svg(svg: str, name: str, title: str) -> Markup:
    """A matplotlib SVG as an element of the page: no prologue, ids of its own, a label for screen readers.

    It fills its box up to its own width, and on a narrow screen stays wide enough to read and scrolls. Ink, grid and
    ground become CSS variables.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body)
    # matplotlib styles `*`, which would reach beyond the SVG.
    body = re.sub(r"<style type=\"text/css\">\*\{[^}]*\}</style>", "", body)
    body = re.sub(r'style="[^"]*"', _with_variables, body)
    points = float(re.search(r'width="([\d.]+)pt"', body)[1])  # type: ignore[index]  # matplotlib always writes it
    widest = round(points * _PIXELS_PER_POINT)
    style = f"width:100%;max-width:{widest}px;min-width:{round(widest * _NARROWEST)}px;height:auto"
    body = re.sub(r' width="[\d.]+pt"', "", re.sub(r' height="[\d.]+pt"', "", body, count=1), count=1)
    return Markup(body.replace("<svg", f'<svg role="img" aria-label="{escape(title)}" style="{style}"', 1))


def _with_variables(style: re.Match[str]) -> str:
    return re.sub(r"#[0-9a-f]{6}", lambda found: _variable(found[0]), style[0])


def _variable(colour: str) -> str:
    return f"var(--{_VARIABLES[colour]})" if colour in _VARIABLES else colour
