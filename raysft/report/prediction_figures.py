"""Figures of how well gains can be known beforehand: prediction of what was held out, and what noise leaves of it."""

from __future__ import annotations

from typing import Any

from raysft.report.findings import Findings
from raysft.report.hover import Dots, dots_of
from raysft.report.plot import (
    GAIN,
    INK,
    LOSS,
    NEUTRAL,
    PAPER,
    Absent,
    Plot,
    key_line,
    legend,
    model_colours,
    panels,
    short,
)
from raysft.report.predictor_figures import FAMILIES, main_parts
from raysft.report.redraw import plain_code
from raysft.study.cells import SCOPES

Row = dict[str, Any]
_OTHERS = "mean of the others"
# Beside the one of all together. A sweep may have dozens of properties, and the CSV has each of them.
_SHOWN = frozenset({_OTHERS, "similarity", "base score", *(name for _, names in FAMILIES.values() for name in names)})
_LOWEST = -1.0  # of an R2 that is drawn where it belongs: far below zero one bad prediction is as bad as another


def prediction(findings: Findings) -> Plot | Absent:
    """R2 of held-out gains beside that of the mean of the others, a panel for each split and variant."""
    name, title = "prediction", "Gains that can be predicted"
    table = findings.study["prediction"]
    rows = [row for row in table.to_pylist() if row["r2"] is not None and row["baseline_r2"] is not None]
    rows = _main_target(rows, findings)
    if not rows:
        reasons = sorted(set(table["reason"].to_pylist()) - {None}) if "reason" in table.column_names else []
        return Absent(name, title, f"no gain could be held out and predicted ({reasons[0] if reasons else 'too few'})")
    splits = sorted({row["split"] for row in rows}, reverse=True)
    variants = sorted({row["variant"] or "" for row in rows})
    rows = [row for row in rows if row["predictors"] in _SHOWN or " + " in row["predictors"]]
    labels = sorted({_label(row) for row in rows if row["predictors"] != _OTHERS}, reverse=True) or [_OTHERS]
    width = 3.4 + 0.05 * max(len(short(label)) for label in labels) / len(splits)
    figure, axes = panels(len(variants), len(splits), width, 1.0 + 0.27 * len(labels), sharex=True, sharey=True)
    hover = []
    for across, split in zip(axes.T, splits, strict=True):
        for panel, variant in zip(across, variants, strict=True):
            ours = [row for row in rows if row["split"] == split and (row["variant"] or "") == variant]
            hover += _bars(panel, ours, labels)
            heading = split.replace("_", " ").replace("-", " ")
            panel.set_title(f"{heading}: {short(variant)}" if variant else heading, fontsize=8.5)
    for panel in axes[-1]:
        panel.set_xlabel("R² of held-out gains")
    keys = [
        key_line("beats the mean of the others", color=GAIN, marker="o"),
        key_line("worse", color=LOSS, marker="o"),
        key_line(_OTHERS, color=INK, marker="|", markersize=11, markeredgewidth=2),
    ]
    legend(figure, predictor=keys)
    caption = (
        "Each model, then each dataset, is held out in turn. Alone: by the predictors; added: the mean of the others, "
        "corrected by them. Filled: the 95% interval of the skill over the mean of the others is above zero. Below "
        f"{_LOWEST:.0f} is drawn at {_LOWEST:.0f}. Gains over {_targets(rows)}; further predictors and targets are in "
        "the CSV."
    )
    body = """
    labels = table["predictors"].str.slice(0, 60) + ", " + table["form"] + ", " + table["target"]
    table = table.assign(label=labels.where(labels.notna(), table["predictors"]))
    sns.relplot(table, x="r2", y="label", hue="variant", col="split").set(xlim=(-1, 1))
    """
    return Plot(name, title, caption, figure, table, (), plain_code(name, body), tuple(hover))


def _main_target(rows: list[Row], findings: Findings) -> list[Row]:
    """For each variant the gains over its main choice of tasks, or over all where those could not be predicted."""
    wanted = {part.variant: part.scope for part in main_parts(findings)}
    there = {(row["variant"], row["target"]) for row in rows}
    main = {variant: scope if (variant, scope) in there else "all" for variant, scope in wanted.items()}
    return [row for row in rows if row["target"] == main.get(row["variant"], "all")]


def _targets(rows: list[Row]) -> str:
    scopes = sorted({row["target"] for row in rows})
    return " and ".join(f"{scope} tasks" for scope in scopes)


