"""How far every tensor has moved from the base: ||W' - W||_F / ||W||_F, from the fp32 weights that were trained."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import torch

from raysft.models.layers import layer_count, place_of
from raysft.models.methods import Tuned
from raysft.store.probe_schemas import WEIGHT_CHANGE


@torch.no_grad()
def weight_change(tuned: Tuned) -> pa.Table:
    """Change of every tensor that could move: all of a full fine-tuning, the adapted ones of LoRA.

    A table of `schema.WEIGHT_CHANGE`.
    """
    original = tuned.base.original
    layers = layer_count(original)
    measure = _adapter_changes(tuned) if tuned.method.kind == "lora" else _full_changes(tuned)
    rows = []
    for name, change, zeros in measure:
        base = original[name]
        base_norm = float(torch.linalg.vector_norm(base, dtype=torch.float64))
        place = place_of(name, layers)
        rows.append(
            {
                "tensor": name,
                "module": place.module,
                "layer": place.layer,
                "depth": place.depth,
                "parameters": base.numel(),
                "base_norm": base_norm,
                "change_norm": change,
                "relative_change": change / base_norm if base_norm > 0 else None,
                "zero_fraction": zeros,
                "dtype": str(base.dtype).removeprefix("torch."),
            }
        )
    return pa.Table.from_pylist(rows, schema=WEIGHT_CHANGE)


def low_rank_norm(a: torch.Tensor, b: torch.Tensor, scaling: float) -> float:
    """||s B A||_F from r x r matrices: s * sqrt(sum((B^T B) * (A A^T))), in fp64, without forming B A.

    `a` is (r, inputs), `b` is (outputs, r).
    """
    a, b = a.double(), b.double()
    return abs(scaling) * float(torch.sqrt(((b.T @ b) * (a @ a.T)).sum().clamp_min(0)))


def dora_norm(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float, magnitude: torch.Tensor) -> float:
    """||m V / ||V|| - W||_F with V = W + s B A, norms taken for each output (Liu et al. 2024, equation 5); in fp64."""
    weight = weight.double().to(a.device)
    direction = weight + scaling * (b.double() @ a.double())
    scale = magnitude.double() / torch.linalg.vector_norm(direction, dim=1)
    return float(torch.linalg.vector_norm(scale[:, None] * direction - weight))


def _full_changes(tuned: Tuned) -> list[tuple[str, float, float | None]]:
    changes: list[tuple[str, float, float | None]] = []
    for name, parameter in tuned.model.named_parameters():
        if parameter.requires_grad:
            difference = parameter.float() - tuned.base.original[name].float()
            norm = float(torch.linalg.vector_norm(difference, dtype=torch.float64))
            changes.append((name, norm, float((difference == 0).double().mean())))
    return changes


def _adapter_changes(tuned: Tuned) -> list[tuple[str, float, float | None]]:
    changes: list[tuple[str, float, float | None]] = []
    for name, module in tuned.lora_modules():
        adapter: Any = "default"
        a, b, scaling = module.lora_A[adapter].weight, module.lora_B[adapter].weight, module.scaling[adapter]
        weight = f"{name}.weight"
        if tuned.method.dora:
            magnitude = module.lora_magnitude_vector[adapter].weight
            changes.append((weight, dora_norm(tuned.base.original[weight], a, b, scaling, magnitude), None))
        else:
            changes.append((weight, low_rank_norm(a, b, scaling), None))
    return changes
