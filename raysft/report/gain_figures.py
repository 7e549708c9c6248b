"""Figures of what each dataset did to each task: as measured, and scaled as published."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from raysft.report.findings import Findings
from raysft.report.hover import Cells, signed
from raysft.report.overlap import MARKED, marked_pairs
from raysft.report.plot import OUTLINE, Absent, Plot, extent, heat, heat_panels
from raysft.report.redraw import heat_code
from raysft.study.association import constant
from raysft.study.matching import matches
from raysft.study.matrix import Matrix, pivot
from raysft.study.tables import Reals, real_array, reals

_MEASURES = {
    "gain": ("Gain", "gain over the base model, on each task's own scale"),
    "bits_gain": ("Fall in bits per byte", "fall in bits per byte of the gold answers"),
}
_NOT_MEASURED = "no checkpoint of this variant was measured on a task that its base model has too"
MINMAX_CAPTION = (
    "Each column runs from -1, its smallest gain, to +1, its largest, as published. That compares datasets within a "
    "task and loses zero: a dataset at -1 may still gain, and one at +1 may lose."
)


def gain_matrix(findings: Findings, variant: str, measure: str = "gain") -> Plot | Absent:
    """Datasets x tasks of one variant, mean over models and seeds; `measure` is gain or bits_gain."""
    whole = findings.study["gain_matrix"]
    shown = whole.filter(pc.equal(whole["variant"], variant))
    heading, meaning = _MEASURES[measure]
    name, title = f"{measure.removesuffix('_gain')}_matrix_{findings.slugs[variant]}", f"{heading}: {variant}"
    matrix = pivot(shown, ["dataset"], "task", measure)
    if not np.isfinite(matrix.values).any():
        return Absent(name, title, _NOT_MEASURED)
    # Colours compare tasks, so they follow the gain on a common scale; the numbers stay on the task's own.
    coloured_by = "scaled_gain" if measure == "gain" else measure
    marks = pivot(shown, ["dataset"], "task", "z").values if measure == "gain" else np.full_like(matrix.values, np.nan)
    shared = _shared_text(findings, matrix)
    colours = pivot(shown, ["dataset"], "task", coloured_by).values
    figure, axes = _one_heat(matrix, colours, extent(reals(whole, coloured_by)), _printed(matrix.values, marks, shared))
    figure.axes[-1].set_ylabel(heading.lower())
    stars = "; * where it is more than 3 standard errors from zero" if measure == "gain" else ""
    caption = (
        f"Mean {meaning} at the last epoch{stars}. Outlined: tasks that test what the dataset teaches. Grey: not known."
    )
    if shared.any():
        caption += f" †: the training set holds text of {MARKED:.0%} of the task's items or more."
    if measure == "gain" and not np.array_equal(reals(shown, "gain"), reals(shown, "scaled_gain")):
        caption += " Tasks are on different scales; colours show the gain as a share of the task's."
    hover = (Cells(axes, matrix.rows, matrix.columns, _said(shown, matrix, measure)),)
    return Plot(name, title, caption, figure, shown, (), heat_code(name, "dataset", "task", measure), hover)


def _said(shown: pa.Table, matrix: Matrix, measure: str) -> list[list[str]]:
    """Each cell's number with its error and what it is a mean of."""
    rows = {(row["dataset"], row["task"]): row for row in shown.to_pylist()}
    return [[_cell(rows.get((dataset, task)), measure) for task in matrix.columns] for dataset in matrix.rows]


def _cell(row: dict[str, Any] | None, measure: str) -> str:
    if row is None or row[measure] is None:
        return ""
    error = f" ± {row['stderr']:.3f}" if measure == "gain" and row["stderr"] is not None else ""
    return f"{row[measure] + 0.0:+.3f}{error}\nmean of {row['models']} models, {row['cells']} checkpoints"


