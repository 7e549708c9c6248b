"""Figures along the stack: how far each layer moved, whether that goes with gain, and intrinsic dimension."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes

from raysft.report.findings import Findings
from raysft.report.plot import (
    GAIN,
    INK,
    LOSS,
    NEUTRAL,
    Absent,
    Plot,
    dashes,
    key_line,
    legend,
    model_colours,
    panels,
    plain_log_ticks,
    short,
)
from raysft.study.tables import aggregate, select

_DEPTH = "depth (0 = first layer, 1 = last)"
_STATE_DEPTH = "depth (0 = embeddings)"
_DIMENSIONS = ["twonn", "mle", "gride"]  # which share an axis
_SCOPES = {"all": INK, "matching": GAIN, "other": LOSS}


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
    figure, axes = panels(1, len(variants), 3.6, 3.1)
    for panel, variant in zip(axes[0], variants, strict=True):
        for model, tone in colour.items():
            rows = _rows(shown, variant=variant, model=model)
            x = [row["depth"] for row in rows]
            low, high, mean = ([row[f"relative_change_{how}"] for row in rows] for how in ("min", "max", "mean"))
            panel.fill_between(x, low, high, color=tone, alpha=0.13, linewidth=0)
            panel.plot(x, mean, color=tone, marker="o", markersize=3)
        panel.set(title=short(variant), xlabel=_DEPTH)
        panel.set_ylim(bottom=0)
    axes[0, 0].set_ylabel("relative change, ‖W′ − W‖ / ‖W‖")
    legend(figure, model=[key_line(model, color=tone, linestyle="-") for model, tone in colour.items()])
    caption = "All tensors of a layer pooled, at the last epoch. Line: mean over datasets and seeds; band: their range."
    return Plot(name, title, caption + " Panels have their own vertical scale.", figure, shown)


def weight_change_and_gain(findings: Findings) -> Plot | Absent:
    """Correlation of weight change and gain by depth, plain and with fixed effects, a panel for each variant."""
    name, title = "weight_change_and_gain", "Where moving goes with gaining"
    table = findings.study["correlations"]
    ours = table.filter(
        pc.and_(pc.equal(table["predictor"], "weight_change"), pc.is_in(table["scope"], pa.array(list(_SCOPES))))
    )
    shown = ours.filter(pc.is_valid(ours["pearson"]))
    if not shown.num_rows:
        return Absent(name, title, _why_none(ours))
    variants = sorted(set(shown["variant"].to_pylist()))
    figure, axes = panels(1, len(variants), 3.6, 3.1, sharey=True)
    for panel, variant in zip(axes[0], variants, strict=True):
        panel.axhline(0, color=NEUTRAL, linewidth=1)
        for scope, tone in _SCOPES.items():
            rows = _rows(shown, variant=variant, scope=scope)
            x = [row["depth"] for row in rows]
            panel.plot(x, [row["pearson"] for row in rows], color=tone, linestyle=":", marker="o", markersize=3)
            within = [(row["depth"], row["within"]) for row in rows if row["within"] is not None]
            if within:
                panel.plot(*zip(*within, strict=True), color=tone, marker="o", markersize=4)
        panel.set(title=short(variant), xlabel=_DEPTH, ylim=(-1.05, 1.05))
    axes[0, 0].set_ylabel("correlation of change and gain")
    legend(
        figure,
        gain=[key_line(f"{scope} tasks", color=tone, linestyle="-") for scope, tone in _SCOPES.items()],
        correlation=[key_line("fixed effects", linestyle="-"), key_line("plain", linestyle=":")],
    )
    caption = (
        "One point of the correlation for each model and dataset. Plain coefficients mix in what models and datasets "
        "have in common; the solid lines hold both fixed. The highest of many depths is high by chance too."
    )
    return Plot(name, title, caption, figure, shown)


def _why_none(correlations: pa.Table) -> str:
    reasons = sorted(set(correlations["reason"].to_pylist()) - {None})
    return (
        f"no correlation is defined ({reasons[0]})" if reasons else "no weight change of a measured checkpoint is known"
    )


def intrinsic_dimension(findings: Findings) -> Plot | Absent:
    """Intrinsic dimension by depth before and after: a row for each variant, a column for each estimator."""
    name, title = "intrinsic_dimension", "Intrinsic dimension by depth"
    table = findings.study["intrinsic_dimension_by_depth"]
    known = table.filter(pc.and_(table["final"], pc.is_in(table["estimator"], pa.array(_DIMENSIONS))))
    if not known.num_rows:
        return Absent(name, title, "no intrinsic dimension was measured before and after fine-tuning")
    keys = ["variant", "estimator", "scale", "model", "depth"]
    shown = aggregate(known, keys, ("before", "mean"), ("after", "mean"), ("after", "count"))
    scale = _middle_scales(shown)
    variants, colour = sorted(set(shown["variant"].to_pylist())), model_colours(findings.names("model"))
    figure, axes = panels(len(variants), len(scale), 2.8, 2.6, sharex=True, sharey=True)
    for row, variant in zip(axes, variants, strict=True):
        for panel, (estimator, neighbours) in zip(row, scale.items(), strict=True):
            for model, tone in colour.items():
                points = _rows(shown, variant=variant, estimator=estimator, scale=neighbours, model=model)
                _before_and_after(panel, points, "depth", tone)
            panel.set(
                title=short(f"{estimator} ({neighbours}), {variant}"), xlabel=_STATE_DEPTH, ylabel="intrinsic dimension"
            )
            panel.label_outer()
    _dimension_legend(figure, colour)
    caption = (
        "Of each dataset's own training texts, mean over datasets and seeds, at the last epoch. In brackets: the "
        "neighbours the estimate looks at. Estimates of different scale or number of texts do not compare."
    )
    return Plot(name, title, caption, figure, shown)


def dimension_by_scale(findings: Findings) -> Plot | Absent:
    """Intrinsic dimension at mid-depth against the scale of the estimate, before and after, one panel a variant."""
    name, title = "dimension_by_scale", "Intrinsic dimension by scale"
    table = findings.study["intrinsic_dimension_by_depth"]
    known = table.filter(pc.and_(table["final"], pc.equal(table["estimator"], "gride")))
    if pc.count_distinct(known["scale"]).as_py() < 2:
        return Absent(name, title, "Gride was not measured at two scales or more")
    central = known.filter(_nearest_mid_depth(known))
    shown = aggregate(central, ["variant", "model", "scale"], ("before", "mean"), ("after", "mean"), ("after", "count"))
    variants, colour = sorted(set(shown["variant"].to_pylist())), model_colours(findings.names("model"))
    figure, axes = panels(1, len(variants), 3.6, 3.0, sharey=True)
    for panel, variant in zip(axes[0], variants, strict=True):
        for model, tone in colour.items():
            _before_and_after(panel, _rows(shown, variant=variant, model=model), "scale", tone)
        panel.set_xscale("log", base=2)
        plain_log_ticks(panel.xaxis, base=2)
        panel.set(title=short(variant), xlabel="neighbours")
    axes[0, 0].set_ylabel("intrinsic dimension (Gride)")
    _dimension_legend(figure, colour)
    caption = (
        "At the hidden state nearest mid-depth of each model. A dimension that holds over scales is a plateau; one "
        "number alone shows nothing."
    )
    return Plot(name, title, caption, figure, shown)


def _nearest_mid_depth(table: pa.Table) -> pa.Array:
    """Mask of the rows at the depth nearest 0.5 that their model has."""
    places = list(zip(table["model"].to_pylist(), table["depth"].to_pylist(), strict=True))
    nearest: dict[str, float] = {}
    for model, depth in places:
        nearest[model] = min(nearest.get(model, depth), depth, key=lambda found: (abs(found - 0.5), found))
    return pa.array([nearest[model] == depth for model, depth in places])


def _middle_scales(shown: pa.Table) -> dict[str, int]:
    scales: dict[str, set[int]] = defaultdict(set)
    for row in shown.to_pylist():
        scales[row["estimator"]].add(row["scale"])
    return {estimator: sorted(found)[len(found) // 2] for estimator, found in sorted(scales.items())}


def _before_and_after(axes: Axes, rows: list[dict[str, Any]], across: str, colour: Any) -> None:
    for side, line in dashes(["after", "before"]).items():
        x, y = [row[across] for row in rows], [row[f"{side}_mean"] for row in rows]
        axes.plot(x, y, color=colour, linestyle=line, marker="o", markersize=2.5)


def _dimension_legend(figure: Any, colour: dict[str, Any]) -> None:
    models = [key_line(model, color=tone, linestyle="-") for model, tone in colour.items()]
    sides = dashes(["checkpoint", "base model"]).items()
    legend(figure, model=models, measured=[key_line(side, linestyle=line) for side, line in sides])


def _rows(table: pa.Table, **equal: str | int) -> list[dict[str, Any]]:
    return select(table, **equal).to_pylist()
