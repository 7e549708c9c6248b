"""How many dimensions the gains have: principal components of the matrix of trials x tasks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raysft.study.association import constant
from raysft.study.gains import final_gains
from raysft.study.matrix import Matrix, pivot
from raysft.study.schema import PCA
from raysft.study.tables import Reals, from_rows

SCALINGS = ("raw", "minmax", "zscore")


def pca_table(gains: pa.Table) -> tuple[pa.Table, dict[str, str]]:
    """Cumulative variance of the principal components under each scaling, of schema `PCA`, and what was left out.

    The matrix is of final gains, trials x tasks. Constant and empty tasks are left out, then trials that lack any of
    the tasks left. `gains` are the study's.
    """
    return _of_matrix(pivot(final_gains(gains), ("trial",), "task", "gain"))


def _of_matrix(gains: Matrix) -> tuple[pa.Table, dict[str, str]]:
    skipped: dict[str, str] = {}
    measured = np.isfinite(gains.values)
    kept = []
    for at, task in enumerate(gains.columns):
        values = gains.values[measured[:, at], at]
        if constant(values):
            skipped[f"{task} in the components"] = "its gains are constant" if values.size else "it has no gains"
        else:
            kept.append(at)
    complete = np.asarray(measured[:, kept].all(axis=1))
    if not complete.all():
        lacking = f"{int((~complete).sum())} of {len(complete)} fine-tunings"
        skipped[f"{lacking} in the components"] = "some task is missing"
    values = gains.values[complete][:, kept]
    rows: list[dict[str, object]] = []
    for scaling in SCALINGS:
        rows += [
            {"scaling": scaling, "component": at + 1, "cumulative": float(share)}
            for at, share in enumerate(cumulative_variance(scaled(values, scaling)))
        ]
    if not rows:
        skipped["principal components"] = f"{len(values)} complete fine-tunings and {len(kept)} tasks, 2 and 1 needed"
    return from_rows(rows, PCA), skipped


def scaled(values: Reals, scaling: str) -> Reals:
    """`values`, shape (trials, tasks), with each task's gains as they are, from -1 to 1, or of mean 0 and variance 1.

    A task that is constant among these trials becomes 0.
    """
    if scaling == "raw" or not values.size:
        return values
    centre = values.mean(axis=0) if scaling == "zscore" else (values.max(axis=0) + values.min(axis=0)) / 2
    spread = values.std(axis=0) if scaling == "zscore" else np.ptp(values, axis=0) / 2
    return np.divide(values - centre, spread, out=np.zeros_like(values), where=spread > 0)


def cumulative_variance(values: Reals) -> Reals:
    """Share of the variance in the first 1, 2, ... principal components; empty where there is none.

    `values` has shape (trials, tasks); columns are centred here.
    """
    if len(values) < 2 or not values.shape[1]:
        return np.empty(0)
    variance = np.linalg.svd(values - values.mean(axis=0), compute_uv=False) ** 2
    total = variance.sum()
    return np.cumsum(variance) / total if total > 0 else np.empty(0)
