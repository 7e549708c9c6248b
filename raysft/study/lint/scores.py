"""Scores that do not say what a reader takes them to say: other scales, no better than chance, unread, constant."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysft.study.gains import score_scale
from raysft.study.lint.findings import Finding, listed, share
from raysft.study.lint.sheet import Sheet, with_several_metrics
from raysft.study.tables import Reals, reals, texts

CLEAR = 3.0  # standard errors below chance
COMMON = 0.95  # share of equal scores that makes a column all but constant
FEW = 0.01  # share of scores far below chance that a table of guesses may have
UNREAD = 0.1  # share of answers without anything extracted, or degenerate
ZEROS = 0.1  # share of scores that are exactly zero


@dataclass(frozen=True)
class _Task:
    """The rows of one task and metric: arrays of shape (rows,)."""

    name: str
    tuned: npt.NDArray[np.bool_]
    value: Reals
    error: Reals
    items: Reals
    chance: Reals
    unextracted: Reals
    degenerate: Reals


def scale_findings(sheet: Sheet) -> Iterator[Finding]:
    """Columns on two scales, then those on another than most: a mean over them is a mean of the largest ones."""
    yield from _mixed_within(sheet)
    scales = {name: scale_of(sheet.column(name)) for name in sheet.columns}
    known = {name: scale for name, scale in scales.items() if scale}
    if len(set(known.values())) < 2:
        return
    usual = Counter(known.values()).most_common(1)[0][0]
    for name, scale in known.items():
        if scale != usual:
            values = sheet.column(name)
            span = f"{np.nanmin(values):g} to {np.nanmax(values):g}"
            yield Finding("mixed_scales", "warning", name, f"on {scale} (found {span}); most scores are on {usual}")


def _mixed_within(sheet: Sheet) -> Iterator[Finding]:
    """Columns in which some models' scores are all shares of 1, and all of every other model's exceed 1."""
    models = np.array([str(subject["model"]) for subject in sheet.subjects])
    for name in sheet.columns:
        values = sheet.column(name)
        known = np.isfinite(values)
        largest = {model: float(values[known & (models == model)].max()) for model in np.unique(models[known])}
        low = [model for model, top in largest.items() if 0 < top <= 1]
        others = known & ~np.isin(models, low)
        if low and others.any() and values[others].min() > 1:
            detail = f"on 0 to 1 for {listed(low)}, on {scale_of(values[others])} for the other models"
            yield Finding("mixed_scales", "error", name, detail)


def scale_of(values: Reals) -> str | None:
    """`0 to 1`, `1 to 10`, `0 to 100`, ...: the smallest power of ten that holds every score; None without a score."""
    known = values[np.isfinite(values)]
    if not known.size:
        return None
    scale = score_scale(float(np.abs(known).max()))
    return f"{1 if scale == 10 and known.min() >= 1 else 0} to {scale:g}"


def constant_findings(sheet: Sheet) -> Iterator[Finding]:
    """Columns with one value, or nearly: no gain in them, no correlation with them."""
    for name in sheet.columns:
        values = sheet.column(name)[np.isfinite(sheet.column(name))]
        if not values.size:
            yield Finding("constant_column", "error", name, "no score at all")
            continue
        levels, counts = np.unique(values, return_counts=True)
        most = int(counts.argmax())
        if values.size > 2 and counts[most] >= COMMON * values.size:
            severity = "error" if len(levels) == 1 else "warning"
            yield Finding("constant_column", severity, name, f"{share(counts[most], values.size)} are {levels[most]:g}")


def chance_findings(scores: pa.Table) -> Iterator[Finding]:
    """How many scores of each task do not exceed a guess, of base models and of fine-tunings."""
    for task in _tasks(scores):
        for rows, whose in ((task.tuned, "fine-tuned"), (~task.tuned, "base")):
            known = rows & np.isfinite(task.value) & np.isfinite(task.chance)
            low = known & (task.value <= task.chance)
            if low.any():
                level = listed(dict.fromkeys(f"{chance:g}" for chance in np.unique(task.chance[known])))
                detail = f"{share(int(low.sum()), int(known.sum()))} of the {whose} scores are at or below {level}"
                severity = "error" if whose == "fine-tuned" and low.sum() > known.sum() / 2 else "warning"
                yield Finding("at_or_below_chance", severity, task.name, detail)


def format_findings(scores: pa.Table) -> Iterator[Finding]:
    """Scores that measure whether an answer could be read: far below chance, nothing extracted, degenerate, or zero."""
    for task in _tasks(scores):
        yield from _far_below_chance(task)
        yield from _unread(task, task.unextracted, "from which nothing could be extracted")
        yield from _unread(task, task.degenerate, "that are empty, repeat themselves or do not end")
        yield from _zeros(task)


def _far_below_chance(task: _Task) -> Iterator[Finding]:
    # Where it is known that answers were read, a score below chance is the model's own.
    known = np.isfinite(task.value) & np.isfinite(task.chance) & ~(task.unextracted <= UNREAD)
    scale = score_scale(float(max(np.abs(task.value[known]).max(), task.chance[known].max()))) if known.any() else 1.0
    p = task.chance / scale
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(task.items > 0, scale * np.sqrt(p * (1 - p) / task.items), task.error)
        low = known & (task.value < task.chance - CLEAR * error)
    if low.sum() > FEW * known.sum():
        detail = f"{share(int(low.sum()), int(known.sum()))} of the scores are more than {CLEAR:g} standard errors"
        detail += " below chance: wrong answers do not score so low, unread ones do"
        severity = "error" if low.sum() > known.sum() / 4 else "warning"
        yield Finding("format_failure", severity, task.name, detail)


def _unread(task: _Task, fraction: Reals, what: str) -> Iterator[Finding]:
    many = np.isfinite(fraction) & (fraction > UNREAD)
    if many.any():
        detail = f"{share(int(many.sum()), int(np.isfinite(fraction).sum()))} of the scores have over {UNREAD:.0%} of"
        detail += f" answers {what}, at worst {np.nanmax(fraction):.0%}"
        yield Finding("format_failure", "warning", task.name, detail)


def _zeros(task: _Task) -> Iterator[Finding]:
    known = np.isfinite(task.value)
    zeros = known & (task.value == 0)
    if zeros.sum() > max(1, ZEROS * known.sum()) and (task.value[known] != 0).any():
        detail = (
            f"{share(int(zeros.sum()), int(known.sum()))} of the scores are exactly 0: nothing right, or nothing read"
        )
        yield Finding("format_failure", "warning", task.name, detail)


def _tasks(scores: pa.Table) -> Iterator[_Task]:
    tasks, metrics = texts(scores, "task"), texts(scores, "metric")
    several = with_several_metrics(tasks, metrics)
    tuned = np.array([trial is not None for trial in scores["trial"].to_pylist()], dtype=bool)
    arrays = [reals(scores, name) for name in ("value", "stderr", "n", "chance", "unextracted", "degenerate")]
    rows_of: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, place in enumerate(zip(tasks, metrics, strict=True)):
        rows_of[place].append(row)
    for (task, metric), rows in rows_of.items():
        name = f"{task} {metric}" if task in several else task
        yield _Task(name, tuned[rows], *(array[rows] for array in arrays))
