"""The loss: summed over supervised tokens, with the output layer computed at those positions only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from raysft.corpus.batching import MicroBatch


@contextmanager
def scored_positions(model: Any, mask: torch.Tensor) -> Iterator[None]:
    """Inside, `model`'s output layer sees only the positions where `mask` (rows, length; bool) is true.

    The model's own forward then yields logits of shape (1, positions, vocabulary), whatever the architecture does to
    them afterwards (Gemma's soft cap, Cohere's scale); most of an instruction batch never meets the largest matrix.
    """

    def select(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0][mask].unsqueeze(0), *inputs[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def token_log_probabilities(model: Any, batch: MicroBatch) -> torch.Tensor:
    """fp32 log-probability of every supervised token, in row-major order: shape (supervised tokens,), nats."""
    targets_mask = batch.supervised[:, 1:]
    before = torch.zeros_like(batch.supervised)
    before[:, :-1] = targets_mask  # the hidden state at t predicts token t + 1
    with scored_positions(model, before):
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    logits = output.logits[0].float()
    targets = batch.input_ids[:, 1:][targets_mask]
    return -functional.cross_entropy(logits, targets, reduction="none")


def summed_loss(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Negative log-likelihood summed over the supervised tokens of a micro-batch, nats."""
    return -token_log_probabilities(model, batch).sum()
