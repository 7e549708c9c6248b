"""The figure of cross-lingual transfer: whether what helps in English helps on the same benchmark elsewhere."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

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
from raysft.study.association import associate, within
from raysft.study.cells import Cell, gain_cells
from raysft.study.languages import ENGLISH, language_families

Row = dict[str, Any]


def cross_lingual(findings: Findings) -> Plot | Absent:
    """Gain in English against gain in another language: a panel for each, a point for each variant, model, dataset."""
    name, title = "cross_lingual", "From English to other languages"
    cells = gain_cells(findings.study["gains"])
    families = language_families(cell.task for cell in cells)
    points = [point for benchmark, tasks in families.items() for point in _points(benchmark, tasks, cells)]
    if not points:
        return Absent(name, title, "no benchmark was measured in English and in another language, going by task names")
    pairs = sorted({(point["english"], point["other"]) for point in points})
    across = min(3, len(pairs))
    figure, axes = panels(-(-len(pairs) // across), across, 3.5, 3.3)
    for panel in axes.ravel()[len(pairs) :]:
        panel.set_axis_off()
    colour, marker = dataset_colours(findings.names("dataset")), markers(findings.names("model"))
    hover, numbers = [], []
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
        numbers.append(_numbers(ours))
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
    options = 'hue="dataset", style="model", col="other", facet_kws={"sharex": False, "sharey": False}'
    code = points_code(name, "english_gain", "other_gain", options)
    return Plot(name, title, caption, figure, pa.Table.from_pylist(points), tuple(numbers), code, tuple(hover))


def _points(benchmark: str, tasks: dict[str, str], cells: list[Cell]) -> list[Row]:
    gains = {(cell.variant, cell.model, cell.dataset, cell.task): cell.gain for cell in cells}
    english = tasks[ENGLISH]
    return [
        {
            "benchmark": benchmark,
            "language": language,
            "english": english,
            "other": task,
            "variant": variant,
            "model": model,
            "dataset": dataset,
            "english_gain": gain,
            "other_gain": gains[variant, model, dataset, task],
        }
        for language, task in tasks.items()
        if language != ENGLISH
        for (variant, model, dataset, found), gain in gains.items()
        if found == english and (variant, model, dataset, task) in gains
    ]


def _said(point: Row) -> str:
    gains = f"{point['english_gain']:+.3f} in English, {point['other_gain']:+.3f} in {point['language']}"
    return f"{point['model']}, {point['dataset']}, {point['variant']}\n{gains}"


def _numbers(points: list[Row]) -> str:
    x, y = (pa.array([point[side] for point in points]).to_numpy() for side in ("english_gain", "other_gain"))
    plain = associate(x, y)
    groups = [[point[label] for point in points] for label in ("model", "dataset", "variant")]
    fixed = within(x, y, groups)
    head = f"{points[0]['english']} and {points[0]['other']}:"
    if plain.reason:
        return f"{head} undefined ({plain.reason})."
    said = f"{head} plain r = {plain.pearson:+.2f} (Spearman {plain.spearman:+.2f}, n = {plain.n})"
    if fixed.reason:
        return f"{said}; with fixed effects undefined ({fixed.reason})."
    return f"{said}; with fixed effects of model, dataset and variant r = {fixed.r:+.2f} ({fixed.df} df)."
