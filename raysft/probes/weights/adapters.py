"""Updates that come as adapters: LoRA from its two matrices, DoRA (Liu et al. 2024) in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from raysft.models.layers import Architecture, parts_of
from raysft.probes.weights.dense_update import dense_update
from raysft.probes.weights.low_rank import low_rank_update
from raysft.probes.weights.measures import Measured, WeightsError
from raysft.probes.weights.rows import Rows, Weights, dtype_name


@dataclass(frozen=True)
class Adapter:
    """LoRA matrices of the tensor `name`: `a` (r, inputs), `b` (outputs, r), and DoRA's magnitudes (outputs,)."""

    name: str
    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    magnitude: torch.Tensor | None = None

    def parts(self, architecture: Architecture) -> Iterator[Adapter]:
        """The adapter under the tensor's canonical name; that of a fused projection as those of what it holds."""
        for part in parts_of(self.name, len(self.b), architecture):
            if part.outputs is None:
                yield replace(self, name=part.name)
                continue
            rows = torch.from_numpy(part.outputs).to(self.b.device)
            magnitude = None if self.magnitude is None else self.magnitude[rows]
            yield replace(self, name=part.name, b=self.b[rows], magnitude=magnitude)


def embedding_adapter(name: str, a: torch.Tensor, b: torch.Tensor, scaling: float, dora: bool) -> Adapter:
    """The adapter of an embedding from peft's matrices, `a` (r, vocabulary) and `b` (width, r): of its transpose.

    Raises:
        WeightsError: DoRA, whose magnitudes are here those of columns.
    """
    if dora:
        raise WeightsError(f"DoRA of {name}, an embedding, is not measured")
    return Adapter(name, b.T, a.T, scaling)  # (B A)^T = A^T B^T


def adapter_updates(
    base: Weights, adapters: Iterable[Adapter], base_norm: Callable[[str], float], device: torch.device
) -> Iterator[Measured]:
    """Changes by adapters under canonical names, all of them in the base; `base_norm` gives ||W||_F of a tensor."""
    for one in adapters:
        rows = base[one.name]
        if one.magnitude is not None:
            measured = dense_update(one.name, rows, DoraRows(rows, one, device), device)
            # Rows are made in fp64; what was trained are the matrices, and of them no entry of the weights stays.
            yield replace(measured, dtype=dtype_name(one.b.dtype), zero_fraction=None)
        else:
            a, b = one.a.to(device), one.b.to(device)
            yield low_rank_update(one.name, a, b, one.scaling, base_norm(one.name), dtype_name(rows.dtype))


class DoraRows:
    """Rows of m V / ||V|| with V = W + s B A, norms taken for each output (Liu et al. 2024, equation 5); in fp64."""

    dtype = torch.float64
    is_matrix = True

    def __init__(self, base: Rows, adapter: Adapter, device: torch.device) -> None:
        assert adapter.magnitude is not None
        self._base = base
        self._a = adapter.a.to(device).double()
        self._b = adapter.scaling * adapter.b.to(device).double()
        self._magnitude = adapter.magnitude.to(device).double()

    @property
    def shape(self) -> tuple[int, int]:
        return self._base.shape

    def read(self, low: int, high: int) -> torch.Tensor:
        weight = self._base.read(low, high).to(self._a.device).double()
        direction = weight + self._b[low:high] @ self._a
        scale = self._magnitude[low:high] / torch.linalg.vector_norm(direction, dim=1)
        return scale[:, None] * direction
