"""Small linear images of weight updates, from which cosines between any two updates of one base follow later.

The entry (i, j) of an update is added, with a sign, to one of `WIDTH` buckets: bucket h(i) + h'(j) modulo WIDTH, sign
s(i) s'(j), with hashes seeded by the tensor's canonical name. This is TensorSketch (Pham and Pagh 2013), a CountSketch
of the flattened update whose hash is made of one for rows and one for columns, so that the sketch of a product B A
follows from those of the factors by a circular convolution, and the product is never formed. Sketches are linear: those
of a layer's tensors add up to the layer's. For updates X and Y, <sketch X, sketch Y> is unbiased for <X, Y>, and with
E = |X|^2 |Y|^2 its variance is

    (E + <X, Y>^2 + |X^T Y|^2 + |X Y^T|^2 + tr (X^T Y)^2 + tr (X Y^T)^2) / WIDTH,

about E / WIDTH for unrelated updates of high rank, at most 6 E / WIDTH for any.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import numpy.typing as npt
import torch

WIDTH = 1024  # buckets: 4 KiB for a layer in fp32, a standard error of at most 0.031 for a cosine of high rank
_FEW = 1 << 16  # entries that are put into their buckets one by one
DIRECTIONS = 4  # leading singular directions whose sketches are kept, on either side
DIRECTION_WIDTH = 32  # buckets of one direction's sketch: 512 bytes for a side of a tensor


@functools.lru_cache(maxsize=64)
def signed_buckets(name: str, count: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(buckets, int64; signs, fp32) of `count` places, the same on every machine for the same name.

    Shapes (count,). Bits are those of SplitMix64 (Steele et al. 2014) at the places, seeded by the name's SHA-256.
    """
    seed = np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    bits = _mixed(seed + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    buckets = ((bits >> np.uint64(32)) * np.uint64(width)) >> np.uint64(32)
    signs = 1.0 - 2.0 * (bits & np.uint64(1)).astype(np.float32)
    return torch.from_numpy(buckets.astype(np.int64)), torch.from_numpy(signs)


def _mixed(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def count_sketch(name: str, vectors: torch.Tensor, width: int) -> torch.Tensor:
    """CountSketch (Charikar et al. 2002) of each column: (count, columns) to (width, columns)."""
    buckets, signs = (part.to(vectors.device) for part in signed_buckets(name, len(vectors), width))
    out = vectors.new_zeros(width, vectors.shape[1])
    return out.index_add_(0, buckets, vectors * signs.to(vectors.dtype)[:, None])


def directions_sketch(name: str, side: str, vectors: torch.Tensor) -> torch.Tensor:
    """Sketches of the first `DIRECTIONS` columns, (DIRECTION_WIDTH, DIRECTIONS); zero where there are fewer."""
    kept = count_sketch(f"{name} {side}", vectors[:, :DIRECTIONS], DIRECTION_WIDTH)
    return torch.nn.functional.pad(kept, (0, DIRECTIONS - kept.shape[1]))


def low_rank_sketch(name: str, b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Sketch of b a from its factors, (WIDTH,) fp64: the sum over r of circular convolutions. b (m, r), a (r, n)."""
    rows = count_sketch(f"{name} rows", b.double(), WIDTH)
    columns = count_sketch(f"{name} columns", a.double().T, WIDTH)
    spectrum = (torch.fft.rfft(rows, dim=0) * torch.fft.rfft(columns, dim=0)).sum(dim=1)
    return torch.fft.irfft(spectrum, n=WIDTH)


class DenseSketch:
    """Sketch of an update of shape (rows, columns) that comes in blocks of rows."""

    def __init__(self, name: str, rows: int, columns: int, device: torch.device) -> None:
        self._rows = [part.to(device) for part in signed_buckets(f"{name} rows", rows, WIDTH)]
        self._columns = [part.to(device) for part in signed_buckets(f"{name} columns", columns, WIDTH)]
        # Rows are added up by bucket first, unless there are too few for that to save anything.
        self._total = torch.zeros(min(rows, WIDTH), columns, device=device)

    def add(self, low: int, block: torch.Tensor) -> None:
        """Add rows `low` and following, (count, columns)."""
        buckets, signs = (part[low : low + len(block)] for part in self._rows)
        if len(self._total) < WIDTH:
            self._total[low : low + len(block)] = block * signs[:, None]
        else:
            self._total.index_add_(0, buckets, block.to(self._total.dtype) * signs[:, None])

    def result(self) -> torch.Tensor:
        """The sketch, (WIDTH,) fp64."""
        of_column, signs = self._columns
        of_row = self._rows[0] if len(self._total) < WIDTH else torch.arange(WIDTH, device=signs.device)
        signed = self._total * signs
        if signed.numel() <= _FEW:
            places = (of_row[:, None] + of_column[None, :]) % WIDTH
            return torch.bincount(places.reshape(-1), signed.double().reshape(-1), minlength=WIDTH)
        table = signed.new_zeros(WIDTH, len(signed)).index_add_(0, of_column, signed.T.contiguous())
        if len(signed) < WIDTH:
            table = signed.new_zeros(WIDTH, WIDTH).index_add_(0, of_row, table.T.contiguous())
        # Bucket t is the sum of all (g, t - g): each row of two tables side by side, read from one place further on.
        doubled = torch.cat([table, table], dim=1)
        turned = doubled.as_strided((WIDTH, WIDTH), (2 * WIDTH - 1, 1), WIDTH)
        return torch.stack([part.sum(dim=0).double() for part in turned.split(WIDTH // 8)]).sum(dim=0)
