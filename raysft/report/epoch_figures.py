"""Figures of gains over epochs: matching and other tasks, and few rows against many."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from raysft.report.findings import Findings
from raysft.report.hover import Dots, dots_of
from raysft.report.model_gain_figures import SCALED
from raysft.report.plot import (
    NEUTRAL,
    Absent,
    Plot,
    dashes,
    dataset_colours,
    key_line,
    legend,
    model_colours,
    panels,
    short,
)
from raysft.report.redraw import lines_code
from raysft.study.tables import aggregate

Row = dict[str, Any]
_MOST_COLUMNS = 4


def gain_by_epoch(findings: Findings) -> Plot | Absent:
    """Mean gain on matching and on other tasks after every measured epoch, one line for each dataset."""
    name, title = "gain_by_epoch", "Gain, epoch by epoch"
    gains = _followed(findings.study["gains"].filter(findings.study["gains"]["primary"]))
    keys = ["variant", "dataset", "matching", "epoch"]
    shown = aggregate(gains, keys, ("scaled_gain", "mean"), ("gain", "count"))
    if not shown.num_rows:
        return Absent(name, title, "no checkpoint was measured")
    shown = _with_two_epochs(shown)
    if not shown.num_rows:
        return Absent(name, title, "checkpoints of one epoch only were measured")
    variants, colour = sorted(set(shown["variant"].to_pylist())), dataset_colours(findings.names("dataset"))
    rows = -(-len(variants) // _MOST_COLUMNS)
    figure, axes = panels(rows, -(-len(variants) // rows), 3.7, 3.2, sharey=True)
    for panel in axes.ravel()[len(variants) :]:
        panel.set_axis_off()
    style, hover = dashes(["matching tasks", "other tasks"]), []
    for panel, variant in zip(axes.ravel(), variants, strict=False):
        hover.append(_epoch_lines(panel, [row for row in shown.to_pylist() if row["variant"] == variant], colour))
        panel.set(title=short(variant), xlabel="epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in axes[:, 0]:
        panel.set_ylabel(f"mean {SCALED}")
    drawn = set(shown["dataset"].to_pylist())
    legend(
        figure,
        dataset=[key_line(dataset, color=tone, linestyle="-") for dataset, tone in colour.items() if dataset in drawn],
        gain=[key_line(label, linestyle=line) for label, line in style.items()],
    )
    caption = (
        "Mean over models, seeds and tasks of the fine-tunings that were measured at the most epochs, so that no line "
        "changes its models on the way. Solid: tasks that test what the dataset teaches; dashed: all others."
    )
    code = lines_code(name, "epoch", "scaled_gain_mean", 'hue="dataset", style="matching", col="variant"')
    return Plot(name, title, caption, figure, shown, (), code, tuple(hover))


def _followed(gains: pa.Table) -> pa.Table:
    """Gains of the trials that were measured at as many epochs as any of their variant and dataset."""
    counted = aggregate(gains, ["variant", "dataset", "trial"], ("epoch", "count_distinct")).to_pylist()
    most: dict[tuple[str, str], int] = {}
    for row in counted:
        pair = (row["variant"], row["dataset"])
        most[pair] = max(most.get(pair, 0), row["epoch_count_distinct"])
    kept = [row["trial"] for row in counted if row["epoch_count_distinct"] == most[row["variant"], row["dataset"]]]
    return gains.filter(pc.is_in(gains["trial"], pa.array(kept, pa.string())))


def _with_two_epochs(shown: pa.Table) -> pa.Table:
    """The lines of more than one epoch: a single point shows no course."""
    lines = list(zip(shown["variant"].to_pylist(), shown["dataset"].to_pylist(), strict=True))
    epochs: dict[tuple[str, str], set[int]] = defaultdict(set)
    for line, epoch in zip(lines, shown["epoch"].to_pylist(), strict=True):
        epochs[line].add(epoch)
    return shown.filter(pa.array([len(epochs[line]) > 1 for line in lines], pa.bool_()))


def _epoch_lines(axes: Axes, rows: list[Row], colour: dict[str, Any]) -> Dots:
    lines: dict[tuple[str, bool], list[tuple[int, float]]] = {}
    for row in rows:
        lines.setdefault((row["dataset"], row["matching"]), []).append((row["epoch"], row["scaled_gain_mean"]))
    axes.axhline(0, color=NEUTRAL, linewidth=1)
    dots: list[tuple[float, float, str]] = []
    for (dataset, matching), points in lines.items():
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour[dataset], linestyle="-" if matching else "--", marker="o", markersize=3.5)
        kind = "matching" if matching else "other"
        dots += [(a, b, f"{dataset}, {kind} tasks, epoch {a}: {b + 0.0:+.3f}") for a, b in points]
    return dots_of(axes, dots)


def epochs_and_sizes(findings: Findings) -> Plot | Absent:
    """Gain on each task over epochs, trained on few rows and on many: one panel a task, one line a model and size."""
    name, title = "epochs_and_sizes", "Few rows against many, epoch by epoch"
    table = findings.study["epoch_gains"]
    rows = _comparable(table.to_pylist())
    if not rows:
        reason = "no model has gains at two epochs or more for two sizes of one method and schedule"
        return Absent(name, title, reason)
    tasks = sorted({row["task"] for row in rows})
    models = sorted({row["model"] for row in rows})
    down = -(-len(tasks) // _MOST_COLUMNS)
    figure, axes = panels(down, -(-len(tasks) // down), 2.9, 2.5)
    for panel in axes.ravel()[len(tasks) :]:
        panel.set_axis_off()
    colour, style = model_colours(models), dashes(sorted({_setting(row) for row in rows}))
    hover = []
    for panel, task in zip(axes.ravel(), tasks, strict=False):
        ours = [row for row in rows if row["task"] == task]
        hover.append(_size_lines(panel, ours, colour, style))
        panel.set(title=short(task), xlabel="epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.label_outer(remove_inner_ticks=False)
    for panel in axes[:, 0]:
        panel.set_ylabel("gain")
    legend(
        figure,
        model=[key_line(model, color=tone, linestyle="-") for model, tone in colour.items()],
        trained=[key_line(setting, linestyle=line) for setting, line in style.items()],
    )
    caption = (
        "Mean gain over the datasets that have every epoch of a curve, on each task's own scale; only models that were "
        "trained at two sizes in one way."
    )
    if not all(row["same_datasets"] for row in rows):
        caption += " Not all curves that are compared are over the same datasets: same_datasets in the CSV says which."
    data = pa.Table.from_pylist(rows, table.schema.remove_metadata())
    code = lines_code(
        name, "epoch", "gain", 'hue="model", style="size", col="task", col_wrap=4, facet_kws={"sharey": False}'
    )
    return Plot(name, title, caption, figure, data, (), code, tuple(hover))


def _setting(row: Row) -> str:
    size = "all rows" if row["size"] is None else f"{row['size']:,} rows"
    return ", ".join(str(part) for part in (size, row["method"], row["schedule"]) if part)


def _kind(row: Row) -> tuple[Any, ...]:
    """What curves must share beside the model to be compared over sizes."""
    return tuple(row[name] for name in ("model", "method", "learning_rate", "schedule", "epochs"))


def _comparable(rows: list[Row]) -> list[Row]:
    """Rows of curves with two epochs or more, of models and settings that have two such sizes or more."""
    known = [row for row in rows if row["gain"] is not None]
    epochs: dict[tuple[Any, ...], set[int]] = defaultdict(set)
    for row in known:
        epochs[(*_kind(row), row["size"])].add(row["epoch"])
    curves = {key for key, found in epochs.items() if len(found) > 1}
    sizes: dict[tuple[Any, ...], set[Any]] = defaultdict(set)
    for key in curves:
        sizes[key[:-1]].add(key[-1])
    return [row for row in known if (*_kind(row), row["size"]) in curves and len(sizes[_kind(row)]) > 1]


def _size_lines(axes: Axes, rows: list[Row], colour: dict[str, Any], style: dict[str, str]) -> Dots:
    axes.axhline(0, color=NEUTRAL, linewidth=1)
    lines: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["epoch"]):
        lines[row["model"], _setting(row)].append(row)
    dots: list[tuple[float, float, str]] = []
    for (model, setting), points in lines.items():
        x, y = [row["epoch"] for row in points], [row["gain"] for row in points]
        axes.plot(x, y, color=colour[model], linestyle=style[setting], marker="o", markersize=2.5)
        dots += [(a, b, f"{model}, {setting}, epoch {a}: {b + 0.0:+.3f}") for a, b in zip(x, y, strict=True)]
    return dots_of(axes, dots)
