"""Pooled hidden states of texts, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from raysft.corpus.batching import length_groups, pad_rows
from raysft.corpus.tokenize import TokenisedRow

POOLING = "mean over tokens"


@torch.inference_mode()
def pooled_states(model: Any, rows: Sequence[TokenisedRow], pad_id: int) -> np.ndarray:
    """Mean of each hidden state over a row's tokens, padding left out: fp32 (rows, layers + 1, width).

    Index 0 is the embedding layer, index i the output of layer i, as `transformers` counts hidden states.
    """
    batch = pad_rows(rows, pad_id).to(next(model.parameters()).device)
    decoder = model.get_decoder()
    output = decoder(**batch.inputs, output_hidden_states=True, use_cache=False)
    mask = batch.tokens.unsqueeze(-1).float()
    pooled = [(state.float() * mask).sum(dim=1) / mask.sum(dim=1) for state in output.hidden_states]
    stacked: np.ndarray = torch.stack(pooled, dim=1).cpu().numpy()
    return stacked


def pooled_states_of(model: Any, rows: Sequence[TokenisedRow], pad_id: int, token_budget: int) -> np.ndarray:
    """`pooled_states` of any number of rows, batched by length under a token budget, in the rows' own order."""
    parts = [
        (chosen, pooled_states(model, [rows[index] for index in chosen], pad_id))
        for chosen in length_groups(rows, token_budget)
    ]
    states = np.empty((len(rows), *parts[0][1].shape[1:]), dtype=np.float32)
    for chosen, values in parts:
        states[chosen] = values
    return states
