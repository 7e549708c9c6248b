"""Figures of what goes with gain before training: perplexity, length, similarity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from matplotlib.axes import Axes

from raysft.report.correlations import coefficients
from raysft.report.findings import Findings
from raysft.report.hover import Dots
from raysft.report.plot import (
    GAIN,
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
    plain_log_ticks,
    short,
)
from raysft.report.redraw import points_code
from raysft.study.cells import Slice, gain_cells, slices
from raysft.study.correlate import dataset_properties, task_similarities
from raysft.study.tables import select

# What a family of properties is called, and its members in the order in which they are preferred.
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "perplexity": (
        "Perplexity",
        ("response_perplexity", "response_bits_per_byte", "text_perplexity", "text_bits_per_byte"),
    ),
    "length": ("Length", ("response_tokens", "prompt_tokens", "text_tokens")),
}
_MOST_SHOWN = 2


def gain_against(findings: Findings, family: str) -> Plot | Absent:
    """Properties of one family against mean gain: a point for each model and dataset, a row for each variant."""
    heading, members = FAMILIES[family]
    name, title = f"gain_against_{family}", f"{heading} and gain"
    measured = dataset_properties(findings.sweep["data_properties"])
    shown = [member for member in members if member in measured][:_MOST_SHOWN]
    parts = main_parts(findings)
    if not shown or not parts:
        return Absent(name, title, f"no {family} of the data was measured" if parts else "no checkpoint was measured")
    figure, axes = panels(len(parts), len(shown), 3.7, 2.8, sharey="row", sharex="col")
    colour, marker = dataset_colours(findings.names("dataset")), markers(findings.names("model"))
    points: list[dict[str, Any]] = []
    hover: list[Dots] = []
    for row, part in zip(axes, parts, strict=True):
        for panel, member in zip(row, shown, strict=True):
            found = _points(part, member, measured[member])
            points += found
            for point in found:
                look = {"color": colour[point["dataset"]], "marker": marker[point["model"]], "markersize": 6}
                panel.plot(point["value"], point["gain"], markeredgecolor=PAPER, markeredgewidth=0.5, **look)
            _dress(panel, short(part.variant), member, f"gain, {part.scope} tasks")
            hover.append(_dots(panel, found))
    legend(
        figure,
        dataset=[key_line(dataset, color=tone, marker="o") for dataset, tone in colour.items()],
        model=[key_line(model, marker=sign) for model, sign in marker.items()],
    )
    numbers = tuple(_numbers(findings, member, part.variant, part.scope) for member in shown for part in parts)
    caption = "One point for each base model and dataset, as the base model sees the data."
    options = 'hue="dataset", style="model", row="variant", col="property", facet_kws={"sharex": "col"}'
    code = points_code(name, "value", "gain", options)
    return Plot(name, title, caption, figure, _table(points), numbers, code, tuple(hover))


def gain_against_similarity(findings: Findings) -> Plot | Absent:
    """Similarity of dataset and task against gain: a point for each model, dataset and task."""
    name, title = "gain_against_similarity", "Similarity and gain"
    similarity = task_similarities(findings.sweep["data_properties"])
    cells = [
        cell for cell in gain_cells(findings.study["gains"]) if (cell.model, cell.dataset, cell.task) in similarity
    ]
    if not cells:
        return Absent(name, title, "no similarity of a trained dataset and a measured task is known")
    variants = sorted({cell.variant for cell in cells})
    figure, axes = panels(1, len(variants), 3.7, 3.1, sharey=True, sharex=True)
    many = len(cells) > MOST_DRAWN
    points = [
        {**vars(cell), "property": "similarity", "value": similarity[cell.model, cell.dataset, cell.task]}
        for cell in cells
    ]
    look = {"matching tasks": (True, GAIN), "other tasks": (False, NEUTRAL)}
    hover: list[Dots] = []
    for panel, variant in zip(axes[0], variants, strict=True):
        for matching, colour in look.values():
            ours = [point for point in points if point["variant"] == variant and point["matching"] == matching]
            x, y = [point["value"] for point in ours], [point["gain"] for point in ours]
            panel.scatter(x, y, color=colour, s=22, alpha=0.8, edgecolor=PAPER, linewidth=0.4, rasterized=many)
        hover.append(_dots(panel, [point for point in points if point["variant"] == variant]))
        _dress(panel, short(variant), "similarity", "gain")
    axes[0, 0].set_ylabel("gain over the base model")
    legend(figure, cells=[key_line(label, color=colour, marker="o") for label, (_, colour) in look.items()])
    numbers = tuple(_numbers(findings, "similarity", variant, "cells") for variant in variants)
    caption = "Cosine similarity of the texts of dataset and task in the base model's layers."
    code = points_code(name, "value", "gain", 'hue="matching", col="variant"')
    return Plot(name, title, caption, figure, _table(points), numbers, code, tuple(hover))


def main_parts(findings: Findings) -> list[Slice]:
    """For each variant the matching tasks where at least half of its datasets have one, and all tasks elsewhere."""
    parts = {(part.variant, part.scope): part for part in slices(gain_cells(findings.study["gains"]))}
    chosen = []
    for variant in sorted({variant for variant, scope in parts if scope == "all"}):
        every, matching = parts[variant, "all"], parts.get((variant, "matching"))
        datasets = [{cell.dataset for cell in part.cells} for part in (every, matching) if part is not None]
        chosen.append(matching if matching is not None and 2 * len(datasets[1]) >= len(datasets[0]) else every)
    return chosen


def _points(part: Slice, member: str, values: dict[tuple[str, str], float]) -> list[dict[str, Any]]:
    place = {"variant": part.variant, "scope": part.scope, "property": member}
    return [
        {**place, "model": pair[0], "dataset": pair[1], "value": values[pair], "gain": gain}
        for pair, gain in part.gains().items()
        if pair in values
    ]


def _dots(axes: Axes, points: Sequence[dict[str, Any]]) -> Dots:
    x, y = [point["value"] for point in points], [point["gain"] for point in points]
    return Dots(axes, x, y, [_said(point) for point in points])


def _said(point: dict[str, Any]) -> str:
    subject = [point["model"], point["dataset"], *([point["task"]] if "task" in point else [])]
    return (
        f"{', '.join(subject)}\n{point['property'].replace('_', ' ')} {point['value']:.4g}, gain {point['gain']:+.3f}"
    )


def _table(points: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(points))


def _dress(axes: Axes, title: str, property_name: str, gain: str) -> None:
    axes.axhline(0, color=NEUTRAL, linewidth=1)
    axes.set(title=title, xlabel=property_name.replace("_", " "), ylabel=gain)
    if property_name.endswith("perplexity"):
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis)
    axes.label_outer()


def _numbers(findings: Findings, predictor: str, variant: str, scope: str) -> str:
    """One line: the coefficients with their tests, or why there is none."""
    rows = select(findings.study["correlations"], predictor=predictor, variant=variant, scope=scope).to_pylist()
    head = f"{predictor.replace('_', ' ').capitalize()}, {variant}:"
    if not rows:
        return f"{head} no coefficient."
    return f"{head} {coefficients(rows[0])}"
