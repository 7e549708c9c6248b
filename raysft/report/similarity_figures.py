"""Figures of what reacts alike: correlations of gains with their dendrogram."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram

from raysft.report.findings import Findings
from raysft.report.plot import MUTED, Absent, Plot, heat
from raysft.study.matrix import Matrix
from raysft.study.similarity import Clustering, cluster, correlation_matrix

_ENTRY = {
    "task": "over fine-tunings",
    "dataset": "over models, variants, seeds and tasks",
    "model": "over datasets, variants, seeds and tasks",
}
_MOST_PRINTED = 16
_DISTANCE = "1\N{NO-BREAK SPACE}−\N{NO-BREAK SPACE}r"


def similarity(findings: Findings, kind: str) -> Plot | Absent:
    """Correlations of the gains of every two tasks, datasets or models, joined by average linkage on 1 - r."""
    name, title = f"similarity_{kind}", f"{kind.capitalize()}s that react alike"
    table = findings.study["similarity"]
    correlations = correlation_matrix(table, kind)
    clustering = cluster(correlations)
    if len(clustering.names) < 2:
        return Absent(name, title, f"fewer than two {kind}s have gains that vary and enough entries in common")
    figure = _clustered(correlations, clustering)
    caption = f"Pearson's r of the gains {_ENTRY[kind]}, pairwise complete; joined by average linkage on {_DISTANCE}."
    if clustering.skipped:
        caption += f" Last and not joined, because their r is undefined: {', '.join(clustering.skipped)}."
    return Plot(name, title, caption, figure, table.filter(pc.equal(table["kind"], kind)))


def _clustered(correlations: Matrix, clustering: Clustering) -> Figure:
    count = len(correlations.rows)
    figure = Figure(figsize=(3.4 + 0.42 * count, 2.9 + 0.36 * count), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[0.9, 0.36 * count + 0.5], width_ratios=[1, 0.03])
    tree, panel, bar = (figure.add_subplot(grid[at]) for at in ((0, 0), (1, 0), (1, 1)))
    drawn = dendrogram(clustering.merges, no_plot=True)
    # dendrogram places leaves at 5, 15, 25, ...; the heat map's columns are one wide and may outnumber the leaves.
    for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        tree.plot(np.array(x) / 10, y, color=MUTED, linewidth=1.2)
    tree.set(xlim=(0, count), ylim=(0, max(0.1, 1.05 * clustering.merges[:, 2].max())), xticks=[])
    tree.grid(False)
    tree.spines["bottom"].set_visible(False)
    tree.set_ylabel(_DISTANCE)
    order = [correlations.rows.index(clustering.names[leaf]) for leaf in drawn["leaves"]]
    order += [correlations.rows.index(skipped) for skipped in sorted(clustering.skipped)]
    names = [correlations.rows[index] for index in order]
    values = correlations.values[np.ix_(order, order)]
    options = {"annot": count <= _MOST_PRINTED, "fmt": ".2f", "annot_kws": {"size": 8}}
    heat(panel, values, names, names, vmin=-1, vmax=1, cbar_ax=bar, cbar_kws={"label": "Pearson's r"}, **options)
    return figure
