"""Figures of intrinsic dimension before and after, by depth and by scale."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes

from raysft.report.findings import Findings
from raysft.report.hover import Dots, dots_of
from raysft.report.plot import (
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
from raysft.report.redraw import plain_code
from raysft.study.tables import aggregate, select

_STATE_DEPTH = "depth (0 = embeddings)"
_LONG = """
keys = [name for name in table.columns if name not in ("before_mean", "after_mean", "after_count")]
table = table.melt(keys, ["before_mean", "after_mean"], "measured", "dimension")
"""
_BY_DEPTH = """
table["estimate"] = table["estimator"] + ", " + table["scale"].astype(str) + " neighbours"
options = {"hue": "model", "style": "measured", "col": "estimate", "col_wrap": 3, "kind": "line"}
for variant, part in table.groupby("variant"):
    sns.relplot(part, x="depth", y="dimension", **options).figure.suptitle(variant, y=1.02)
"""
_BY_SCALE = """
grid = sns.relplot(table, x="scale", y="dimension", hue="model", style="measured", col="variant", kind="line")
grid.set(xscale="log")
"""
_DIMENSIONS = ["twonn", "mle", "gride"]  # which share an axis


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
    hover = []
    for row, variant in zip(axes, variants, strict=True):
        for panel, (estimator, neighbours) in zip(row, scale.items(), strict=True):
            dots: list[tuple[float, float, str]] = []
            for model, tone in colour.items():
                points = _rows(shown, variant=variant, estimator=estimator, scale=neighbours, model=model)
                dots += _before_and_after(panel, points, "depth", tone)
            hover += _hover(panel, dots)
            panel.set(
                title=short(f"{estimator} ({neighbours}), {variant}"), xlabel=_STATE_DEPTH, ylabel="intrinsic dimension"
            )
            panel.label_outer()
    _dimension_legend(figure, colour)
    caption = (
        "Of each dataset's own training texts, mean over datasets and seeds, at the last epoch. In brackets: the "
        "neighbours the estimate looks at. Estimates of different scale or number of texts do not compare."
    )
    return Plot(name, title, caption, figure, shown, (), plain_code(name, _LONG + _BY_DEPTH), tuple(hover))


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
    hover = []
    for panel, variant in zip(axes[0], variants, strict=True):
        dots: list[tuple[float, float, str]] = []
        for model, tone in colour.items():
            dots += _before_and_after(panel, _rows(shown, variant=variant, model=model), "scale", tone)
        hover += _hover(panel, dots)
        panel.set_xscale("log", base=2)
        plain_log_ticks(panel.xaxis, base=2)
        panel.set(title=short(variant), xlabel="neighbours")
    axes[0, 0].set_ylabel("intrinsic dimension (Gride)")
    _dimension_legend(figure, colour)
    caption = (
        "At the hidden state nearest mid-depth of each model. A dimension that holds over scales is a plateau; one "
        "number alone shows nothing."
    )
    return Plot(name, title, caption, figure, shown, (), plain_code(name, _LONG + _BY_SCALE), tuple(hover))


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


def _before_and_after(axes: Axes, rows: list[dict[str, Any]], across: str, colour: Any) -> list[tuple[Any, ...]]:
    """Draw both curves and return their points with what they say."""
    dots: list[tuple[Any, ...]] = []
    for side, line in dashes(["after", "before"]).items():
        x, y = [row[across] for row in rows], [row[f"{side}_mean"] for row in rows]
        axes.plot(x, y, color=colour, linestyle=line, marker="o", markersize=2.5)
        said = [f"{row['model']}, {side} tuning, {across} {row[across]:.3g}: " for row in rows]
        dots += [(a, b, f"{text}{b:.2f}") for a, b, text in zip(x, y, said, strict=True) if b is not None]
    return dots


def _hover(axes: Axes, dots: list[tuple[Any, ...]]) -> list[Dots]:
    return [dots_of(axes, dots)] if dots else []


def _dimension_legend(figure: Any, colour: dict[str, Any]) -> None:
    models = [key_line(model, color=tone, linestyle="-") for model, tone in colour.items()]
    sides = dashes(["checkpoint", "base model"]).items()
    legend(figure, model=models, measured=[key_line(side, linestyle=line) for side, line in sides])


def _rows(table: pa.Table, **equal: str | int) -> list[dict[str, Any]]:
    return select(table, **equal).to_pylist()
