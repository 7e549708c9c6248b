"""What is measured of a tensor's update, and the rows that come of it: of tensors, layers, module kinds, the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import torch

from raysft.models.layers import Place, module_of, place_of
from raysft.store.probe_schemas import WEIGHT_CHANGE

_T = TypeVar("_T")
_K = TypeVar("_K", bound=Hashable)

RANK = 8  # leading singular values
_ROUNDING = 1e-5  # of the largest singular value, in fp32
LOW_PRECISION = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")


class WeightsError(ValueError):
    """Weights that cannot be measured, or not beside those of that base."""


@dataclass(frozen=True)
class Measured:
    """Measures of one tensor under its canonical name; what was not asked for, or has no meaning for it, is None.

    `sketch` is (WIDTH,), `left` and `right` are (DIRECTION_WIDTH, DIRECTIONS) of `raysft.probes.weights.sketches`.
    `base_dtype` is that of the base's tensor, `dtype` that of the tuned weights, or of LoRA matrices if `is_low_rank`.
    """

    name: str
    parameters: int
    base_norm: float
    change_norm: float
    mean_absolute_change: float
    dtype: str
    base_dtype: str | None = None
    zero_fraction: float | None = None
    is_low_rank: bool = False
    singular_values: list[float] | None = None
    sketch: torch.Tensor | None = None
    left: torch.Tensor | None = None
    right: torch.Tensor | None = None
    rows_left_out: int = 0

    @property
    def stable_rank(self) -> float | None:
        """||D||_F^2 / s_1^2 (Rudelson and Vershynin 2007); None where no singular value is known, or nothing moved."""
        first = self.singular_values[0] if self.singular_values else 0.0
        return max(1.0, (self.change_norm / first) ** 2) if first > 0 else None


def leading(values: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Singular vectors, the columns, with those of values that are nothing but rounding set to zero."""
    told = values > _ROUNDING * values.max()
    return vectors * told.to(vectors.dtype)


@dataclass(frozen=True)
class _Placed:
    measured: Measured
    place: Place


def weight_change_table(measured: Sequence[Measured], layers: int, family: str = "") -> pa.Table:
    """Rows of every tensor, then of every layer, module kind and the model, as a table of `schema.WEIGHT_CHANGE`.

    `layers` is the height of the stack, `family` the model_type of its configuration.
    """
    placed = [_Placed(one, place_of(one.name, layers, family)) for one in measured]
    placed.sort(key=lambda one: (one.place.layer is None, one.place.layer, one.measured.name))
    rows = [_tensor_row(one) for one in placed]
    for _, members in _grouped(placed, lambda one: one.place.layer):
        place = members[0].place
        sketches = [one.measured.sketch for one in members if one.measured.sketch is not None]
        total = torch.stack([sketch.double().cpu() for sketch in sketches]).sum(dim=0) if sketches else None
        level = "layer" if place.layer is not None else "outside"
        rows.append(
            {**_pooled_row(members, level), "layer": place.layer, "depth": place.depth, "sketch": _listed(total)}
        )
    inside = [one for one in placed if one.place.layer is not None]
    for kind, members in _grouped(inside, lambda one: one.place.module):
        rows.append({**_pooled_row(members, "module"), "module": kind})
    rows.append(_pooled_row(placed, "model"))
    return pa.Table.from_pylist(rows, schema=WEIGHT_CHANGE)


def _tensor_row(one: _Placed) -> dict[str, Any]:
    measured, place = one.measured, one.place
    return {
        "level": "tensor",
        "tensor": measured.name,
        "module": place.module,
        "layer": place.layer,
        "depth": place.depth,
        "tensors": 1,
        "parameters": measured.parameters,
        "base_norm": measured.base_norm,
        "change_norm": measured.change_norm,
        "relative_change": _ratio(measured.change_norm, measured.base_norm),
        "mean_absolute_change": measured.mean_absolute_change,
        "stable_rank": measured.stable_rank,
        "singular_values": measured.singular_values,
        "zero_fraction": measured.zero_fraction,
        "dtype": measured.dtype,
        "base_dtype": measured.base_dtype,
        "low_precision": _is_low(measured),
        "rows_left_out": measured.rows_left_out,
        "left_directions": _listed(measured.left),
        "right_directions": _listed(measured.right),
    }


def _pooled_row(members: Sequence[_Placed], level: str) -> dict[str, Any]:
    parts = [one.measured for one in members]
    parameters = sum(part.parameters for part in parts)
    entries = max(1, parameters)  # a tensor may have none
    base, change = _root(part.base_norm for part in parts), _root(part.change_norm for part in parts)
    by_module = [
        _ratio(_root(part.change_norm for part in own), _root(part.base_norm for part in own))
        for _, own in _grouped(parts, lambda part: module_of(part.name))
    ]
    ratios = [ratio for ratio in by_module if ratio is not None]
    zeros = [part.zero_fraction for part in parts]
    known = [zero * part.parameters for zero, part in zip(zeros, parts, strict=True) if zero is not None]
    dtypes = {part.dtype for part in parts}
    return {
        "level": level,
        "tensors": len(parts),
        "parameters": parameters,
        "base_norm": base,
        "change_norm": change,
        "relative_change": _ratio(change, base),
        "mean_relative_change": math.fsum(ratios) / len(ratios) if ratios else None,
        "mean_absolute_change": math.fsum(part.mean_absolute_change * part.parameters for part in parts) / entries,
        "zero_fraction": math.fsum(known) / entries if len(known) == len(parts) else None,
        "dtype": dtypes.pop() if len(dtypes) == 1 else None,
        "low_precision": any(_is_low(part) for part in parts),
        "rows_left_out": sum(part.rows_left_out for part in parts),
    }


def _is_low(measured: Measured) -> bool:
    return not measured.is_low_rank and measured.dtype in LOW_PRECISION


def _grouped(members: Sequence[_T], key: Callable[[_T], _K]) -> list[tuple[_K, list[_T]]]:
    groups: dict[_K, list[_T]] = {}
    for member in members:
        groups.setdefault(key(member), []).append(member)
    return list(groups.items())


def _root(norms: Iterable[float]) -> float:
    return math.sqrt(math.fsum(norm**2 for norm in norms))


def _ratio(change: float, base: float) -> float | None:
    return change / base if base > 0 else None


def _listed(values: torch.Tensor | None) -> list[float] | None:
    return None if values is None else values.float().reshape(-1).cpu().tolist()
