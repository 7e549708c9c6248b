"""The map of models: every base model and checkpoint, placed by how it rates the same texts."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from raysft.report.findings import Findings
from raysft.report.plot import (
    INK,
    NEUTRAL,
    Absent,
    Plot,
    dataset_colours,
    key_line,
    legend,
    markers,
    model_colours,
    panels,
    short,
)

Row = dict[str, Any]


def model_map(findings: Findings) -> Plot | Absent:
    """The map twice, coloured by base model and by dataset; lines lead from each base through a trial's epochs."""
    name, title = "model_map", "Map of models"
    table = findings.study["map"]
    rows = table.to_pylist()
    if len(rows) < 2:
        return Absent(name, title, "log-likelihoods of fewer than two models are known")
    figure, axes = panels(1, 2, 4.2, 4.2, sharex=True, sharey=True)
    sign = markers(findings.variants)
    colours = {"model": model_colours(findings.names("model")), "dataset": dataset_colours(findings.names("dataset"))}
    for panel, (axis, colour) in zip(axes[0], colours.items(), strict=True):
        _trails(panel, rows)
        _checkpoints(panel, rows, axis, colour, sign)
        _bases(panel, rows)
        panel.set_title(f"by {axis}")
        panel.set(xticks=[], yticks=[], xlabel="", ylabel="")
        panel.spines[:].set_visible(True)
    keys = {
        axis: [key_line(label, color=tone, marker="o") for label, tone in colour.items()]
        for axis, colour in colours.items()
    }
    shapes = [key_line(variant, marker=shape) for variant, shape in sign.items()]
    legend(figure, **keys, variant=[*shapes, key_line("base model", color=INK, marker="*", markersize=11)])
    return Plot(name, title, _caption(rows), figure, table)


def _trails(axes: Axes, rows: list[Row]) -> None:
    base = {row["model"]: row for row in rows if row["trial"] is None}
    trails: dict[str, list[Row]] = defaultdict(list)
    for row in sorted((row for row in rows if row["trial"] is not None), key=lambda row: row["epoch"]):
        if not trails[row["trial"]] and row["model"] in base:
            trails[row["trial"]].append(base[row["model"]])
        trails[row["trial"]].append(row)
    for trail in trails.values():
        axes.plot([row["x"] for row in trail], [row["y"] for row in trail], color=NEUTRAL, linewidth=0.6, alpha=0.7)


def _checkpoints(axes: Axes, rows: list[Row], axis: str, colour: dict[str, Any], sign: dict[str, str]) -> None:
    alike: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["trial"] is not None:
            alike[row[axis], row["variant"]].append(row)
    for (name, variant), group in alike.items():
        x, y, sizes = zip(*((row["x"], row["y"], 10 + 8 * row["epoch"] ** 0.5) for row in group), strict=True)
        look = {"color": colour[name], "marker": sign[variant]}
        axes.scatter(x, y, s=sizes, edgecolor="white", linewidth=0.4, zorder=3, **look)


def _bases(axes: Axes, rows: list[Row]) -> None:
    halo = withStroke(linewidth=2.5, foreground="white")
    for row in rows:
        if row["trial"] is None:
            axes.scatter(row["x"], row["y"], marker="*", s=150, color=INK, edgecolor="white", linewidth=0.6, zorder=4)
            place: dict[str, Any] = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center"}
            axes.annotate(short(row["model"]), (row["x"], row["y"]), fontsize=8, zorder=5, path_effects=[halo], **place)


def _caption(rows: list[Row]) -> str:
    how = rows[0]["projection"]
    layout = f"t-SNE, perplexity {rows[0]['perplexity']:.3g}; its distances are local only" if how == "tsne" else "PCA"
    return (
        f"Log-likelihoods of {rows[0]['texts']} texts, clipped and centred (Oyama et al. 2025), laid out by {layout}."
        " Larger points are later epochs. Squared distances, about twice the KL divergence, are in map_distances."
    )
