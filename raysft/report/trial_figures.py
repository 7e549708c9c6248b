"""Figures of all fine-tunings together: their correlations, and how many dimensions their gains have."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from raysft.report.findings import Findings
from raysft.report.hover import Correlations, dots_of
from raysft.report.plot import (
    NEUTRAL,
    Absent,
    Plot,
    dashes,
    dataset_colours,
    heat,
    key_line,
    legend,
    model_colours,
    panels,
)
from raysft.report.redraw import lines_code, tree_code
from raysft.report.similarity_figures import draw_tree
from raysft.study.association import FEWEST
from raysft.study.gains import final_gains
from raysft.study.matrix import Matrix, pivot
from raysft.study.similarity import cluster

_MOST_TRIALS = 2000  # of which the correlations are 32 MB
_MOST_NAMED = 24
_VECTOR = ("model", "dataset", "variant", "seed")


def trial_correlations(findings: Findings) -> Plot | Absent:
    """Correlations of the gain vectors of every two fine-tunings, with their dendrogram, models and datasets."""
    name, title = "trial_correlations", "Fine-tunings that did alike"
    final = final_gains(findings.study["gains"])
    vectors = pivot(final, _VECTOR, "task", "scaled_gain")
    if len(vectors.rows) > _MOST_TRIALS:
        return Absent(
            name, title, f"there are {len(vectors.rows):,} fine-tunings, and at most {_MOST_TRIALS:,} are drawn"
        )
    correlations = _correlations(vectors)
    clustering = cluster(correlations)
    if len(clustering.names) < FEWEST:
        return Absent(name, title, "fewer than three fine-tunings have gains that vary over three tasks or more")
    kept = [correlations.rows.index(found) for found in clustering.names]
    about = dict(zip(vectors.rows, _subjects(final, vectors.rows), strict=True))
    figure = Figure(figsize=(7.4, 7.0), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=[1, 6], width_ratios=[0.25, 0.25, 6, 0.18])
    tree, panel, bar = (figure.add_subplot(grid[at]) for at in ((0, 2), (1, 2), (1, 3)))
    order = [kept[leaf] for leaf in draw_tree(tree, clustering.merges, len(kept))]
    names = [correlations.rows[at] for at in order]
    values = correlations.values[np.ix_(order, order)]
    shown = names if len(names) <= _MOST_NAMED else []
    heat(panel, values, shown, shown, vmin=-1, vmax=1, cbar_ax=bar, cbar_kws={"label": "Pearson's r"}, linewidths=0)
    panel.tick_params(labelleft=False, labelsize=7)
    colours = {"model": model_colours(findings.names("model")), "dataset": dataset_colours(findings.names("dataset"))}
    for column, (axis, tones) in enumerate(colours.items()):
        _strip(figure.add_subplot(grid[1, column]), axis, [tones[about[trial][column]] for trial in names])
    keys = {
        axis: [key_line(label, color=tone, marker="s", markersize=8) for label, tone in tones.items()]
        for axis, tones in colours.items()
    }
    legend(figure, **keys)
    caption = (
        "Pearson's r of two fine-tunings' gains over the tasks that both were measured on, gains as a share of each "
        "task's scale; joined by average linkage."
    )
    if left := len(vectors.rows) - len(names):
        caption += (
            f" Left out are {left:,} of {len(vectors.rows):,} fine-tunings that gained the same on every task, or "
            "share fewer than three with another."
        )
    hover = (Correlations(panel, names, values),)
    code = tree_code(name, 'table.set_index("fine_tuning").T.corr(min_periods=3)')
    data = _data(vectors, [vectors.rows.index(trial) for trial in names])
    return Plot(name, title, caption, figure, data, (), code, hover)


def _strip(axes: Axes, title: str, colours: list[Any]) -> None:
    """A column of colours, one for each row of the heat map beside it; neighbours of one colour are one shape."""
    start = 0
    for colour, run in groupby(colours):
        length = len(list(run))
        axes.add_patch(Rectangle((0, start), 1, length, facecolor=colour, linewidth=0))
        start += length
    axes.set(xlim=(0, 1), ylim=(start, 0), xticks=[], yticks=[])
    axes.set_title(title, fontsize=7, fontweight="normal", rotation=90, loc="center")
    axes.spines[:].set_visible(False)


def _subjects(final: pa.Table, rows: tuple[str, ...]) -> list[tuple[str, str]]:
    """Model and dataset of each row; names may hold the mark that joins them, so they are looked up."""
    columns = [final[name].to_pylist() for name in _VECTOR]
    found = {" / ".join(map(str, key)): (key[0], key[1]) for key in zip(*columns, strict=True)}
    return [found[row] for row in rows]


def _data(vectors: Matrix, order: list[int]) -> pa.Table:
    columns = {task: pa.array(vectors.values[order, at], from_pandas=True) for at, task in enumerate(vectors.columns)}
    return pa.table({"fine_tuning": [vectors.rows[at] for at in order], **columns})


def _correlations(vectors: Matrix) -> Matrix:
    """r of every two rows over the columns that both have; NaN below three of them and where one does not vary.

    The sums of all pairs at once: a thousand fine-tunings are half a million pairs.
    """
    known = np.isfinite(vectors.values)
    x = np.where(known, vectors.values, 0.0)
    k = known.astype(np.float64)
    n = k @ k.T
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, square = (x @ k.T) / n, ((x**2) @ k.T) / n
        spread = square - mean**2
        covariance = (x @ x.T) / n - mean * mean.T
        r = covariance / np.sqrt(spread * spread.T)
    constant = spread <= 1e-10 * np.maximum(square, 1e-300)
    r = np.where((n >= FEWEST) & ~constant & ~constant.T, np.clip(r, -1, 1), np.nan)
    return Matrix(vectors.rows, vectors.rows, r)


def components(findings: Findings) -> Plot | Absent:
    """Cumulative variance of the principal components of the gains, a line for each scaling of the tasks."""
    name, title = "components", "How many dimensions the gains have"
    table = findings.study["pca"]
    if not table.num_rows:
        return Absent(name, title, "fewer than two fine-tunings were measured on every task")
    words = {"raw": "on each task's own scale", "minmax": "each task from -1 to 1", "zscore": "each task of variance 1"}
    scalings = sorted(set(table["scaling"].to_pylist()))
    figure, axes = panels(1, 1, 4.8, 3.1)
    panel, dots = axes[0, 0], []
    panel.axhline(0.9, color=NEUTRAL, linewidth=1, linestyle=":")
    colour, style = model_colours(scalings), dashes(scalings)
    numbers = []
    for scaling in scalings:
        rows = [row for row in table.to_pylist() if row["scaling"] == scaling]
        x, y = [row["component"] for row in rows], [row["cumulative"] for row in rows]
        panel.plot(x, y, color=colour[scaling], linestyle=style[scaling], marker="o", markersize=4)
        dots += [(float(a), b, f"{words.get(scaling, scaling)}: {b:.1%} in {a}") for a, b in zip(x, y, strict=True)]
        needed = next((a for a, b in zip(x, y, strict=True) if b >= 0.9), None)
        numbers.append(
            f"Gains {words.get(scaling, scaling)}: {needed} of {len(x)} components hold 90% of the variance."
        )
    panel.set(xlabel="principal components", ylabel="share of the variance", ylim=(0, 1.03))
    panel.xaxis.get_major_locator().set_params(integer=True)
    keys = [key_line(words.get(s, s), color=colour[s], linestyle=style[s]) for s in scalings]
    legend(figure, gains=keys)
    caption = "Of the matrix of fine-tunings x tasks; fine-tunings that lack a task are left out. Dotted: 90%."
    code = lines_code(name, "component", "cumulative", 'hue="scaling"')
    hover = (dots_of(panel, dots),)
    return Plot(name, title, caption, figure, table, tuple(numbers), code, hover)
