"""Figures of what reacts alike: correlations of gains with their dendrogram, and comparisons of such matrices."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram

from raysft.report.findings import Findings
from raysft.report.hover import Cells, Dots, signed
from raysft.report.listing import number
from raysft.report.plot import INK, MUTED, NEUTRAL, PAPER, Absent, Plot, heat, panels, short
from raysft.report.redraw import plain_code, tree_code
from raysft.study.matrix import Matrix
from raysft.study.similarity import Clustering, cluster, correlation_matrix
from raysft.study.tables import Reals

# kind -> title, what one entry of the correlated vectors is
KINDS = {
    "task": ("Tasks that react alike", "gains over fine-tunings"),
    "dataset": ("Datasets that react alike", "gains over models, variants, seeds and tasks"),
    "model": ("Models that react alike", "gains over datasets, variants, seeds and tasks"),
    "model_by_task": ("Models that agree on which tasks go together", "similarities of tasks within each model"),
    "model_by_dataset": ("Models that agree on which datasets go together", "similarities of datasets in each model"),
}
_MOST_PRINTED = 16
_DISTANCE = "1\N{NO-BREAK SPACE}−\N{NO-BREAK SPACE}r"
_CLEAR = 0.05


def similarity(findings: Findings, kind: str) -> Plot | Absent:
    """Correlations of every two tasks, datasets or models, joined by average linkage on 1 - r."""
    title, entries = KINDS[kind]
    name = f"similarity_{kind}"
    table = findings.study["similarity"]
    correlations = correlation_matrix(table, kind)
    clustering = cluster(correlations)
    if len(clustering.names) < 2:
        what = kind.partition("_")[0]
        return Absent(name, title, f"fewer than two {what}s have {entries.split()[0]} that vary, with enough in common")
    shown = table.filter(pc.equal(table["kind"], kind))
    figure, panel, order = clustered(correlations, clustering)
    caption = f"Pearson's r of the {entries}, pairwise complete; joined by average linkage on {_DISTANCE}."
    if kind.startswith("model_by_"):
        caption += " Lower triangles only; their entries share objects, so a p of such an r is Mantel's."
    if clustering.skipped:
        caption += f" Last and not joined, because their r is undefined: {', '.join(clustering.skipped)}."
    names = [correlations.rows[at] for at in order]
    counts = {(row["a"], row["b"]): row["n"] for row in shown.to_pylist()}
    texts = [
        [f"r = {text}, n = {counts.get((a, b))}" if text else "" for b, text in zip(names, row, strict=True)]
        for a, row in zip(names, signed(correlations.values[np.ix_(order, order)]), strict=True)
    ]
    code = tree_code(name, 'table.pivot(index="a", columns="b", values="r")')
    return Plot(name, title, caption, figure, shown, (), code, (Cells(panel, names, names, texts),))


def clustered(correlations: Matrix, clustering: Clustering) -> tuple[Figure, Axes, list[int]]:
    """The figure, the heat map's axes, and the order of rows and columns in it."""
    count = len(correlations.rows)
    figure = Figure(figsize=(3.4 + 0.42 * count, 2.9 + 0.36 * count), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[0.9, 0.36 * count + 0.5], width_ratios=[1, 0.03])
    tree, panel, bar = (figure.add_subplot(grid[at]) for at in ((0, 0), (1, 0), (1, 1)))
    leaves = draw_tree(tree, clustering.merges, count)
    order = [correlations.rows.index(clustering.names[leaf]) for leaf in leaves]
    order += [correlations.rows.index(skipped) for skipped in sorted(clustering.skipped)]
    names = [correlations.rows[index] for index in order]
    values = correlations.values[np.ix_(order, order)]
    options = {"annot": count <= _MOST_PRINTED, "fmt": ".2f", "annot_kws": {"size": 8}}
    heat(panel, values, names, names, vmin=-1, vmax=1, cbar_ax=bar, cbar_kws={"label": "Pearson's r"}, **options)
    return figure, panel, order


def draw_tree(axes: Axes, merges: Reals, count: int) -> list[int]:
    """Draw a dendrogram over `count` columns of a heat map and return its leaves from left to right."""
    drawn = dendrogram(merges, no_plot=True)
    # dendrogram places leaves at 5, 15, 25, ...; the heat map's columns are one wide and may outnumber the leaves.
    for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        axes.plot(np.array(x) / 10, y, color=MUTED, linewidth=min(1.2, 60 / count))
    axes.set(xlim=(0, count), ylim=(0, max(0.1, 1.05 * merges[:, 2].max())), xticks=[])
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_ylabel(_DISTANCE)
    return [int(leaf) for leaf in drawn["leaves"]]


def matrices_compared(findings: Findings) -> Plot | Absent:
    """Correlations of the lower triangles of similarity matrices, with Mantel's test: a row for each comparison."""
    name, title = "matrices_compared", "Similarity matrices that agree"
    table = findings.study["matrix_comparisons"]
    rows = [row for row in table.to_pylist() if row["r"] is not None]
    if not rows:
        reasons = sorted(set(table["reason"].to_pylist()) - {None})
        return Absent(name, title, f"no two matrices can be compared ({reasons[0] if reasons else 'there are none'})")
    rows.sort(key=lambda row: (row["kind"], row["r"]), reverse=True)
    labels = [f"{short(row['a'])}  |  {short(row['b'])}" for row in rows]
    figure, axes = panels(1, 1, 6.6, 1.0 + 0.28 * len(rows))
    panel = axes[0, 0]
    panel.axvline(0, color=NEUTRAL, linewidth=1)
    for y, row in enumerate(rows):
        clear = row["q"] is not None and row["q"] < _CLEAR
        panel.plot([0, row["r"]], [y, y], color=NEUTRAL, linewidth=1.2)
        panel.plot(row["r"], y, marker="o", markersize=6, color=INK, markerfacecolor=INK if clear else PAPER)
    panel.set_yticks(range(len(rows)), labels)
    panel.set(
        xlabel="r of the lower triangles",
        xlim=(-1.05, 1.05),
        ylim=(-0.6, len(rows) - 0.4),
        xticks=(-1, -0.5, 0, 0.5, 1),
    )
    texts = [
        f"{row['a']} and {row['b']}\nr = {row['r']:+.3f}, Spearman {_or_none(row['spearman'])}, n = {row['n']}, "
        f"p = {_or_none(row['p'])}, q = {_or_none(row['q'])}"
        for row in rows
    ]
    hover = (Dots(panel, [row["r"] for row in rows], list(range(len(rows))), texts),)
    caption = (
        f"Filled: Mantel's test finds agreement (or its opposite) at q < {_CLEAR} over all comparisons here. Models by "
        "task: which tasks go together in each model; by dataset: which datasets do."
    )
    body = """
    labels = table["a"] + " | " + table["b"]
    plt.barh(labels, table["r"], color=["C0" if q < 0.05 else "lightgrey" for q in table["q"]])
    plt.xlabel("r of the lower triangles")
    """
    return Plot(name, title, caption, figure, table, (), plain_code(name, body), hover)


def _or_none(value: float | None) -> str:
    return "unknown" if value is None else number(value)
