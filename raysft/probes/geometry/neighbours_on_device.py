"""The exact neighbour table by torch, for devices other than a CPU: the bounds of `neighbour_kernels`, and `topk`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from raysft.probes.geometry.neighbour_kernels import TINY, relative_slack

_PRODUCTS = 1 << 28  # fp32 products at once: 1 GiB
_DIFFERENCES = 1 << 26  # fp64 differences at once: 512 MiB
_MARGIN = 8  # points beyond k that are computed in fp64 at first


@dataclass(frozen=True)
class _Points:
    """given (n, D); centred fp32 (n, D), scaled; near fp32 (n,): squared norms of `centred` less their slack."""

    given: torch.Tensor
    centred: torch.Tensor
    near: torch.Tensor
    scale2: float


def table_on_device(points: np.ndarray, k: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    """(indices int32 (n, k), distances fp64 (n, k)) of the `k` nearest neighbours of finite `points` (n, width).

    A row is proven when the smallest lower bound that was not computed in fp64 is above its k-th distance. The others
    are done again with four times the candidates, in the end with every point.
    """
    indices = np.empty((len(points), k), np.int32)
    distances = np.empty((len(points), k))
    with torch.inference_mode(), _full_precision():
        prepared = _prepared(torch.from_numpy(np.ascontiguousarray(points)).to(device))
        open_rows, candidates = torch.arange(len(points), device=device), k + _MARGIN
        while len(open_rows):
            candidates = min(candidates, len(points) - 1)
            unproven = []
            for rows in open_rows.split(max(1, _PRODUCTS // len(points))):
                found, squares, proven = _nearest(prepared, rows, k, candidates)
                done = rows[proven].cpu().numpy()
                indices[done] = found[proven].int().cpu().numpy()
                distances[done] = squares[proven].sqrt().cpu().numpy()
                unproven.append(rows[~proven])
            open_rows, candidates = torch.cat(unproven), 4 * candidates
    return indices, distances


def _prepared(given: torch.Tensor) -> _Points:
    mean = given.mean(dim=0, dtype=torch.float64)
    step = max(1, _DIFFERENCES // given.shape[1])
    largest = max(float((part - mean).abs().max()) for part in given.split(step))
    scale = 2.0 ** -math.frexp(largest)[1] if largest > 0 else 1.0
    centred = torch.empty(given.shape, dtype=torch.float32, device=given.device)
    norms = torch.empty(len(given), dtype=torch.float64, device=given.device)
    for source, part, norm in zip(given.split(step), centred.split(step), norms.split(step), strict=True):
        part.copy_((source - mean) * scale)
        norm.copy_(part.double().square_().sum(dim=1))
    near = ((1 - relative_slack(given.shape[1])) * norms).float()
    return _Points(given, centred, near, scale * scale)


def _nearest(
    points: _Points, rows: torch.Tensor, k: int, candidates: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(indices, squared distances, whether they are proven) of `rows`, from the lowest bounds of each."""
    lower = points.centred[rows] @ points.centred.T
    lower.mul_(-2).add_(points.near[rows].unsqueeze(1) + points.near)
    lower[torch.arange(len(rows), device=rows.device), rows] = math.inf
    bounds, chosen = lower.topk(candidates, dim=1, largest=False)
    del lower
    chosen = chosen.sort(dim=1).values  # so that the stable sort below leaves equal distances in order of index
    squares, order = _squares(points.given, rows, chosen).sort(dim=1, stable=True)
    found = chosen.gather(1, order[:, :k])
    proven = bounds[:, -1].double() > squares[:, k - 1] * points.scale2 + TINY
    if candidates == len(points.given) - 1:
        proven = torch.ones_like(proven)
    return found, squares[:, :k], proven


def _squares(given: torch.Tensor, rows: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Squared distances in fp64 of each of `rows` to its `chosen` points, of `chosen`'s shape."""
    step = max(1, _DIFFERENCES // (chosen.shape[1] * given.shape[1]))
    parts = []
    for own, others in zip(rows.split(step), chosen.split(step), strict=True):
        difference = given[others].double() - given[own].double().unsqueeze(1)
        parts.append(difference.square_().sum(dim=2))
    return torch.cat(parts)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products in fp32 proper, whatever the process allows elsewhere: the bounds hold for no less."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
