"""Figures of two studies side by side: their gains, the difference, and one against the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raysft.report.hover import Cells, Dots
from raysft.report.listing import number
from raysft.report.plot import (
    MOST_DRAWN,
    NEUTRAL,
    PAPER,
    Absent,
    Plot,
    dataset_colours,
    extent,
    heat,
    heat_panels,
    key_line,
    legend,
    markers,
    panels,
    short,
)
from raysft.report.redraw import plain_code, points_code
from raysft.study.association import associate
from raysft.study.matrix import pivot
from raysft.study.tables import reals, select

_CLEAR = 0.05
NOTHING = "no variant, dataset and task is in both under the same name"


def gains_compared(compared: pa.Table, variant: str, name: str) -> Plot:
    """Datasets x tasks of one variant: A, B, and B - A with a star where its q is below 0.05."""
    shown = select(compared, variant=variant)
    parts = {column: pivot(shown, ["dataset"], "task", column) for column in ("A", "B", "difference")}
    whole = parts["A"]
    figure, axes = heat_panels((3, 1), (whole.rows, whole.columns), cell=(0.62, 0.36), beside=1.0)
    scale = max(extent(reals(compared, column)) for column in parts)
    rows = {(row["dataset"], row["task"]): row for row in shown.to_pylist()}
    texts = [[_said(rows.get((dataset, task))) for task in whole.columns] for dataset in whole.rows]
    for panel, (column, matrix) in zip(axes[:, 0], parts.items(), strict=True):
        printed = [[_printed(rows.get((dataset, task)), column) for task in whole.columns] for dataset in whole.rows]
        options = {"annot": np.array(printed, dtype=object), "fmt": "", "annot_kws": {"size": 8}, "cbar": False}
        heat(panel, matrix.values, whole.rows, whole.columns, vmin=-scale, vmax=scale, **options)
        panel.set_title({"difference": "B - A"}.get(column, column))
        panel.tick_params(labelbottom=column == "difference")
    figure.colorbar(axes[0, 0].collections[0], ax=axes, pad=0.02, shrink=0.5, label="gain (share of the scale)")
    hover = tuple(Cells(panel, whole.rows, whole.columns, texts) for panel in axes[:, 0])
    caption = (
        f"Mean gain at the last epoch as a share of the task's scale. *: q < {_CLEAR} over all cells of this page."
    )
    body = """
    figure, axes = plt.subplots(3, 1, figsize=(9, 12), sharex=True)
    for panel, column in zip(axes, ["A", "B", "difference"]):
        matrix = table.pivot(index="dataset", columns="task", values=column)
        sns.heatmap(matrix, cmap="vlag", center=0, ax=panel).set_title(column)
    """
    return Plot(name, f"Gains of both: {variant}", caption, figure, shown, (), plain_code(name, body), hover)


def _printed(row: dict[str, Any] | None, column: str) -> str:
    if row is None or row[column] is None:
        return ""
    star = "*" if column == "difference" and row["q"] is not None and row["q"] < _CLEAR else ""
    return f"{round(row[column], 2) + 0.0:+.2f}{star}"


def _said(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    interval = "" if row["low"] is None else f" [{row['low']:+.3f}, {row['high']:+.3f}], q = {number(row['q'])}"
    return f"A {row['A']:+.3f}, B {row['B']:+.3f}\nB - A {row['difference']:+.3f}{interval}\n{row['interval']}"


def one_against_the_other(compared: pa.Table, datasets: Sequence[str]) -> Plot | Absent:
    """Every shared cell: its gain in A against its gain in B, coloured by dataset."""
    name, title = "one_against_the_other", "One against the other"
    rows = compared.to_pylist()
    if not rows:
        return Absent(name, title, NOTHING)
    variants = sorted({row["variant"] for row in rows})
    figure, axes = panels(1, 1, 4.6, 4.4)
    panel = axes[0, 0]
    panel.axhline(0, color=NEUTRAL, linewidth=1)
    panel.axvline(0, color=NEUTRAL, linewidth=1)
    panel.axline((0, 0), slope=1, color=NEUTRAL, linewidth=1, linestyle=":")
    colour, marker = dataset_colours(datasets), markers(variants)
    for dataset in datasets:
        for variant in variants:
            ours = [row for row in rows if row["dataset"] == dataset and row["variant"] == variant]
            look = {"color": colour[dataset], "marker": marker[variant], "rasterized": len(rows) > MOST_DRAWN}
            x, y = [row["A"] for row in ours], [row["B"] for row in ours]
            panel.scatter(x, y, s=26, edgecolor=PAPER, linewidth=0.4, zorder=3, **look)
    panel.set(xlabel="gain in A (share of the scale)", ylabel="gain in B (share of the scale)")
    legend(
        figure,
        dataset=[key_line(dataset, color=tone, marker="o") for dataset, tone in colour.items()],
        variant=[key_line(short(variant), marker=sign) for variant, sign in marker.items()],
    )
    texts = [f"{row['dataset']}, {row['task']}, {row['variant']}\n{_said(row)}" for row in rows]
    hover = (Dots(panel, [row["A"] for row in rows], [row["B"] for row in rows], texts),)
    found = associate(reals(compared, "A"), reals(compared, "B"))
    said = "undefined" if found.reason else f"r = {found.pearson:+.2f}, Spearman {found.spearman:+.2f}"
    numbers = (f"{said} over {found.n} cells, which share datasets and tasks; see the similarity matrices.",)
    caption = "A point for each variant, dataset and task that both have; on the dotted line both gain the same."
    code = points_code(name, "A", "B", 'hue="dataset", style="variant"')
    return Plot(name, title, caption, figure, compared, numbers, code, hover)
