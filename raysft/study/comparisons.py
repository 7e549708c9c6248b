"""Whether two similarity matrices over the same tasks, datasets or models agree (Mantel's test).

Compared are the gains' similarities of one variant with another's, of gains less their mean over datasets wherever what
two variants share would do: the error of a base model's score is in all gains from it on a task, and makes matrices of
tasks and of models agree where there is nothing else. Of models those by the triangles of tasks with those
by the triangles of datasets; and with the gains' similarities of models how near the base models' likelihoods are.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from raysft.study.gains import final_gains
from raysft.study.matrix import Matrix
from raysft.study.similarity import TRIANGLES, centred, correlation_matrix, gain_similarities
from raysft.study.statistics.mantel import mantel
from raysft.study.statistics.multiplicity import q_values
from raysft.study.statistics.schema import MATRIX_COMPARISONS
from raysft.study.tables import from_rows, select, texts

# what a matrix is over -> what one entry of its gain vectors is, within a variant
_ENTRIES = {"task": ("model", "dataset"), "dataset": ("model", "task"), "model": ("dataset", "task")}

Row = dict[str, Any]


def comparison_table(gains: pa.Table, similarity: pa.Table, map_distances: pa.Table) -> pa.Table:
    """Every comparison that can be made, of schema `MATRIX_COMPARISONS`; q is over all of them.

    Args:
        gains: the study's `gains`.
        similarity: the study's `similarity`.
        map_distances: the study's `map_distances`.
    """
    final = final_gains(gains)
    variants = sorted(set(texts(final, "variant")))
    similar = {
        (variant, kind): gain_similarities(ours if kind == "dataset" else centred(ours), kind, entries)
        for variant in variants
        for ours in (select(final, variant=variant),)
        for kind, entries in _ENTRIES.items()
    }
    rows = [
        _row(kind, f"{kind}: {a}", f"{kind}: {b}", similar[a, kind], similar[b, kind])
        for kind in _ENTRIES
        for a, b in combinations(variants, 2)
    ]
    if variants:
        (a, b), (first, second) = TRIANGLES, (correlation_matrix(similarity, kind) for kind in TRIANGLES)
        rows.append(_row("model", a, b, first, second))
    for variant in variants:
        nearness = _nearness(map_distances, similar[variant, "model"].rows)
        if np.isfinite(nearness.values).any():
            rows.append(
                _row("model", f"model: {variant}", "minus KL of base models", similar[variant, "model"], nearness)
            )
    for row, q in zip(rows, q_values(np.array([row["p"] for row in rows], dtype=np.float64)), strict=True):
        row["q"] = float(q)
    return from_rows(rows, MATRIX_COMPARISONS)


def _nearness(map_distances: pa.Table, models: tuple[str, ...]) -> Matrix:
    """Minus the distance of every two base models on the map; NaN where there is none."""
    at = {name: place for place, name in enumerate(models)}
    values = np.full((len(models),) * 2, np.nan)
    for a, b, distance in _base_pairs(map_distances):
        if a in at and b in at:
            values[at[a], at[b]] = values[at[b], at[a]] = -distance
    return Matrix(models, models, values)


def _base_pairs(map_distances: pa.Table) -> Iterator[tuple[str, str, float]]:
    for row in map_distances.select(["a", "b", "two_kl"]).to_pylist():
        if row["two_kl"] is not None:
            yield row["a"], row["b"], row["two_kl"]


def _row(kind: str, a: str, b: str, first: Matrix, second: Matrix) -> Row:
    shared = sorted(set(first.rows) & set(second.rows))
    x, y = (_of(matrix, shared) for matrix in (first, second))
    plain, ranks = mantel(x, y), mantel(x, y, ranks=True, permutations=0)
    return {
        "kind": kind,
        "a": a,
        "b": b,
        "n": plain.n,
        "r": plain.r,
        "spearman": ranks.r,
        "p": plain.p,
        "permutations": plain.permutations,
        "exact": plain.exact,
        "reason": plain.reason,
    }


def _of(matrix: Matrix, names: list[str]) -> np.ndarray:
    at = [matrix.rows.index(name) for name in names]
    return matrix.values[np.ix_(at, at)]
