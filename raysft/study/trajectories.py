"""How fine-tunings move through the space of log-likelihood vectors, from measured epoch to measured epoch.

A trial starts at its base, epoch 0. Lengths are ||q_j - q_i||^2 / N, about twice the KL divergence per text.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa

from raysft.study.schema import TRAJECTORIES
from raysft.study.tables import Reals, from_rows

Row = dict[str, object]


def trajectory_table(subjects: pa.Table, vectors: Reals) -> pa.Table:
    """A row for each step of each trial, of schema `TRAJECTORIES`.

    Args:
        subjects: identity columns and `variant` of the rows of `vectors`.
        vectors: centred log-likelihood vectors, shape (models, texts).
    """
    rows = subjects.to_pylist()
    base_at = {row["model"]: place for place, row in enumerate(rows) if row["trial"] is None}
    trials: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        if row["trial"] is not None:
            trials[row["trial"]].append(place)
    found: list[Row] = []
    for places in trials.values():
        places.sort(key=lambda place: rows[place]["epoch"])
        start = base_at.get(rows[places[0]]["model"])
        found += _steps(rows, vectors, places if start is None else [start, *places])
    return from_rows(found, TRAJECTORIES)


def _steps(rows: list[Row], vectors: Reals, places: list[int]) -> list[Row]:
    """The steps of one trial through `places`, in the order of its epochs."""
    path = vectors[places]
    moves, total = np.diff(path, axis=0), path[-1] - path[0]
    texts = vectors.shape[1]
    lengths = np.linalg.norm(moves, axis=1)
    travelled = np.cumsum(lengths)
    steps = []
    for step, move in enumerate(moves):
        from_start = path[step + 1] - path[0]
        steps.append(
            {
                **rows[places[step + 1]],
                "from_epoch": rows[places[step]]["epoch"],
                "two_kl": float(move @ move) / texts,
                "from_start": float(from_start @ from_start) / texts,
                "cosine_to_previous": _cosine(move, moves[step - 1]) if step else np.nan,
                "cosine_to_total": _cosine(move, total),
                "straightness": _over(float(np.linalg.norm(from_start)), float(travelled[step])),
            }
        )
    return steps


def _cosine(first: Reals, second: Reals) -> float:
    return _over(float(first @ second), float(np.linalg.norm(first) * np.linalg.norm(second)))


def _over(part: float, whole: float) -> float:
    return part / whole if whole > 0 else np.nan
