"""Where the weights of a model lie, read as rows: tensors in memory, or those of files, by their canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from raysft.models.layers import Architecture, is_buffer, parts_of, place_of


class Rows(Protocol):
    """A tensor as a matrix of one row for each output; a vector has one column, and of three dimensions two are one."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def is_matrix(self) -> bool:
        """Whether the tensor has two dimensions, so that singular values mean something."""

    def read(self, low: int, high: int) -> torch.Tensor:
        """Rows from `low` up to `high`, (high - low, columns), in the dtype in which they lie."""


Weights = Mapping[str, Rows]


@dataclass(frozen=True)
class Layout:
    """How a tensor of `sizes` gives the rows of one canonical tensor.

    `outputs`: indices of its outputs, None for all; `transposed`: outputs are its columns.
    """

    sizes: tuple[int, ...]
    outputs: npt.NDArray[np.int64] | None = None
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        rows, columns = self._whole
        return (rows if self.outputs is None else len(self.outputs)), columns

    @property
    def _whole(self) -> tuple[int, int]:
        if len(self.sizes) < 2:
            return int(np.prod(self.sizes)), 1
        rows, columns = int(np.prod(self.sizes[:-1])), self.sizes[-1]
        return (columns, rows) if self.transposed else (rows, columns)

    def rows(self, tensor: torch.Tensor, low: int, high: int) -> torch.Tensor:
        """The rows from `low` up to `high`, a view where they lie together."""
        matrix = tensor.T if self.transposed else tensor.reshape(-1, self._whole[1])
        if self.outputs is None:
            return matrix[low:high]
        chosen = self.outputs[low:high]
        if chosen[-1] - chosen[0] == len(chosen) - 1:
            return matrix[int(chosen[0]) : int(chosen[-1]) + 1]
        return matrix[torch.from_numpy(chosen).to(matrix.device)]


def layouts_of(name: str, sizes: tuple[int, ...], architecture: Architecture) -> dict[str, Layout]:
    """Canonical name -> layout, of each tensor that the tensor `name` is or holds; empty for a buffer."""
    if is_buffer(name):
        return {}
    is_linear = len(sizes) == 2 and place_of(name, 1, architecture.family).layer is not None
    transposed = architecture.transposed and is_linear
    outputs = sizes[-1] if transposed else sizes[0] if sizes else 1
    parts = parts_of(name, outputs if len(sizes) in (1, 2) else 0, architecture)
    return {part.name: Layout(sizes, part.outputs, transposed) for part in parts}


@dataclass(frozen=True)
class TensorRows:
    """Rows of a tensor in memory."""

    tensor: torch.Tensor
    layout: Layout

    @property
    def shape(self) -> tuple[int, int]:
        return self.layout.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def is_matrix(self) -> bool:
        return self.tensor.dim() == 2

    def read(self, low: int, high: int) -> torch.Tensor:
        return self.layout.rows(self.tensor, low, high)


def weights_in_memory(tensors: Mapping[str, torch.Tensor], architecture: Architecture) -> dict[str, TensorRows]:
    """Rows of tensors by canonical name."""
    return {
        part: TensorRows(tensor.detach(), layout)
        for name, tensor in tensors.items()
        for part, layout in layouts_of(name, tuple(tensor.shape), architecture).items()
    }


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
