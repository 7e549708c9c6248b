"""How far the weights of a model in memory have moved from its base's, measured where they are trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import torch

from raysft.models.layers import architecture_of, layer_count
from raysft.models.methods import Tuned
from raysft.probes.weights.adapters import Adapter, adapter_updates, embedding_adapter
from raysft.probes.weights.dense_update import dense_update, frobenius_norm
from raysft.probes.weights.measures import weight_change_table
from raysft.probes.weights.rows import weights_in_memory


@torch.no_grad()
def weight_change(tuned: Tuned) -> pa.Table:
    """Change of every tensor of a full fine-tuning, or of the adapted ones of LoRA, from the weights that are trained.

    A table of `schema.WEIGHT_CHANGE`. Norms of the base are kept with it, for its next checkpoint.

    Raises:
        WeightsError: a weight is not finite, or DoRA adapts an embedding.
    """
    base, device = tuned.base, next(tuned.model.parameters()).device
    architecture = architecture_of(base.model.config.to_dict())
    original = weights_in_memory(base.original, architecture)

    def base_norm(name: str) -> float:
        if name not in base.norms:
            base.norms[name] = frobenius_norm(name, original[name], device)
        return base.norms[name]

    if tuned.method.kind == "lora":
        adapters = (part for adapter in _adapters(tuned) for part in adapter.parts(architecture))
        measured = list(adapter_updates(original, adapters, base_norm, device))
    else:
        trained = weights_in_memory(dict(tuned.model.named_parameters()), architecture)
        measured = [dense_update(name, original[name], rows, device) for name, rows in trained.items()]
    return weight_change_table(measured, layer_count(original), architecture.family)


def _adapters(tuned: Tuned) -> Iterator[Adapter]:
    adapter: Any = "default"
    for name, module in tuned.lora_modules():
        weight, scaling = f"{name}.weight", module.scaling[adapter]
        if adapter in module.lora_embedding_A:
            a, b = module.lora_embedding_A[adapter], module.lora_embedding_B[adapter]
            yield embedding_adapter(weight, a, b, scaling, tuned.method.dora)
            continue
        a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        magnitude = module.lora_magnitude_vector[adapter].weight if tuned.method.dora else None
        yield Adapter(weight, a, b, scaling, magnitude)
