"""Figures of the runs themselves: what is done, and how the loss fell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator

from raysft.report.findings import Findings
from raysft.report.hover import Cells, dots_of
from raysft.report.plot import (
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
from raysft.report.redraw import heat_code, lines_code, plain_code
from raysft.study.tables import aggregate

_STATES = ("done", "unknown", "missing", "diverged", "failed")
_STATE_COLOURS = ("#0b6e8b", "#8fb8c4", "#cfd6de", "#e0a458", "#b5471c")
_MOST_COLUMNS = 4
_MOST_SIDE_BY_SIDE = 3


def coverage(findings: Findings) -> Plot | Absent:
    """Models x datasets for each variant: the worst state of its trials, and how many are done."""
    name, title = "coverage", "What is done"
    if not findings.trials.num_rows:
        return Absent(name, title, "the tables hold no planned fine-tuning")
    shown = aggregate(findings.trials, ["variant", "model", "dataset", "state"], ("trial", "count"))
    rows, models, datasets = shown.to_pylist(), findings.names("model"), findings.names("dataset")
    variants = sorted({row["variant"] for row in rows})
    down = -(-len(variants) // _MOST_SIDE_BY_SIDE)
    figure, axes = heat_panels((down, -(-len(variants) // down)), (models, datasets), cell=(0.55, 0.34), beside=0.0)
    for panel in axes.ravel()[len(variants) :]:
        panel.set_axis_off()
    hover = []
    for panel, variant in zip(axes.ravel(), variants, strict=False):
        ours = [row for row in rows if row["variant"] == variant]
        worst, counts = _states(ours, models, datasets)
        options = {"cmap": ListedColormap(_STATE_COLOURS), "vmin": -0.5, "vmax": len(_STATES) - 0.5, "cbar": False}
        heat(panel, worst, models, datasets, annot=counts, fmt="", annot_kws={"size": 8}, **options)
        panel.set_title(short(variant))
        panel.tick_params(labelbottom=True, labelsize=8)
        said = [
            [f"{done}{' done' if '/' in done else ''} ({variant})" if done else "" for done in row] for row in counts
        ]
        hover.append(Cells(panel, models, datasets, said))
    there = {row["state"] or "unknown" for row in rows}
    squares = [pair for pair in zip(_STATES, _STATE_COLOURS, strict=True) if pair[0] in there]
    legend(figure, state=[key_line(state, color=colour, marker="s", markersize=9) for state, colour in squares])
    caption = "Fine-tunings done out of those planned, over seeds; the colour is the worst state among them."
    body = """
    done = table.assign(done=(table["state"] == "done") * table["trial_count"])
    share = done.groupby(["variant", "model", "dataset"])[["done", "trial_count"]].sum()
    share = (share["done"] / share["trial_count"]).rename("done").reset_index()
    for variant, part in share.groupby("variant"):
        plt.figure()
        matrix = part.pivot(index="model", columns="dataset", values="done")
        sns.heatmap(matrix, vmin=0, vmax=1, cmap="crest", annot=True).set_title(variant)
    """
    return Plot(name, title, caption, figure, shown, (), plain_code(name, body), tuple(hover))


def scores_measured(findings: Findings) -> Plot | Absent:
    """Models x tasks: for how many of the checkpoints that have any score there is one of this task."""
    name, title = "scores_measured", "What is measured"
    scores = findings.sweep["scores"]
    known = scores.filter(pc.is_finite(pc.fill_null(scores["value"], np.nan)))
    if not known.num_rows:
        return Absent(name, title, "there are no scores")
    subject = pc.binary_join_element_wise(
        pc.fill_null(known["trial"], ""), pc.cast(known["epoch"], pa.string()), "/", null_handling="replace"
    )
    known = known.append_column("checkpoint", subject)
    shown = aggregate(known, ["model", "task"], ("checkpoint", "count_distinct"))
    of = dict(
        aggregate(known, ["model"], ("checkpoint", "count_distinct")).select([0, 1]).to_pandas().itertuples(index=False)
    )
    shown = shown.rename_columns(["model", "task", "measured"])
    shown = shown.append_column("checkpoints", pa.array([int(of[model]) for model in shown["model"].to_pylist()]))
    models, tasks = sorted(of), sorted(set(shown["task"].to_pylist()))
    values, counts = np.zeros((2, len(models), len(tasks)))
    texts = np.full(values.shape, "", dtype=object)
    for row in shown.to_pylist():
        at = models.index(row["model"]), tasks.index(row["task"])
        values[at] = row["measured"] / row["checkpoints"]
        counts[at] = row["measured"]
    for at in np.ndindex(values.shape):
        texts[at] = f"{counts[at]:.0f} of {of[models[at[0]]]} checkpoints"
    figure, axes = heat_panels((1, 1), (models, tasks), cell=(0.42, 0.34), beside=1.1)
    look = {"cmap": "Blues", "vmin": 0, "vmax": 1, "annot": counts, "fmt": ".0f", "annot_kws": {"size": 7}}
    heat(axes[0, 0], values, models, tasks, cbar_kws={"label": "share of the checkpoints"}, **look)
    caption = "Checkpoints of each model, the base among them, that have a score of the task."
    hover = (Cells(axes[0, 0], models, tasks, texts.tolist()),)
    code = heat_code(name, "model", "task", "measured", centred=False)
    return Plot(name, title, caption, figure, shown, (), code, hover)


def _states(rows: list[dict[str, Any]], models: list[str], datasets: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The index in `_STATES` of each cell's worst trial, NaN where none was planned, and its `done/planned`.

    Where no state is known the text says only how many there are.
    """
    count = np.zeros((len(_STATES), len(models), len(datasets)), dtype=int)
    for row in rows:
        # Released scores come without a state: their checkpoints are there, or were.
        at = _STATES.index(row["state"] or "unknown"), models.index(row["model"]), datasets.index(row["dataset"])
        count[at] += row["trial_count"]
    planned = count.sum(axis=0)
    last = len(_STATES) - 1
    worst = np.where(planned > 0, last - (count[::-1] > 0).argmax(axis=0), np.nan)
    places = zip(count[0].ravel(), count[_STATES.index("unknown")].ravel(), planned.ravel(), strict=True)
    labels = [f"{total}" if total == unknown else f"{done}/{total}" for done, unknown, total in places]
    labels = [label if label != "0" else "" for label in labels]
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
    hover = []
    for panel, dataset in zip(axes.ravel(), datasets, strict=False):
        dots: list[tuple[float, float, str]] = []
        for (model, variant), points in _curves(shown, dataset).items():
            panel.plot(*points, color=colour[model], linestyle=style[variant], marker="o", markersize=3)
            dots += [(a, b, f"{model}, {variant}, epoch {a}: {b:.3f}") for a, b in zip(*points, strict=True)]
        hover.append(dots_of(panel, dots))
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
    code = lines_code(name, "at_epoch", "loss_mean", 'hue="model", style="variant", col="dataset", col_wrap=4')
    return Plot(name, title, caption, figure, shown, (), code, tuple(hover))


def _curves(shown: pa.Table, dataset: str) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    curves: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    for row in shown.filter(pc.equal(shown["dataset"], dataset)).to_pylist():
        epochs, losses = curves.setdefault((row["model"], row["variant"]), ([], []))
        epochs.append(row["at_epoch"])
        losses.append(row["loss_mean"])
    return curves
