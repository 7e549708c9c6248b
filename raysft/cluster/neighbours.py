"""The exact neighbour table of more points than one process should hold: Ray tasks over shards of their rows.

Protocol. Shards lie in the object store. A first round of tasks sums each of them up; then one task a shard makes its
rows of the table, fetching the other shards one by one, with a bounded number of tasks in flight. A task holds two
shards and its own rows. Tasks are pure, so Ray may run one again. The rows are those of `neighbour_table` of all points
at once, bit for bit where processors are of one kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from raysft.probes.geometry.neighbours import Neighbours
from raysft.probes.geometry.neighbours_on_cpu import rows_on_cpu, scale_of

_MOST_POINTS = np.iinfo(np.int32).max


@dataclass(frozen=True)
class _Summary:
    """One shard: its shape, how many rows are not finite, and of each entry the sum, the least and the largest."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    unsound: int
    total: np.ndarray
    least: np.ndarray
    largest: np.ndarray


def sharded_neighbour_table(shards: Sequence[Any], k: int, cpus: float = 1, in_flight: int = 16) -> Neighbours:
    """The `k` nearest neighbours of each point of all `shards`, object references of fp32 or fp64 (rows, width).

    Indices count through the shards in their order. `cpus`: of each task; `in_flight`: tasks at a time, at most.

    Raises:
        ValueError: shards of several widths or dtypes, an entry that is not finite, or k not in 1 ... n - 1.
    """
    summarise = ray.remote(_summary).options(num_cpus=cpus)
    summaries = _bounded([(summarise, (shard,)) for shard in shards], in_flight)
    points = _checked(summaries, k)
    firsts = [0, *np.cumsum([summary.shape[0] for summary in summaries])[:-1].tolist()]
    mean = sum(summary.total for summary in summaries) / points
    reached = [np.maximum(summary.largest - mean, mean - summary.least).max() for summary in summaries]
    common = ray.put((list(zip(firsts, shards, strict=True)), k, mean, scale_of(float(max(reached)))))
    task = ray.remote(_rows).options(num_cpus=cpus)
    parts = _bounded([(task, (place, common)) for place in range(len(shards))], in_flight)
    indices, distances = zip(*parts, strict=True)
    return Neighbours(np.concatenate(indices), np.concatenate(distances))


def _bounded(calls: Sequence[tuple[Any, tuple[Any, ...]]], in_flight: int) -> list[Any]:
    """Results of remote calls in their order, `in_flight` of them at a time."""
    results: dict[int, Any] = {}
    running: dict[Any, int] = {}
    for place, (task, arguments) in enumerate(calls):
        if len(running) >= in_flight:
            done, _ = ray.wait(list(running), num_returns=1)
            results[running.pop(done[0])] = ray.get(done[0])
        running[task.remote(*arguments)] = place
    for reference, place in running.items():
        results[place] = ray.get(reference)
    return [results[place] for place in range(len(calls))]


def _summary(points: np.ndarray) -> _Summary:
    unsound = int((~np.isfinite(points).all(axis=tuple(range(1, points.ndim)))).sum())
    total = points.sum(axis=0, dtype=np.float64)
    if not len(points):
        return _Summary(points.shape, points.dtype, unsound, total, total + np.inf, total - np.inf)
    return _Summary(points.shape, points.dtype, unsound, total, points.min(axis=0), points.max(axis=0))


def _checked(summaries: Sequence[_Summary], k: int) -> int:
    """The number of points; ValueError if they make no table."""
    kinds = {f"{summary.dtype} {summary.shape[1:]}" for summary in summaries}
    sound = all(summary.dtype in (np.float32, np.float64) and len(summary.shape) == 2 for summary in summaries)
    if len(kinds) != 1 or not sound:
        found = ", ".join(sorted(kinds)) or "none"
        raise ValueError(f"shards must all be fp32, or all fp64, of one shape (rows, width), found rows of {found}")
    for place, summary in enumerate(summaries):
        if summary.unsound:
            raise ValueError(f"shard {place}: {summary.unsound} of {summary.shape[0]} points are not all finite")
    points = sum(summary.shape[0] for summary in summaries)
    if points > _MOST_POINTS or not 1 <= k < points:
        raise ValueError(f"k must be in 1 ... {points - 1} for {points} points, at most {_MOST_POINTS}, found {k}")
    return points


def _rows(place: int, common: tuple[Any, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Indices and distances of the rows of one shard."""
    placed, k, mean, scale = common
    first, own = placed[place]
    others = ((start, ray.get(shard)) for start, shard in placed)
    return rows_on_cpu(ray.get(own), first, others, k, mean, scale)
