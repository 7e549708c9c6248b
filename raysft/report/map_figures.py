"""The map of models: every base model and checkpoint, placed by how it rates the same texts, and ways through it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from raysft.report.findings import Findings
from raysft.report.hover import Dots, dots_of
from raysft.report.plot import (
    INK,
    MOST_DRAWN,
    NEUTRAL,
    PAPER,
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
from raysft.report.redraw import points_code
from raysft.report.weight_figures import wrapped
from raysft.study.tables import aggregate

Row = dict[str, Any]
_MOST = MOST_DRAWN // 4  # points of one panel: there are up to five of the same
_LAYOUTS = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
_TICKLESS: dict[str, Any] = {"xticks": [], "yticks": [], "xlabel": "", "ylabel": ""}


def model_map(findings: Findings) -> Plot | Absent:
    """The map coloured by base model, dataset, method, size and epoch; lines lead from each base through the epochs."""
    name, title = "model_map", "Map of models"
    table = findings.study["map"]
    rows = table.to_pylist()
    if len(rows) < 2:
        return Absent(name, title, "log-likelihoods of fewer than two models are known")
    tuned = [row for row in rows if row["trial"] is not None]
    colours = _colours(findings, tuned)
    axes_of = [axis for axis in colours if axis in ("model", "dataset") or len(colours[axis]) > 1]
    epochs = sorted({row["epoch"] for row in tuned})
    count = len(axes_of) + (len(epochs) > 1)
    down = 1 if count <= 2 else 2
    figure, axes = panels(down, -(-count // down), 3.9, 3.9, sharex=True, sharey=True)
    hover = []
    for panel, axis in zip(axes.ravel(), [*axes_of, "epoch"], strict=False):
        if axis == "epoch" and len(epochs) < 2:
            break
        _trails(panel, rows)
        if axis == "epoch":
            _by_epoch(figure, panel, tuned)
        else:
            _points(panel, tuned, axis, colours[axis], markers(findings.variants))
        _bases(panel, rows)
        panel.set(title=f"by {axis}", **_TICKLESS)
        panel.spines[:].set_visible(True)
        hover.append(_dots(panel, rows))
    for panel in axes.ravel()[count:]:
        panel.set_axis_off()
    keys = {
        axis: [key_line(str(label), color=tone, marker="o") for label, tone in colours[axis].items()]
        for axis in axes_of
    }
    shapes = [key_line(variant, marker=shape) for variant, shape in markers(findings.variants).items()]
    legend(figure, **keys, variant=[*shapes, key_line("base model", color=INK, marker="*", markersize=11)])
    code = points_code(name, "x", "y", 'hue="model", style="dataset", size="epoch"')
    return Plot(name, title, _caption(rows), figure, table, (), code, tuple(hover))


def _colours(findings: Findings, tuned: list[Row]) -> dict[str, dict[Any, Any]]:
    """Axis -> its values with a colour each."""
    sizes = sorted({row["size"] for row in tuned}, key=lambda size: (size is None, size or 0))
    blues = mpl.colormaps["viridis"]
    tones = {
        "all rows" if size is None else f"{size:,} rows": blues(0.85 * at / max(len(sizes) - 1, 1))
        for at, size in enumerate(sizes)
    }
    return {
        "model": model_colours(findings.names("model")),
        "dataset": dataset_colours(findings.names("dataset")),
        "method": model_colours(sorted({row["method"] or "" for row in tuned})),
        "size": tones,
    }


def _value(row: Row, axis: str) -> Any:
    if axis == "size":
        return "all rows" if row["size"] is None else f"{row['size']:,} rows"
    return row[axis] or ""


def _trails(axes: Axes, rows: list[Row]) -> None:
    base = {row["model"]: row for row in rows if row["trial"] is None}
    trails: dict[str, list[Row]] = defaultdict(list)
    for row in sorted((row for row in rows if row["trial"] is not None), key=lambda row: row["epoch"]):
        if not trails[row["trial"]] and row["model"] in base:
            trails[row["trial"]].append(base[row["model"]])
        trails[row["trial"]].append(row)
    lines = [[(row["x"], row["y"]) for row in trail] for trail in trails.values() if len(trail) > 1]
    many = len(rows) > _MOST
    axes.add_collection(LineCollection(lines, colors=NEUTRAL, linewidths=0.6, alpha=0.6, rasterized=many))


def _points(axes: Axes, rows: list[Row], axis: str, colour: dict[Any, Any], sign: dict[str, str]) -> None:
    alike: dict[tuple[Any, str], list[Row]] = defaultdict(list)
    for row in rows:
        alike[_value(row, axis), row["variant"]].append(row)
    for (name, variant), group in alike.items():
        x, y, sizes = zip(*((row["x"], row["y"], 10 + 8 * row["epoch"] ** 0.5) for row in group), strict=True)
        look = {"color": colour[name], "marker": sign[variant], "rasterized": len(rows) > _MOST}
        axes.scatter(x, y, s=sizes, edgecolor=PAPER, linewidth=0.4, zorder=3, **look)


def _by_epoch(figure: Figure, axes: Axes, rows: list[Row]) -> None:
    last = max(row["epoch"] for row in rows)
    x, y, epoch = zip(*((row["x"], row["y"], row["epoch"]) for row in rows), strict=True)
    look: dict[str, Any] = {"cmap": "viridis", "norm": Normalize(1, last), "rasterized": len(rows) > _MOST}
    drawn = axes.scatter(x, y, c=epoch, s=26, edgecolor=PAPER, linewidth=0.4, zorder=3, **look)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.7, pad=0.02, label="epoch")
    bar.locator = mpl.ticker.MaxNLocator(integer=True)
    bar.update_ticks()


def _bases(axes: Axes, rows: list[Row], named: bool = True) -> None:
    halo = withStroke(linewidth=2.5, foreground=PAPER)
    for row in rows:
        if row["trial"] is None:
            axes.scatter(row["x"], row["y"], marker="*", s=150, color=INK, edgecolor=PAPER, linewidth=0.6, zorder=4)
            if named:
                place: dict[str, Any] = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center"}
                label, at = short(row["model"]), (row["x"], row["y"])
                axes.annotate(label, at, fontsize=8, zorder=5, path_effects=[halo], **place)


def _dots(axes: Axes, rows: Sequence[Row]) -> Dots:
    return Dots(axes, [row["x"] for row in rows], [row["y"] for row in rows], [_said(row) for row in rows])


def _said(row: Row) -> str:
    if row["trial"] is None:
        return f"{row['model']}\nbase model"
    subject = f"{row['model']}, {row['dataset']}\n{row['variant']}, seed {row['seed']}, epoch {row['epoch']}"
    far = row.get("kl_from_base")
    return subject if far is None else f"{subject}\nKL from its base {far:.3g} bits per byte"


def _caption(rows: list[Row]) -> str:
    how = rows[0]["projection"]
    layout = f"t-SNE, perplexity {rows[0]['perplexity']:.3g}; its distances are local only" if how == "tsne" else "PCA"
    pixels = f" More than {_MOST:,} points are drawn as pixels." if len(rows) > _MOST else ""
    return (
        f"Log-likelihoods of {rows[0]['texts']} texts, clipped and centred (Oyama et al. 2025), laid out by {layout}."
        f" Larger points are later epochs. Squared distances, about twice the KL divergence, are in the study's table "
        f"map_distances.{pixels}"
    )


def map_layouts(findings: Findings) -> Plot | Absent:
    """The same map under every projection there is, so that what one of them makes up is seen."""
    name, title = "map_layouts", "The map, laid out in other ways"
    table = findings.study["map_layouts"]
    rows = table.to_pylist()
    layouts = sorted({row["projection"] for row in rows}, key=list(_LAYOUTS).index)
    if len(layouts) < 2:
        reason = "there is one layout only" if layouts else "log-likelihoods of fewer than two models are known"
        return Absent(name, title, reason)
    figure, axes = panels(1, len(layouts), 3.7, 3.7)
    colour, sign = model_colours(findings.names("model")), markers(findings.variants)
    hover = []
    for panel, layout in zip(axes[0], layouts, strict=True):
        ours = [row for row in rows if row["projection"] == layout]
        _trails(panel, ours)
        _points(panel, [row for row in ours if row["trial"] is not None], "model", colour, sign)
        _bases(panel, ours, named=False)
        panel.set(title=_LAYOUTS[layout], **_TICKLESS)
        panel.spines[:].set_visible(True)
        hover.append(_dots(panel, ours))
    legend(figure, model=[key_line(model, color=tone, marker="o") for model, tone in colour.items()])
    caption = (
        "PCA keeps large distances, t-SNE and UMAP neighbours. What holds in only one of them may be its own doing."
    )
    code = points_code(name, "x", "y", 'hue="model", col="projection", facet_kws={"sharex": False, "sharey": False}')
    return Plot(name, title, caption, figure, table, (), code, tuple(hover))


def trajectories(findings: Findings) -> Plot | Absent:
    """How far each trial is from its start after every epoch, and how straight its way there was."""
    name, title = "trajectories", "Ways through the map"
    table = findings.study["trajectories"]
    steps = aggregate(table, ["trial"], ("epoch", "count")).to_pylist()
    several = {row["trial"] for row in steps if row["epoch_count"] > 1}
    rows = [row for row in table.to_pylist() if row["trial"] in several]
    ways: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["trial"], row["epoch"])):
        ways[row["trial"]].append(row)
    if not rows:
        return Absent(name, title, "no trial has log-likelihoods at two epochs or more beside its start")
    measures = {"from_start": "distance from the start (2 KL, nats)", "straightness": "straightness"}
    figure, axes = wrapped(len(measures), 3.9, 3.2)
    colour, hover = model_colours(findings.names("model")), []
    for panel, (measure, label) in zip(axes.ravel(), measures.items(), strict=True):
        dots: list[tuple[float, float, str]] = []
        for ours in ways.values():
            known = [(row["epoch"], row[measure]) for row in ours if row[measure] is not None]
            if known:
                x, y = zip(*known, strict=True)
                look = {"color": colour[ours[0]["model"]], "rasterized": len(rows) > _MOST}
                panel.plot(x, y, marker="o", markersize=3, linewidth=1.1, **look)
                about = f"{ours[0]['model']}, {ours[0]['dataset']}, {ours[0]['variant']}"
                dots += [(a, b, f"{about}, epoch {a}: {b:.3g}") for a, b in known]
        panel.set(xlabel="epoch", ylabel=label)
        panel.xaxis.get_major_locator().set_params(integer=True)
        if dots:
            hover.append(dots_of(panel, dots))
    axes.ravel()[1].set_ylim(0, 1.05)
    drawn = {row["model"] for row in rows}
    legend(figure, model=[key_line(model, color=colour[model], linestyle="-") for model in sorted(drawn)])
    caption = (
        "One line for each fine-tuning that was measured at several epochs. Straightness: distance from the start over "
        "the length of the path; 1 is a straight line."
    )
    code = points_code(
        name, "epoch", "from_start", 'hue="model", style="dataset", kind="line", units="trial", estimator=None'
    )
    return Plot(name, title, caption, figure, table, (), code, tuple(hover))
