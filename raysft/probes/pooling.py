"""One vector of a text for each layer: hidden states pooled over its tokens while the forward pass runs.

Every layer's states are pooled as soon as they are there and forgotten, so that memory holds those of one layer,
however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from raysft.corpus.batching import length_groups, pad_rows
from raysft.corpus.tokenize import TokenisedRow
from raysft.spec.probes import Pooling


def pooling_weights(rows: Sequence[TokenisedRow], width: int, pooling: Pooling) -> torch.Tensor:
    """Share of each token in its row's vector: fp32 (rows, width), zero where there is padding; rows sum to 1.

    `first_response_token` is the first that the assistant says: its state has seen the whole prompt and that token.
    """
    weights = torch.zeros(len(rows), width)
    for weight, row in zip(weights, rows, strict=True):
        if pooling == "mean":
            weight[: len(row.ids)] = 1 / len(row.ids)
        else:
            weight[len(row.ids) - 1 if pooling == "last_token" else row.spans[0][0]] = 1
    return weights


class LayerPools:
    """Pooled hidden states of one batch, gathered while `decoder` runs on it."""

    def __init__(self, decoder: Any, weights: torch.Tensor) -> None:
        self._decoder = decoder
        self._weights = weights[:, None]
        self._pooled: list[torch.Tensor] = []

    @contextmanager
    def gathering(self) -> Iterator[dict[str, Any]]:
        """Inside, a forward pass with these arguments of `decoder` has its layers pooled."""
        layers = _layers(self._decoder)
        if layers is None:
            yield {"output_hidden_states": True}
            return
        handles = [layers[0].register_forward_pre_hook(self._before, with_kwargs=True)]
        handles += [layer.register_forward_hook(self._after) for layer in layers[:-1]]
        try:
            yield {}
        finally:
            for handle in handles:
                handle.remove()

    def of(self, output: Any) -> torch.Tensor:
        """All of them, given what the decoder returned: fp32 (rows, layers + 1, width), on the model's device.

        Index 0 is what the first layer reads, index i what layer i writes, and the last one has passed the final norm,
        as `transformers` counts hidden states.
        """
        if output.hidden_states is not None:
            return torch.stack([self._pool(state) for state in output.hidden_states], dim=1)
        return torch.stack([*self._pooled, self._pool(output.last_hidden_state)], dim=1)

    def _before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._pooled.append(self._pool(args[0] if args else kwargs["hidden_states"]))

    def _after(self, _: Any, __: Any, output: Any) -> None:
        self._pooled.append(self._pool(output[0] if isinstance(output, tuple) else output))

    def _pool(self, state: torch.Tensor) -> torch.Tensor:
        return torch.bmm(self._weights, state.float())[:, 0]


@torch.inference_mode()
def pooled_layers(
    model: Any, rows: Sequence[TokenisedRow], pad_id: int, token_budget: int, pooling: Pooling = "mean"
) -> np.ndarray:
    """Vectors of texts, layer by layer: fp32 (rows, layers + 1, width), in the rows' own order.

    Rows run in batches of one length or nearly, of at most `token_budget` tokens with their padding.
    """
    decoder, device = model.get_decoder(), next(model.parameters()).device
    states: np.ndarray | None = None
    for chosen in length_groups(rows, token_budget):
        own = [rows[index] for index in chosen]
        batch = pad_rows(own, pad_id).to(device)
        pools = LayerPools(decoder, pooling_weights(own, batch.input_ids.shape[1], pooling).to(device))
        with pools.gathering() as how:
            output = decoder(**batch.inputs, use_cache=False, **how)
        pooled = pools.of(output).cpu().numpy()
        if states is None:
            states = np.empty((len(rows), *pooled.shape[1:]), np.float32)
        states[chosen] = pooled
    assert states is not None, "no rows"
    return states


def _layers(decoder: Any) -> list[Any] | None:
    """The decoder's layers in their order; None if they cannot be told from its other parts."""
    found = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not found or len(found) != decoder.config.num_hidden_layers or len(set(map(type, found))) > 1:
        return None
    return found
