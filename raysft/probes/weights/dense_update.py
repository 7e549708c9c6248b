"""What the difference of two weights is, in one pass over blocks of their rows, and its leading singular values.

Memory is that of a block, and of the difference as long as it has no more than `_HELD` bytes: then it is kept for the
passes that singular values need; a larger one is read again for each.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from raysft.probes.weights.measures import RANK, Measured, WeightsError, leading
from raysft.probes.weights.rows import Rows, dtype_name
from raysft.probes.weights.sketches import DenseSketch, directions_sketch

BLOCK = 1 << 18  # entries of a block: it stays in a core's cache while everything is computed of it
_HELD = 256 << 20  # bytes
_OVERSAMPLED = 12  # columns of the random start
_POWERS = 5  # multiplications by D^T D


@torch.no_grad()
def dense_update(
    name: str, base: Rows, tuned: Rows, device: torch.device, block: int = BLOCK, norms_only: bool = False
) -> Measured:
    """Measures of the difference of two tensors of as many columns; rows that only one has are left out.

    Differences are those of fp32, or of fp64 where either is; sums of squares are added in fp64. The result does not
    depend on `block`, the entries of a block, beyond rounding. `norms_only` leaves out singular values and sketches.

    Raises:
        WeightsError: a weight is not finite.
    """
    update = _Update(base, tuned, device, block)
    sketch = None if norms_only else DenseSketch(name, *update.shape, device)
    sums = update.sums(sketch, hold=not norms_only)
    if not (math.isfinite(sums.base) and math.isfinite(sums.change)):
        raise WeightsError(f"{name}: holds weights that are not finite")
    spectrum = None
    if not norms_only and base.is_matrix and min(update.shape) > 0:
        spectrum = _spectrum(name, update) if sums.change > 0 else _Spectrum([0.0] * min(RANK, *update.shape))
    entries = update.shape[0] * update.shape[1]
    return Measured(
        name=name,
        parameters=entries,
        base_norm=math.sqrt(sums.base),
        change_norm=math.sqrt(sums.change),
        mean_absolute_change=sums.absolute / entries if entries else 0.0,
        zero_fraction=1 - sums.changed / entries if entries else 0.0,
        dtype=dtype_name(tuned.dtype),
        base_dtype=dtype_name(base.dtype),
        singular_values=spectrum.values if spectrum else None,
        sketch=sketch.result() if sketch else None,
        left=directions_sketch(name, "left", spectrum.left) if spectrum and spectrum.left is not None else None,
        right=directions_sketch(name, "right", spectrum.right) if spectrum and spectrum.right is not None else None,
        rows_left_out=max(base.shape[0], tuned.shape[0]) - update.shape[0],
    )


@torch.no_grad()
def frobenius_norm(name: str, rows: Rows, device: torch.device, block: int = BLOCK) -> float:
    """||W||_F as `dense_update` has it of the base. WeightsError if a weight is not finite."""
    total = 0.0
    step = max(1, block // max(1, rows.shape[1]))
    for low in range(0, rows.shape[0], step):
        part = rows.read(low, min(low + step, rows.shape[0])).to(device)
        total += _squares(part.to(_compute_dtype(rows, rows)))
    if not math.isfinite(total):
        raise WeightsError(f"{name}: holds weights that are not finite")
    return math.sqrt(total)


@dataclass
class _Sums:
    """Sums over all entries: squares of base and difference, absolute differences, entries that changed."""

    base: float = 0.0
    change: float = 0.0
    absolute: float = 0.0
    changed: int = 0


@dataclass(frozen=True)
class _Spectrum:
    """Leading singular values, largest first, with their vectors as columns."""

    values: list[float]
    left: torch.Tensor | None = None
    right: torch.Tensor | None = None


class _Update:
    """The difference D of two tensors, of shape (rows, columns) that both have."""

    def __init__(self, base: Rows, tuned: Rows, device: torch.device, block: int) -> None:
        self.shape = (min(base.shape[0], tuned.shape[0]), base.shape[1])
        self.dtype = _compute_dtype(base, tuned)
        self.device = device
        self._base, self._tuned = base, tuned
        self._step = max(1, block // max(1, self.shape[1]))
        self._held: torch.Tensor | None = None

    def sums(self, sketch: DenseSketch | None, hold: bool) -> _Sums:
        """Everything that takes one pass; `hold` keeps the differences, if there are not too many."""
        held = None
        if hold and self.shape[0] * self.shape[1] * self.dtype.itemsize <= _HELD:
            held = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        sums = _Sums()
        for low, base, change in self._blocks():
            sums.base += _squares(base)
            sums.change += _squares(change)
            sums.absolute += float(change.abs().sum(dim=1).double().sum())
            sums.changed += int(torch.count_nonzero(change))
            if sketch is not None:
                sketch.add(low, change)
            if held is not None:
                held[low : low + len(change)] = change
        self._held = held
        return sums

    def times(self, vectors: torch.Tensor) -> torch.Tensor:
        """D X, (rows, count), for X (columns, count)."""
        if self._held is not None:
            return self._held @ vectors
        return torch.cat([change @ vectors for _, _, change in self._blocks()])

    def gram_times(self, vectors: torch.Tensor) -> torch.Tensor:
        """D^T D X, (columns, count), in one pass."""
        if self._held is not None:
            return self._held.T @ (self._held @ vectors)
        total = torch.zeros_like(vectors)
        for _, _, change in self._blocks():
            total += change.T @ (change @ vectors)
        return total

    def _blocks(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        for low in range(0, self.shape[0], self._step):
            high = min(low + self._step, self.shape[0])
            base = self._base.read(low, high).to(self.device).to(self.dtype)
            yield low, base, self._tuned.read(low, high).to(self.device).to(self.dtype) - base


def _spectrum(name: str, update: _Update) -> _Spectrum:
    """Leading singular values and vectors by randomised block Krylov iteration (Musco and Musco 2015), seeded by name.

    Values are those of D on a subspace, so that they never exceed the true ones.
    """
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[8:15], "little")
    start = torch.randn(update.shape[1], _OVERSAMPLED, generator=torch.Generator().manual_seed(seed))
    found = start.to(update.device, update.dtype)
    blocks = []
    for _ in range(_POWERS):
        found = update.gram_times(torch.linalg.qr(found).Q)
        blocks.append(found / torch.linalg.vector_norm(found, dim=0).clamp_min(torch.finfo(found.dtype).tiny))
    basis = torch.linalg.qr(torch.cat(blocks, dim=1)).Q
    image = update.times(basis).double()
    squares, turns = torch.linalg.eigh(image.T @ image)
    values = squares.clamp_min(0).sqrt().flip(0)[:RANK]
    turns = turns.flip(1)[:, :RANK]
    left = leading(values, image @ turns / values.clamp_min(torch.finfo(values.dtype).tiny))
    kept = min(len(values), *update.shape)
    return _Spectrum(values[:kept].tolist(), left[:, :kept], leading(values, basis.double() @ turns)[:, :kept])


def _squares(block: torch.Tensor) -> float:
    """Sum of squares: norms of rows in the block's dtype, added in fp64."""
    return float(torch.linalg.vector_norm(block, dim=1).double().square().sum())


def _compute_dtype(base: Rows, tuned: Rows) -> torch.dtype:
    return torch.float64 if torch.float64 in (base.dtype, tuned.dtype) else torch.float32
