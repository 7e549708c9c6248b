"""Which tasks, datasets and models react alike in released scores; models by the shape of what they react to.

Two models may gain differently and yet agree on which tasks go together. So models are compared by the lower triangles
of their own similarity matrices, of tasks and of datasets; neighbouring entries of a triangle share a task, so a p of
such an r is Mantel's, never Pearson's.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysft.study.association import pearson
from raysft.study.matrix import Matrix, pivot
from raysft.study.released_schemas import RELEASED_SIMILARITY
from raysft.study.similarity import Clustering, cluster
from raysft.study.tables import Reals, from_rows

# kind -> what one entry of its gain vectors is
_ENTRIES = {
    "task": ("trial", "epoch"),
    "dataset": ("model", "method", "size", "schedule", "epoch", "seed", "task"),
}


def similarities(gains: pa.Table) -> dict[str, tuple[Matrix, Matrix]]:
    """Kind -> the square matrices of r and of n; `gains` of schema `GAINS`."""
    found = {kind: _correlations(pivot(gains, entries, kind, "scaled_gain")) for kind, entries in _ENTRIES.items()}
    for kind, entries in _ENTRIES.items():
        found[f"model_by_{kind}"] = _correlations(_triangles(gains, kind, entries))
    return found


def similarity_rows(found: dict[str, tuple[Matrix, Matrix]]) -> pa.Table:
    """Every ordered pair of every kind, of schema `RELEASED_SIMILARITY`."""
    rows = [
        {"kind": kind, "a": a, "b": b, "r": r.values[i, j], "n": int(n.values[i, j])}
        for kind, (r, n) in found.items()
        for i, a in enumerate(r.rows)
        for j, b in enumerate(r.columns)
    ]
    return from_rows(rows, RELEASED_SIMILARITY)


def clusterings(found: dict[str, tuple[Matrix, Matrix]]) -> dict[str, Clustering]:
    """Kind -> average linkage on 1 - r."""
    return {kind: cluster(r) for kind, (r, _) in found.items()}


def _triangles(gains: pa.Table, kind: str, entries: tuple[str, ...]) -> Matrix:
    """Pairs of tasks (or datasets) x models: each model's own correlation of every pair."""
    names = sorted(set(gains[kind].to_pylist()))
    models = sorted(set(gains["model"].to_pylist()))
    pairs = [(a, b) for at, a in enumerate(names) for b in names[:at]]
    values = np.full((len(pairs), len(models)), np.nan)
    for column, model in enumerate(models):
        r, _ = _correlations(pivot(gains.filter(pc.equal(gains["model"], model)), entries, kind, "scaled_gain"))
        place = {name: at for at, name in enumerate(r.rows)}
        for row, (a, b) in enumerate(pairs):
            if a in place and b in place:
                values[row, column] = r.values[place[a], place[b]]
    return Matrix(tuple(f"{a} / {b}" for a, b in pairs), tuple(models), values)


def _correlations(vectors: Matrix) -> tuple[Matrix, Matrix]:
    """r and n of every pair of columns, pairwise complete."""
    size = len(vectors.columns)
    r: Reals = np.full((size, size), np.nan)
    n: Reals = np.zeros((size, size))
    for i in range(size):
        for j in range(i + 1):
            r[i, j], n[i, j], _ = pearson(vectors.values[:, i], vectors.values[:, j])
            r[j, i], n[j, i] = r[i, j], n[i, j]
    return Matrix(vectors.columns, vectors.columns, r), Matrix(vectors.columns, vectors.columns, n)