def _label(row: Row) -> str:
    names = row["predictors"].split(" + ")
    said = row["predictors"] if len(names) <= 2 else f"all {len(names)} together"
    return f"{said.replace('_', ' ')} ({row['form']})" if row.get("form") else said.replace("_", " ")


def _bars(panel: Any, rows: list[Row], labels: list[str]) -> list[Dots]:
    panel.axvline(0, color=NEUTRAL, linewidth=1)
    dots: list[tuple[float, float, str]] = []
    for row in rows:
        if row["predictors"] == _OTHERS and len(labels) > 1:
            continue
        y = labels.index(_label(row)) if _label(row) in labels else 0
        r2, base = (max(_LOWEST, row[column]) for column in ("r2", "baseline_r2"))
        tone = GAIN if row["r2"] > row["baseline_r2"] else LOSS
        clear = row.get("skill_low") is not None and row["skill_low"] > 0
        panel.plot(base, y, marker="|", markersize=11, markeredgewidth=2, color=INK)
        dots.append((base, float(y), f"mean of the others: R² {row['baseline_r2']:.3f}"))
        if row["predictors"] == _OTHERS:
            continue
        panel.plot([base, r2], [y, y], color=tone, linewidth=1.2)
        panel.plot(r2, y, marker="o", markersize=6, color=tone, markerfacecolor=tone if clear else PAPER)
        dots.append((r2, float(y), _said(row)))
    panel.set_yticks(range(len(labels)), [short(label) for label in labels])
    panel.set(xlim=(_LOWEST - 0.05, 1.05), ylim=(-0.6, len(labels) - 0.4))
    return [dots_of(panel, dots)] if dots else []


def _said(row: Row) -> str:
    skill = ""
    if row.get("skill") is not None:
        interval = f" [{row['skill_low']:+.2f}, {row['skill_high']:+.2f}]" if row["skill_low"] is not None else ""
        skill = f", skill {row['skill']:+.2f}{interval}"
    return f"{_label(row)}\nR² {row['r2']:.3f}, mean of the others {row['baseline_r2']:.3f}{skill}, n = {row.get('n')}"


def noise_ceilings(findings: Findings) -> Plot | Absent:
    """The largest correlation with gain that its errors leave, by choice of tasks: plain and given the effects."""
    name, title = "noise_ceilings", "How much of the gains is not noise"
    table = findings.study["noise_ceilings"]
    rows = [row for row in table.to_pylist() if row["ceiling"] is not None]
    if not rows:
        reasons = sorted(set(table["reason"].to_pylist()) - {None})
        return Absent(name, title, f"no error of the gains is known ({reasons[0] if reasons else 'no gains'})")
    labels = [scope for scope in SCOPES if any(row["scope"] == scope for row in rows)]
    labels = [f"{scope} tasks" for scope in labels] + sorted({row["task"] for row in rows if row["task"]})
    labels.reverse()
    effects = [found for found in ("none", "fixed") if any(row["effects"] == found for row in rows)]
    variants = sorted({row["variant"] for row in rows})
    colour = model_colours(variants)
    figure, axes = panels(1, len(effects), 4.0, 1.0 + 0.24 * len(labels), sharex=True, sharey=True)
    hover = []
    for panel, effect in zip(axes[0], effects, strict=True):
        dots: list[tuple[float, float, str]] = []
        for row in (row for row in rows if row["effects"] == effect):
            y = labels.index(row["task"] or f"{row['scope']} tasks") + 0.14 * (variants.index(row["variant"]) % 3 - 1)
            panel.plot(row["ceiling"], y, marker="o", markersize=5, color=colour[row["variant"]])
            said = f"{row['variant']}: r at most {row['ceiling']:.2f}, R² at most {row['reliability']:.2f}"
            dots.append((row["ceiling"], y, said))
        panel.set_yticks(range(len(labels)), [short(label) for label in labels])
        panel.set(xlabel="largest possible |r|", xlim=(-0.03, 1.03), ylim=(-0.6, len(labels) - 0.4))
        panel.set_title("plain" if effect == "none" else "given model and dataset")
        hover.append(dots_of(panel, dots))
    legend(figure, variant=[key_line(variant, color=tone, marker="o") for variant, tone in colour.items()])
    caption = (
        "Root of 1 - noise / variance of the gains; noise from standard errors over items, or from seeds where that is "
        "more. A predictor cannot correlate with gains beyond it, however good it is."
    )
    body = """
    labels = table["task"].fillna(table["scope"])
    sns.relplot(table.assign(label=labels), x="ceiling", y="label", hue="variant", col="effects").set(xlim=(0, 1))
    """
    return Plot(name, title, caption, figure, table, (), plain_code(name, body), tuple(hover))
