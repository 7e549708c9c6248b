"""The exact neighbour table on a CPU: threads share tiles of fp32 products, and compiled kernels what is in them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from raysft.probes.geometry.neighbour_kernels import (
    Kept,
    Points,
    offer_columns,
    offer_rows,
    refine_rows,
    relative_slack,
)

BLOCK = 1024  # rows and columns of a tile: 4 MiB of products, which stay in cache
_REFINED = 128  # rows that a thread refines at a time

Table = tuple[np.ndarray, np.ndarray]  # indices int32 (n, k), distances fp64 (n, k)


def table_on_cpu(points: np.ndarray, k: int, block: int = BLOCK) -> Table:
    """The `k` nearest neighbours of each of finite `points` (n, width); each tile serves its rows and its columns."""
    mean = points.mean(axis=0, dtype=np.float64)
    whole = _prepared(points, mean, scale_of(reach(points, mean)), 0)
    kept = _empty_table(len(points), k)
    _offer_triangle(whole, kept, block)
    _refine(whole, whole, kept)
    return kept.found, np.sqrt(kept.squares)


def rows_on_cpu(
    own: np.ndarray,
    first: int,
    shards: Iterable[tuple[int, np.ndarray]],
    k: int,
    mean: np.ndarray,
    scale: float,
    block: int = BLOCK,
) -> Table:
    """The rows of the table that are `own`, a shard of its points; equal to those of `table_on_cpu` of all points.

    `shards`: (index of the first point, points) of every shard, `own` among them, which is looked at one by one;
    `first`: index of the first of `own`; `mean` and `scale` the same for all shards, or bounds mean nothing.
    """
    rows = _prepared(own, mean, scale, first)
    kept = _empty_table(len(own), k)
    for start, points in shards:
        others = rows if start == first else _prepared(points, mean, scale, start)
        _offer_shard(rows, others, kept, block)
        _refine(rows, others, kept)
    return kept.found, np.sqrt(kept.squares)


def reach(points: np.ndarray, mean: np.ndarray) -> float:
    """Largest absolute entry of points less `mean`."""
    parts = (points[start : start + BLOCK] for start in range(0, len(points), BLOCK))
    return max((float(np.abs(part - mean).max(initial=0.0)) for part in parts), default=0.0)


def scale_of(largest: float) -> float:
    """The power of two that brings the largest entry of all centred points into [1/2, 1); 1 if all are zero."""
    return 2.0 ** -math.frexp(largest)[1] if largest > 0 else 1.0


def _prepared(points: np.ndarray, mean: np.ndarray, scale: float, first: int) -> Points:
    given = np.ascontiguousarray(points)
    centred = np.empty(given.shape, np.float32)
    norms = np.empty(len(given))
    for start in range(0, len(given), BLOCK):
        rows = slice(start, start + BLOCK)
        centred[rows] = (given[rows] - mean) * scale
        norms[rows] = np.einsum("ij,ij->i", centred[rows], centred[rows], dtype=np.float64)
    slack = relative_slack(given.shape[1])
    near = ((1 - slack) * norms).astype(np.float32)
    return Points(given, centred, norms.astype(np.float32), near, np.float32(2 * slack), scale * scale, first)


def _empty_table(rows: int, k: int) -> Kept:
    room = max(4 * k, 256)
    return Kept(
        waiting=np.empty((rows, room), np.int32),
        lower=np.empty((rows, room), np.float32),
        count=np.zeros(rows, np.int64),
        cut=np.full(rows, np.inf, np.float32),
        found=np.full((rows, k), np.iinfo(np.int32).max, np.int32),
        squares=np.full((rows, k), np.inf),
    )


def _offer_triangle(points: Points, kept: Kept, block: int) -> None:
    """Offer every pair of points to both, tile by tile of the upper triangle of all products."""
    starts = range(0, len(points.norms), block)
    # Diagonal after diagonal, so that threads at work at the same time seldom meet in a block of rows.
    tiles = iter([(i, i + offset) for offset in range(len(starts)) for i in range(len(starts) - offset)])
    locks = [threading.Lock() for _ in starts]

    def work() -> None:
        space = np.empty(block * block, np.float32)
        for upper, across in tiles:
            top, left = starts[upper], starts[across]
            tile = _products(points, top, points, left, block, space)
            with locks[upper]:
                offer_columns(tile, top, left, points, points, kept)
            if upper != across:
                with locks[across]:
                    offer_rows(tile, top, left, points, kept)

    _on_threads(work)


def _offer_shard(rows: Points, others: Points, kept: Kept, block: int) -> None:
    """Offer every one of `others` to each of `rows`; a block of rows belongs to one thread."""
    tops = iter(range(0, len(rows.norms), block))

    def work() -> None:
        space = np.empty(block * block, np.float32)
        for top in tops:
            for left in range(0, len(others.norms), block):
                tile = _products(rows, top, others, left, block, space)
                offer_columns(tile, top, left, rows, others, kept)

    _on_threads(work)


def _refine(rows: Points, others: Points, kept: Kept) -> None:
    """Turn what waits in `kept` for `rows`, which are indices into `others`, into exact neighbours."""
    starts = iter(range(0, len(rows.norms), _REFINED))

    def work() -> None:
        for start in starts:
            refine_rows(start, min(start + _REFINED, len(rows.norms)), rows, others, kept)

    _on_threads(work)


def _products(rows: Points, top: int, others: Points, left: int, block: int, space: np.ndarray) -> np.ndarray:
    """Products of a block of `rows` with a block of `others`, fp32, written into `space`."""
    first, second = rows.centred[top : top + block], others.centred[left : left + block]
    tile = space[: len(first) * len(second)].reshape(len(first), len(second))
    return np.matmul(first, second.T, out=tile)


def _on_threads(work: Callable[[], None]) -> None:
    """Run `work` on as many threads as BLAS would use, each with a BLAS of one."""
    threads = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work) for _ in range(threads)]:
            done.result()
