"""The figure of cross-lingual transfer: whether what helps in English helps on the same benchmark elsewhere."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from raysft.report.correlations import coefficients
from raysft.report.findings import Findings
from raysft.report.hover import Dots
from raysft.report.plot import (
    MOST_DRAWN,
    NEUTRAL,
    PAPER,
    Absent,
    Plot,
    dataset_colours,
    key_line,
    legend,
    markers,
    panels,
    short,
)
from raysft.report.redraw import points_code
from raysft.study.languages import ENGLISH

Row = dict[str, Any]


def cross_lingual(findings: Findings) -> Plot | Absent:
    """Gain in English against gain in another language: a panel for each, a point for each variant, model, dataset."""
    name, title = "cross_lingual", "From English to other languages"
    points = findings.transfer_points
    if not points:
        return Absent(name, title, "no benchmark was measured in English and in another language, going by task names")
    pairs = sorted({(point["english"], point["other"]) for point in points})
    across = min(3, len(pairs))
    figure, axes = panels(-(-len(pairs) // across), across, 3.5, 3.3)
    for panel in axes.ravel()[len(pairs) :]:
        panel.set_axis_off()
    colour, marker = dataset_colours(findings.names("dataset")), markers(findings.names("model"))
    hover = []
    for panel, pair in zip(axes.ravel(), pairs, strict=False):
        ours = [point for point in points if (point["english"], point["other"]) == pair]
        x, y = [point["english_gain"] for point in ours], [point["other_gain"] for point in ours]
        panel.axhline(0, color=NEUTRAL, linewidth=1)
        panel.axvline(0, color=NEUTRAL, linewidth=1)
        panel.axline((0, 0), slope=1, color=NEUTRAL, linewidth=1, linestyle=":")
        for point, a, b in zip(ours, x, y, strict=True):
            look = {"color": colour[point["dataset"]], "marker": marker[point["model"]], "markersize": 5.5}
            panel.plot(a, b, markeredgecolor=PAPER, markeredgewidth=0.4, rasterized=len(points) > MOST_DRAWN, **look)
        panel.set(title=f"{ENGLISH} to {ours[0]['language']}", xlabel=f"gain on {short(pair[0])}")
        panel.set_ylabel(f"gain on {short(pair[1])}")
        hover.append(Dots(panel, x, y, [_said(point) for point in ours]))
    legend(
        figure,
        dataset=[key_line(dataset, color=tone, marker="o") for dataset, tone in colour.items()],
        model=[key_line(model, marker=sign) for model, sign in marker.items()],
    )
    caption = (
        "One point for each variant, base model and dataset; gains as a share of the scale; on the dotted line both "
        "are equal. Languages are read off the tasks' names. A base model that answers in the wrong format in "
        "both languages gains in both when it learns the format: that is transfer too, but not of knowledge."
    )
    numbers = tuple(
        f"{row['predictor'].capitalize()}, on {row['task']}, {row['variant']}: {coefficients(row)}"
        for row in findings.transfer_tests.to_pylist()
    )
    options = 'hue="dataset", style="model", col="other", facet_kws={"sharex": False, "sharey": False}'
    code = points_code(name, "english_gain", "other_gain", options)
    return Plot(name, title, caption, figure, pa.Table.from_pylist(points), numbers, code, tuple(hover))


def _said(point: Row) -> str:
    gains = f"{point['english_gain']:+.3f} in English, {point['other_gain']:+.3f} in {point['language']}"
    return f"{point['model']}, {point['dataset']}, {point['variant']}\n{gains}"
