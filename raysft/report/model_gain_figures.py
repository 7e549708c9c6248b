"""Figures of the gains model by model: small multiples of datasets x tasks, with zero kept and scaled as published."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from raysft.report.findings import Findings
from raysft.report.gain_figures import MINMAX_CAPTION, minmax
from raysft.report.hover import Cells, signed
from raysft.report.plot import Absent, Plot, extent, heat, heat_panels, short
from raysft.report.redraw import heat_code
from raysft.study.gains import final_gains
from raysft.study.matrix import Matrix, pivot
from raysft.study.tables import Reals, aggregate, real_array, reals, select

_ACROSS = 3
SCALED = "gain (share of the scale)"


def gain_by_model(findings: Findings, variant: str, published: bool = False) -> Plot | Absent:
    """The gain matrix of every model under one variant on one colour scale; `published` scales each task to -1 to 1."""
    head, value = ("minmax", "minmax") if published else ("gain", "scaled_gain_mean")
    name = f"{head}_by_model_{findings.slugs[variant]}"
    title = f"Gain, model by model{', min-max scaled' if published else ''}: {variant}"
    final = final_gains(findings.study["gains"])
    ours = select(final, variant=variant)
    if not ours.num_rows:
        return Absent(name, title, "no checkpoint of this variant was measured")
    whole = pivot(ours, ["dataset"], "task", "scaled_gain")
    models = sorted(set(ours["model"].to_pylist()))
    matrices = {model: _of(select(ours, model=model), whole, published) for model in models}
    scale = 1.0 if published else extent(reals(final, "scaled_gain"))
    figure, hover = _panels(matrices, whole, scale, "gain, each task from -1 to 1" if published else SCALED)
    caption = MINMAX_CAPTION if published else "Gain at the last epoch, mean over seeds; white is no change."
    code = heat_code(name, "dataset", "task", value, ("model",))
    return Plot(
        name, title, caption + " Grey: not measured.", figure, _data(ours, matrices, published), (), code, hover
    )


def _of(part: pa.Table, whole: Matrix, published: bool) -> Matrix:
    """One model's matrix with the rows and columns of all of them."""
    found = pivot(part, ["dataset"], "task", "scaled_gain")
    values = np.full(whole.values.shape, np.nan)
    rows, columns = [whole.rows.index(name) for name in found.rows], [whole.columns.index(c) for c in found.columns]
    values[np.ix_(rows, columns)] = found.values
    return Matrix(whole.rows, whole.columns, minmax(values) if published else values)


def _panels(matrices: dict[str, Matrix], whole: Matrix, scale: float, label: str) -> tuple[Figure, tuple[Cells, ...]]:
    across = min(_ACROSS, len(matrices))
    down = -(-len(matrices) // across)
    figure, axes = heat_panels((down, across), (whole.rows, whole.columns), cell=(0.22, 0.22), beside=1.0)
    for at, (panel, (model, matrix)) in enumerate(zip(axes.ravel(), matrices.items(), strict=False)):
        heat(panel, matrix.values, matrix.rows, matrix.columns, vmin=-scale, vmax=scale, cbar=False)
        panel.set_title(short(model))
        # The lowest panel of each column carries the names, also where the last row is not full.
        panel.tick_params(labelbottom=at + across >= len(matrices))
    for panel in axes.ravel()[len(matrices) :]:
        panel.set_axis_off()
    mesh = axes[0, 0].collections[0]
    figure.colorbar(mesh, ax=axes, shrink=min(1, 3 / figure.get_figheight()), pad=0.02, label=label)
    hover = tuple(
        Cells(panel, matrix.rows, matrix.columns, _said(model, matrix.values))
        for panel, (model, matrix) in zip(axes.ravel(), matrices.items(), strict=False)
    )
    return figure, hover


def _said(model: str, values: Reals) -> list[list[str]]:
    return [[f"{text}\n{model}" if text else "" for text in row] for row in signed(values)]


def _data(ours: pa.Table, matrices: dict[str, Matrix], published: bool) -> pa.Table:
    keys = ["model", "variant", "dataset", "task"]
    shown = aggregate(ours, keys, ("scaled_gain", "mean"), ("gain", "mean"), ("gain", "count"))
    if not published:
        return shown
    places = shown.select(["model", "dataset", "task"]).to_pylist()
    at = [
        matrices[place["model"]].values[
            matrices[place["model"]].rows.index(place["dataset"]),
            matrices[place["model"]].columns.index(place["task"]),
        ]
        for place in places
    ]
    return shown.append_column("minmax", real_array(np.array(at)))
