"""Figures of where the weights moved, whether that goes with gain, and which updates are alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes

from raysft.report.findings import Findings
from raysft.report.hover import Cells, Dots, dots_of, signed
from raysft.report.listing import number
from raysft.report.plot import (
    GAIN,
    INK,
    LOSS,
    NEUTRAL,
    PAPER,
    Absent,
    Plot,
    dataset_colours,
    heat,
    heat_panels,
    key_line,
    legend,
    markers,
    model_colours,
    panels,
    short,
)
from raysft.report.redraw import heat_code, lines_code, points_code
from raysft.study.cells import gain_cells, slices
from raysft.study.depth import at_equal_epochs, depth_profiles
from raysft.study.matrix import pivot
from raysft.study.tables import aggregate, select

Row = dict[str, Any]
DEPTH = "depth (0 = first layer, 1 = last)"
_SCOPES = {"all": INK, "matching": GAIN, "other": LOSS}
_CLEAR = 0.05
_MIDDLE = 0.6  # where the paper finds weight change and gain to go together most
_WRAP = 4
_MOST_SAID = 6  # lines below a figure


def weight_change(findings: Findings) -> Plot | Absent:
    """Relative weight change by depth: a panel for each variant, a line and its range over datasets for each model."""
    name, title = "weight_change", "Where the weights moved"
    table = findings.study["weight_change_by_depth"]
    known = table.filter(pc.and_(table["final"], pc.is_valid(table["relative_change"])))
    if not known.num_rows:
        return Absent(name, title, "no weight change was measured")
    values = [("relative_change", how) for how in ("mean", "min", "max", "count")]
    shown = aggregate(known, ["variant", "model", "depth"], *values)
    variants, colour = sorted(set(shown["variant"].to_pylist())), model_colours(findings.names("model"))
    figure, axes = wrapped(len(variants), 3.6, 3.1)
    hover = []
    for panel, variant in zip(axes.ravel(), variants, strict=False):
        dots: list[tuple[float, float, str]] = []
        for model, tone in colour.items():
            rows = select(shown, variant=variant, model=model).to_pylist()
            x = [row["depth"] for row in rows]
            low, high, mean = ([row[f"relative_change_{how}"] for row in rows] for how in ("min", "max", "mean"))
            panel.fill_between(x, low, high, color=tone, alpha=0.13, linewidth=0)
            panel.plot(x, mean, color=tone, marker="o", markersize=3)
            dots += [(a, b, f"{model}, depth {a:.2f}: {b:.4g}") for a, b in zip(x, mean, strict=True)]
        panel.set(title=short(variant), xlabel=DEPTH)
        panel.set_ylim(bottom=0)
        hover.append(dots_of(panel, dots))
    axes[0, 0].set_ylabel("relative change, ‖W′ − W‖ / ‖W‖")
    legend(figure, model=[key_line(model, color=tone, linestyle="-") for model, tone in colour.items()])
    caption = "All tensors of a layer pooled, at the last epoch. Line: mean over datasets and seeds; band: their range."
    code = lines_code(name, "depth", "relative_change_mean", 'hue="model", col="variant", facet_kws={"sharey": False}')
    caption += " Panels have their own vertical scale."
    return Plot(name, title, caption, figure, shown, (), code, tuple(hover))


def wrapped(count: int, width: float, height: float, **shared: Any) -> tuple[Any, Any]:
    """Panels for `count` variants, at most four side by side; those too many are blank."""
    down = -(-count // _WRAP)
    figure, axes = panels(down, -(-count // down), width, height, **shared)
    for panel in axes.ravel()[count:]:
        panel.set_axis_off()
    return figure, axes


def weight_change_and_gain(findings: Findings) -> Plot | Absent:
    """Correlation of weight change and gain by depth, plain and with fixed effects, and which depths stand a test."""
    name, title = "weight_change_and_gain", "Where moving goes with gaining"
    tests = findings.study["layer_tests"]
    ours = tests.filter(pc.is_in(tests["scope"], pa.array(list(_SCOPES))))
    shown = ours.filter(pc.is_valid(ours["r"]))
    if not shown.num_rows:
        return Absent(name, title, _why_none(findings, ours))
    variants = sorted(set(shown["variant"].to_pylist()))
    figure, axes = wrapped(len(variants), 3.6, 3.1, sharey=True)
    hover = []
    for panel, variant in zip(axes.ravel(), variants, strict=False):
        panel.axhline(0, color=NEUTRAL, linewidth=1)
        dots: list[tuple[float, float, str]] = []
        for (scope, tone), (effects, line) in _curves():
            rows = select(shown, variant=variant, scope=scope, effects=effects).to_pylist()
            x, y = [row["depth"] for row in rows], [row["r"] for row in rows]
            panel.plot(x, y, color=tone, linestyle=line, linewidth=1.2)
            for row in rows:
                clear = row["p_max"] is not None and row["p_max"] < _CLEAR
                look = {"markersize": 6 if clear else 3.5, "markerfacecolor": tone if clear else PAPER}
                panel.plot(row["depth"], row["r"], marker="o", color=tone, linestyle="none", **look)
            dots += [(row["depth"], row["r"], _tested(row)) for row in rows]
        panel.set(title=short(variant), xlabel=DEPTH, ylim=(-1.05, 1.05))
        hover.append(dots_of(panel, dots))
    axes[0, 0].set_ylabel("correlation of change and gain")
    legend(
        figure,
        gain=[key_line(f"{scope} tasks", color=tone, linestyle="-") for scope, tone in _SCOPES.items()],
        correlation=[key_line("given model, dataset", linestyle="-"), key_line("plain", linestyle=":")],
        **{
            "max-statistic": [key_line(f"p < {_CLEAR}", marker="o"), key_line("not", marker="o", markerfacecolor=PAPER)]
        },
    )
    caption = (
        "One point of the correlation for each model and dataset. The highest of many depths is high by chance too: "
        f"filled depths are beyond the threshold that the largest |r| of all depths passes in {_CLEAR:.0%} of "
        "permutations of whole models and datasets."
    )
    code = lines_code(name, "depth", "r", 'hue="scope", style="effects", col="variant"')
    return Plot(name, title, caption, figure, shown, _strongest(shown), code, tuple(hover))


def _curves() -> list[tuple[tuple[str, str], tuple[str, str]]]:
    return [(scope, line) for scope in _SCOPES.items() for line in (("none", ":"), ("fixed", "-"))]


def _tested(row: Row) -> str:
    p = "" if row["p_max"] is None else f", p of all depths {number(row['p_max'])}, by itself {number(row['p'])}"
    effects = "given model and dataset" if row["effects"] == "fixed" else "plain"
    return f"{row['scope']} tasks, {effects}, depth {row['depth']:.2f}: r = {row['r']:+.3f}{p}"


def _strongest(shown: pa.Table) -> tuple[str, ...]:
    tested = [row for row in shown.to_pylist() if row["strongest"] and row["p_max"] is not None]
    rows = [row for row in tested if row["scope"] == "all" or row["p_max"] < _CLEAR]
    return tuple(_strongest_line(row) for row in rows)


def _strongest_line(row: Row) -> str:
    effects = "fixed effects" if row["effects"] == "fixed" else "plain"
    where = f"strongest at depth {row['depth']:.2f}, r = {row['r']:+.2f}"
    chosen = "" if row["chosen"] is None else f", strongest in {row['chosen']:.0%} of resamples"
    tested = f"p = {number(row['p_max'])} over all {row['layers']} depths"
    return f"{row['variant']}, {row['scope']} tasks, {effects}: {where}, {tested}{chosen}."


def _why_none(findings: Findings, tests: pa.Table) -> str:
    rows = tests.to_pylist() or select(findings.study["correlations"], predictor="weight_change").to_pylist()
    reasons = sorted({row["reason"] for row in rows if row["reason"]})
    return (
        f"no correlation is defined ({reasons[0]})" if reasons else "no weight change of a measured checkpoint is known"
    )


def mid_layer(findings: Findings) -> Plot | Absent:
    """Weight change in the middle of the stack against mean gain, a point for each model and dataset."""
    name, title = "mid_layer", "Mid-layer weight change and gain"
    if not findings.study["weight_change_by_depth"].num_rows:
        return Absent(name, title, "no weight change was measured")
    gains, changes = at_equal_epochs(findings.study["gains"], findings.study["weight_change_by_depth"])
    profiles = depth_profiles(changes)
    if not profiles.curves:
        return Absent(name, title, "no checkpoint has both a weight change and a score")
    at = int(np.abs(profiles.depths - _MIDDLE).argmin())
    points: list[Row] = []
    for part in slices(gain_cells(gains)):
        if part.scope == "all":
            for (model, dataset), gain in part.gains().items():
                curve = profiles.curves.get((part.variant, (model, dataset)))
                if curve is not None and np.isfinite(curve[at]):
                    place = {"variant": part.variant, "model": model, "dataset": dataset}
                    points.append({**place, "relative_change": float(curve[at]), "gain": gain})
    if not points:
        return Absent(name, title, "no checkpoint has both a weight change and a score")
    variants = sorted({point["variant"] for point in points})
    figure, axes = wrapped(len(variants), 3.6, 3.1)
    colour, marker = dataset_colours(findings.names("dataset")), markers(findings.names("model"))
    hover = []
    for panel, variant in zip(axes.ravel(), variants, strict=False):
        ours = [point for point in points if point["variant"] == variant]
        for point in ours:
            look = {"color": colour[point["dataset"]], "marker": marker[point["model"]], "markersize": 6}
            panel.plot(point["relative_change"], point["gain"], markeredgecolor=PAPER, markeredgewidth=0.5, **look)
        panel.axhline(0, color=NEUTRAL, linewidth=1)
        panel.set(title=short(variant), xlabel=f"relative change at depth {profiles.depths[at]:.2f}")
        hover.append(_dots(panel, ours))
    axes[0, 0].set_ylabel("mean gain, all tasks")
    legend(
        figure,
        dataset=[key_line(dataset, color=tone, marker="o") for dataset, tone in colour.items()],
        model=[key_line(model, marker=sign) for model, sign in marker.items()],
    )
    caption = f"At the depth nearest {_MIDDLE}, where the paper finds the two to go together most; tests are above."
    options = 'hue="dataset", style="model", col="variant", facet_kws={"sharex": False}'
    code = points_code(name, "relative_change", "gain", options)
    return Plot(name, title, caption, figure, pa.Table.from_pylist(points), (), code, tuple(hover))


def _dots(panel: Axes, points: list[Row]) -> Dots:
    texts = [
        f"{point['model']}, {point['dataset']}\nchange {point['relative_change']:.4g}, gain {point['gain']:+.3f}"
        for point in points
    ]
    return Dots(panel, [point["relative_change"] for point in points], [point["gain"] for point in points], texts)


def layer_similarity(findings: Findings) -> Plot | Absent:
    """How alike the weight changes of every two models are at each depth: thin lines for pairs, their mean in bold."""
    name, title = "layer_similarity", "Models that move the same layers"
    table = findings.study["layer_similarity"]
    shown = table.filter(pc.and_(pc.less(table["a"], table["b"]), pc.is_valid(table["r"])))
    layers = shown.filter(pc.is_valid(shown["depth"]))
    if not layers.num_rows:
        reasons = sorted(set(table["reason"].to_pylist()) - {None})
        why = f" ({reasons[0]})" if reasons else ""
        return Absent(name, title, f"the weight changes of no two models can be correlated layer by layer{why}")
    variants = sorted(set(layers["variant"].to_pylist()))
    figure, axes = wrapped(len(variants), 3.6, 3.1, sharey=True)
    hover = []
    for panel, variant in zip(axes.ravel(), variants, strict=False):
        rows = select(layers, variant=variant).sort_by("depth").to_pylist()
        panel.axhline(0, color=NEUTRAL, linewidth=1)
        for pair in sorted({(row["a"], row["b"]) for row in rows}):
            line = [(row["depth"], row["r"]) for row in rows if (row["a"], row["b"]) == pair]
            panel.plot(*zip(*line, strict=True), color=NEUTRAL, linewidth=0.7, marker="o", markersize=2)
        mean = aggregate(select(layers, variant=variant), ["depth"], ("r", "mean"))
        panel.plot(mean["depth"].to_pylist(), mean["r_mean"].to_pylist(), color=GAIN, linewidth=2)
        panel.set(title=short(variant), xlabel=DEPTH, ylim=(-1.05, 1.05))
        hover.append(dots_of(panel, [(row["depth"], row["r"], _alike(row)) for row in rows]))
    axes[0, 0].set_ylabel("r of weight changes over datasets")
    legend(figure, r=[key_line("two models", linestyle="-"), key_line("mean", color=GAIN, linestyle="-")])
    curves = shown.filter(pc.is_null(shown["depth"])).to_pylist()
    numbers = tuple(
        f"{row['variant']}, {row['a']} and {row['b']}: r = {row['r']:+.2f} of their curves" for row in curves
    )
    caption = (
        "Pearson's r over datasets of how far two models moved at the same depth: whether the data that moves one of "
        "them most there moves the other most."
    )
    few = numbers if len(numbers) <= _MOST_SAID else ()
    code = lines_code(name, "depth", "r", 'hue="a", style="b", col="variant"')
    return Plot(name, title, caption, figure, shown, few, code, tuple(hover))


def _alike(row: Row) -> str:
    return f"{row['a']} and {row['b']}, depth {row['depth']:.2f}: r = {row['r']:+.3f}, n = {row['n']}"


def update_similarity(findings: Findings, kind: str) -> Plot | Absent:
    """Mean cosine of whole updates between datasets (of trials of one variant) or variants (of one dataset)."""
    name, title = f"update_similarity_{kind}", f"Updates that point the same way, by {kind}"
    table = findings.study["update_similarity_means"]
    shown = select(table, kind=kind).filter(pc.is_valid(select(table, kind=kind)["cosine"]))
    if not shown.num_rows:
        return Absent(name, title, f"no two trials of one base model that differ in their {kind} have known updates")
    matrix = pivot(_both_ways(shown), ["a"], "b", "cosine")
    figure, axes = heat_panels((1, 1), (matrix.rows, matrix.columns), cell=(0.55, 0.42), beside=1.1)
    bars = {"label": "cosine of W′ − W", "shrink": 0.9, "pad": 0.02}
    options = {"annot": len(matrix.rows) <= 16, "fmt": ".2f", "annot_kws": {"size": 8}, "cbar_kws": bars}
    heat(axes[0, 0], matrix.values, matrix.rows, matrix.columns, vmin=-1, vmax=1, **options)
    same = "variant" if kind == "dataset" else "dataset"
    caption = (
        f"Cosine of the updates of two trials of one base model and {same}, from sketches, mean over models and pairs. "
        "On the diagonal: trials that differ in their seed; grey where there is one seed."
    )
    hover = (Cells(axes[0, 0], matrix.rows, matrix.columns, signed(matrix.values)),)
    return Plot(name, title, caption, figure, shown, (), heat_code(name, "a", "b", "cosine"), hover)


def _both_ways(table: pa.Table) -> pa.Table:
    """Each pair as (a, b) and (b, a)."""
    turned = table.set_column(table.column_names.index("a"), "a", table["b"])
    return pa.concat_tables([table, turned.set_column(table.column_names.index("b"), "b", table["a"])])
