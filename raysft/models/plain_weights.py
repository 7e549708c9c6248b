"""A model's weights as a folder that others load: adapters merged, and without what peft put around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_plain(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write configuration and safetensors of a model whose adapters are merged, its matrices as `dtype`.

    Vectors stay as they are: some, such as the biases of a router, are small numbers that are meant in fp32.
    """
    model.save_pretrained(folder, safe_serialization=True, state_dict=_plain(model, dtype))


def _plain(model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors that are tied stay so."""
    plain: dict[str, torch.Tensor] = {}
    converted: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if ".lora_" in name:
            continue
        place = tensor.data_ptr(), tensor.shape
        if place not in converted:
            matrix = tensor.is_floating_point() and tensor.ndim > 1
            converted[place] = tensor.detach().to(dtype) if matrix else tensor.detach()
        plain[name.replace(".base_layer.", ".")] = converted[place]
    return plain
