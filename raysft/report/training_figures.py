"""Figures of the runs themselves: what is done, and how the loss fell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator

from raysft.report.findings import Findings
from raysft.report.plot import (
    GAIN,
    LOSS,
    Absent,
    Plot,
    dashes,
    heat,
    heat_panels,
    key_line,
    legend,
    model_colours,
    panels,
    short,
)
from raysft.study.tables import aggregate

_STATES = ("done", "missing", "diverged", "failed")
_STATE_COLOURS = (GAIN, "#cfd6de", "#e0a458", LOSS)
_MOST_COLUMNS = 4


def coverage(findings: Findings) -> Plot | Absent:
    """Models x datasets for each variant: the worst state of its trials, and how many are done."""
    name, title = "coverage", "What is done"
    if not findings.trials.num_rows:
        return Absent(name, title, "the tables hold no planned fine-tuning")
    shown = aggregate(findings.trials, ["variant", "model", "dataset", "state"], ("trial", "count"))
    rows, models, datasets = shown.to_pylist(), findings.names("model"), findings.names("dataset")
    variants = sorted({row["variant"] for row in rows})
    figure, axes = heat_panels((1, len(variants)), (models, datasets), cell=(0.55, 0.34), beside=0.0)
    for panel, variant in zip(axes[0], variants, strict=True):
        ours = [row for row in rows if row["variant"] == variant]
        worst, counts = _states(ours, models, datasets)
        options = {"cmap": ListedColormap(_STATE_COLOURS), "vmin": -0.5, "vmax": len(_STATES) - 0.5, "cbar": False}
        heat(panel, worst, models, datasets, annot=counts, fmt="", annot_kws={"size": 8}, **options)
        panel.set_title(short(variant))
    squares = zip(_STATES, _STATE_COLOURS, strict=True)
    legend(figure, state=[key_line(state, color=colour, marker="s", markersize=9) for state, colour in squares])
    caption = "Fine-tunings done out of those planned, over seeds; the colour is the worst state among them."
    return Plot(name, title, caption, figure, shown)


def _states(rows: list[dict[str, Any]], models: list[str], datasets: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The index in `_STATES` of each cell's worst trial, NaN where none was planned, and its `done/planned`."""
    count = np.zeros((len(_STATES), len(models), len(datasets)), dtype=int)
    for row in rows:
        at = _STATES.index(row["state"]), models.index(row["model"]), datasets.index(row["dataset"])
        count[at] += row["trial_count"]
    planned = count.sum(axis=0)
    last = len(_STATES) - 1
    worst = np.where(planned > 0, last - (count[::-1] > 0).argmax(axis=0), np.nan)
    labels = [f"{done}/{total}" if total else "" for done, total in zip(count[0].ravel(), planned.ravel(), strict=True)]
    return worst, np.array(labels, dtype=object).reshape(planned.shape)


def training_loss(findings: Findings) -> Plot | Absent:
    """Mean training loss of every epoch: one panel for each dataset, one line for each model and variant."""
    name, title = "training_loss", "Training loss"
    known = findings.training.filter(pc.is_finite(pc.fill_null(findings.training["loss"], np.nan)))
    if not known.num_rows:
        return Absent(name, title, "no fine-tuning has recorded a loss")
    shown = aggregate(known, ["dataset", "variant", "model", "at_epoch"], ("loss", "mean"), ("loss", "count"))
    datasets = sorted(set(shown["dataset"].to_pylist()))
    rows = -(-len(datasets) // _MOST_COLUMNS)
    figure, axes = panels(rows, -(-len(datasets) // rows), 2.7, 2.5, sharey=True)
    colour, style = model_colours(findings.names("model")), dashes(findings.variants)
    for panel in axes.ravel()[len(datasets) :]:
        panel.set_axis_off()
    for panel, dataset in zip(axes.ravel(), datasets, strict=False):
        for (model, variant), points in _curves(shown, dataset).items():
            panel.plot(*points, color=colour[model], linestyle=style[variant], marker="o", markersize=3)
        panel.set(title=short(dataset), xlabel="epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in axes[:, 0]:
        panel.set_ylabel("loss (nats per token)")
    legend(
        figure,
        model=[key_line(model, color=tone, linestyle="-") for model, tone in colour.items()],
        variant=[key_line(variant, linestyle=line) for variant, line in style.items()],
    )
    caption = "Mean loss over the supervised tokens of each epoch, mean over seeds."
    return Plot(name, title, caption, figure, shown)


def _curves(shown: pa.Table, dataset: str) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    curves: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    for row in shown.filter(pc.equal(shown["dataset"], dataset)).to_pylist():
        epochs, losses = curves.setdefault((row["model"], row["variant"]), ([], []))
        epochs.append(row["at_epoch"])
        losses.append(row["loss_mean"])
    return curves