def minmax_matrix(findings: Findings, variant: str) -> Plot | Absent:
    """Datasets x tasks of one variant with each task's gains from -1 to 1, as the paper shows them."""
    whole = findings.study["gain_matrix"]
    shown = whole.filter(pc.equal(whole["variant"], variant))
    name, title = f"minmax_matrix_{findings.slugs[variant]}", f"Gain, min-max scaled: {variant}"
    matrix = pivot(shown, ["dataset"], "task", "gain")
    scaled = minmax(matrix.values)
    if not np.isfinite(scaled).any():
        return Absent(name, title, _NOT_MEASURED if not shown.num_rows else "no task's gains differ between datasets")
    printed = np.array([[f"{v + 0.0:.2f}" if np.isfinite(v) else "" for v in row] for row in scaled], dtype=object)
    figure, axes = _one_heat(matrix, scaled, 1.0, printed)
    figure.axes[-1].set_ylabel("gain, each task from -1 to 1")
    at = {(d, t): scaled[i, j] for i, d in enumerate(matrix.rows) for j, t in enumerate(matrix.columns)}
    places = zip(shown["dataset"].to_pylist(), shown["task"].to_pylist(), strict=True)
    data = shown.select(["variant", "dataset", "task", "gain"])
    data = data.append_column("minmax", real_array([at[place] for place in places]))
    raw = signed(matrix.values)
    texts = [
        [f"{v + 0.0:+.2f}\ngain {raw[i][j]}" if np.isfinite(v) else raw[i][j] for j, v in enumerate(row)]
        for i, row in enumerate(scaled)
    ]
    hover = (Cells(axes, matrix.rows, matrix.columns, texts),)
    caption = MINMAX_CAPTION + " Grey: not measured, or the same for every dataset."
    return Plot(name, title, caption, figure, data, (), heat_code(name, "dataset", "task", "minmax"), hover)


def minmax(values: Reals) -> Reals:
    """Each column, shape (rows,), from -1 to 1; NaN where it is missing or does not vary."""
    scaled = np.full_like(values, np.nan)
    for at, column in enumerate(values.T):
        known = np.isfinite(column)
        if not constant(column[known]):
            low, high = column[known].min(), column[known].max()
            scaled[known, at] = 2 * (column[known] - low) / (high - low) - 1
    return scaled


def _one_heat(matrix: Matrix, colours: Reals, scale: float, printed: np.ndarray) -> tuple[Any, Axes]:
    figure, axes = heat_panels((1, 1), (matrix.rows, matrix.columns), cell=(0.62, 0.4), beside=1.1)
    options = {"annot": printed, "fmt": "", "annot_kws": {"size": 8}, "cbar_kws": {"shrink": 0.9, "pad": 0.02}}
    heat(axes[0, 0], colours, matrix.rows, matrix.columns, vmin=-scale, vmax=scale, **options)
    _outline_matching(axes[0, 0], matrix)
    axes[0, 0].set(xlabel="task", ylabel="trained on")
    return figure, axes[0, 0]


def _shared_text(findings: Findings, matrix: Matrix) -> np.ndarray:
    """Which cells are of a training set that holds text of the task, (datasets, tasks)."""
    pairs = marked_pairs(findings)
    return np.array([[(dataset, task) in pairs for task in matrix.columns] for dataset in matrix.rows], dtype=bool)


def _printed(values: Reals, z: Reals, shared: np.ndarray) -> np.ndarray:
    """Signed numbers with a star beyond 3 standard errors and a dagger for shared text; one decimal in columns that
    reach 10, two in others."""
    digits = [1 if extent(column) >= 10 else 2 for column in values.T]
    texts = np.full(values.shape, "", dtype=object)
    for row, column in np.argwhere(np.isfinite(values)):
        # Adding zero turns a rounded -0.0 into 0.0.
        number = round(values[row, column], digits[column]) + 0.0
        texts[row, column] = f"{number:+.{digits[column]}f}{'*' if abs(z[row, column]) > 3 else ''}"
        texts[row, column] += "†" if shared[row, column] else ""
    return texts


def _outline_matching(axes: Axes, matrix: Matrix) -> None:
    look: dict[str, Any] = {"fill": False, "edgecolor": OUTLINE, "linewidth": 1.4, "clip_on": False}
    for row, dataset in enumerate(matrix.rows):
        for column, task in enumerate(matrix.columns):
            if matches(dataset, task):
                axes.add_patch(Rectangle((column, row), 1, 1, **look))
