"""Which tasks, datasets and models react alike: correlations of their gain vectors, and clusters of them.

Two models may gain differently and yet agree on which tasks go together. So models are compared by the lower triangles
of their own similarity matrices too, of tasks and of datasets. Neighbouring entries of a triangle share a task, so a p
of such an r is Mantel's, never Pearson's.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from raysft.study.association import pearson
from raysft.study.gains import final_gains
from raysft.study.matrix import Matrix, pivot
from raysft.study.schema import LINKAGE, SIMILARITY
from raysft.study.tables import Reals, from_rows, real_array, reals, select, texts

# kind -> what one entry of its gain vectors is
ENTRIES: dict[str, tuple[str, ...]] = {
    "task": ("trial",),
    "dataset": ("model", "variant", "seed", "task"),
    "model": ("dataset", "variant", "seed", "task"),
}
TRIANGLES = {"model_by_task": "task", "model_by_dataset": "dataset"}
KINDS = (*ENTRIES, *TRIANGLES)


@dataclass(frozen=True)
class Clustering:
    """An average linkage: `merges` has shape (names - 1, 4) as scipy's; `skipped` says who is not in it and why."""

    names: tuple[str, ...]
    merges: Reals
    skipped: dict[str, str]


def similarity_table(gains: pa.Table) -> pa.Table:
    """Pearson's r of every ordered pair of tasks, datasets and models, of schema `SIMILARITY`.

    A task's vector has one entry for each trial; a dataset's one for each (model, variant, seed, task); a model's one
    for each (dataset, variant, seed, task), or for each pair of tasks or of datasets. Only entries that both vectors
    have count.
    """
    final = final_gains(gains)
    vectors = {kind: pivot(final, entries, kind, "scaled_gain") for kind, entries in ENTRIES.items()}
    vectors |= {kind: _triangles(final, over) for kind, over in TRIANGLES.items()}
    return from_rows([row for kind, found in vectors.items() for row in _pairs(kind, found)], SIMILARITY)


def gain_similarities(final: pa.Table, over: str, entries: tuple[str, ...]) -> Matrix:
    """Pearson's r of the mean gain vectors of every two tasks, datasets or models; `entries` is what one entry is."""
    vectors = pivot(final, entries, over, "scaled_gain")
    values = np.ones((len(vectors.columns),) * 2)
    for i, j in combinations(range(len(values)), 2):
        values[i, j] = values[j, i] = pearson(vectors.values[:, i], vectors.values[:, j])[0]
    return Matrix(vectors.columns, vectors.columns, values)


def centred(final: pa.Table) -> pa.Table:
    """Gains less their mean over datasets, of each variant, model and task.

    The error of a base model's score is in all its gains on a task: of two variants, or of two studies of one base, it
    makes similarities of tasks and of models agree where there is nothing else. Of datasets it moves all of them alike.
    """
    places = list(zip(*(texts(final, name) for name in ("variant", "model", "task")), strict=True))
    gains = reals(final, "scaled_gain")
    values: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for place, value in zip(places, gains, strict=True):
        values[place].append(value)
    mean = {place: float(np.mean(found)) for place, found in values.items()}
    left = gains - np.array([mean[place] for place in places])
    at = final.column_names.index("scaled_gain")
    return final.set_column(at, final.schema.field(at), real_array(left))


def _triangles(final: pa.Table, over: str) -> Matrix:
    """Pairs of tasks (or datasets) x models: each model's own correlation of every pair."""
    names, models = sorted(set(texts(final, over))), sorted(set(texts(final, "model")))
    at = {name: place for place, name in enumerate(names)}
    cube = np.full((len(names), len(names), len(models)), np.nan)
    for place, model in enumerate(models):
        own = pivot(select(final, model=model), ENTRIES[over], over, "scaled_gain")
        for i, a in enumerate(own.columns):
            for j, b in enumerate(own.columns[:i]):
                cube[at[a], at[b], place] = pearson(own.values[:, i], own.values[:, j])[0]
    below = np.tril_indices(len(names), -1)
    pairs = tuple(f"{names[i]} / {names[j]}" for i, j in zip(*below, strict=True))
    return Matrix(pairs, tuple(models), cube[below])


def _pairs(kind: str, vectors: Matrix) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for i, a in enumerate(vectors.columns):
        for j, b in enumerate(vectors.columns):
            # Lower index first, so that (a, b) and (b, a) are the same number to the last bit.
            left, right = sorted((i, j))
            r, n, reason = pearson(vectors.values[:, left], vectors.values[:, right])
            rows.append({"kind": kind, "a": a, "b": b, "r": r, "n": n, "reason": reason})
    return rows


def correlation_matrix(similarity: pa.Table, kind: str) -> Matrix:
    """The square matrix of r of one kind, NaN where undefined."""
    rows = similarity.filter(pa.array([value == kind for value in texts(similarity, "kind")], pa.bool_()))
    return pivot(rows, ["a"], "b", "r")


def cluster(correlations: Matrix) -> Clustering:
    """Average linkage on 1 - r of a square correlation matrix.

    Names are left out one by one, the one with most undefined correlations first, until all that remain are defined.
    """
    kept = list(range(len(correlations.rows)))
    skipped: dict[str, str] = {}
    while kept:
        undefined = ~np.isfinite(correlations.values[np.ix_(kept, kept)])
        if not undefined.any():
            break
        worst = kept.pop(int(undefined.sum(axis=1).argmax()))
        skipped[correlations.rows[worst]] = "its gains are constant or share too few entries with another's"
    names = tuple(correlations.rows[index] for index in kept)
    if len(names) < 2:
        return Clustering(names, np.empty((0, 4)), skipped)
    distance = np.clip(1 - correlations.values[np.ix_(kept, kept)], 0, None)
    np.fill_diagonal(distance, 0)
    return Clustering(names, linkage(squareform(distance, checks=False), method="average"), skipped)


def linkage_table(clusterings: dict[str, Clustering]) -> pa.Table:
    """Every merge of every kind, of schema `LINKAGE`."""
    rows = [
        {
            "kind": kind,
            "step": step,
            "left": int(left),
            "right": int(right),
            "left_name": _leaf(found.names, int(left)),
            "right_name": _leaf(found.names, int(right)),
            "distance": float(distance),
            "count": int(count),
        }
        for kind, found in clusterings.items()
        for step, (left, right, distance, count) in enumerate(found.merges)
    ]
    return from_rows(rows, LINKAGE)


def _leaf(names: tuple[str, ...], node: int) -> str | None:
    return names[node] if node < len(names) else None
