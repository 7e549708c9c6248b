"""The loss: summed over supervised tokens, with the output layer computed at those positions only, in chunks.

A model's logits are the largest tensor of its training (4,096 tokens x 150,000 entries are 2.5 GB in fp32). Here they
exist for a few million numbers at a time: gradients of a chunk are taken as soon as its loss is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional

from raysft.corpus.batching import MicroBatch

_LOGITS = 1 << 24  # numbers of logits that exist at a time: 64 MiB in fp32

# Output layers, and whether `_logits` is all that their model does to them: found out at the first large batch.
_understood: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def summed_loss(model: Any, batch: MicroBatch, chunked: bool = True) -> torch.Tensor:
    """Negative log-likelihood summed over the supervised tokens of a micro-batch, nats.

    `chunked` off computes all logits at once, inside the model's own forward pass.
    """
    states = _states_for_chunks(model, batch) if chunked else None
    if states is None:
        return -_whole(model, batch).sum()
    trainable = [parameter for parameter in _head(model).parameters() if parameter.requires_grad]
    loss: torch.Tensor = _ChunkedLoss.apply(model, states, batch.targets, *trainable)
    return loss


@torch.no_grad()
def token_log_probabilities(model: Any, batch: MicroBatch) -> torch.Tensor:
    """fp32 log-probability of every supervised token, in row-major order: shape (supervised tokens,), nats.

    Without gradients; `summed_loss` is what has them.
    """
    states = _states_for_chunks(model, batch)
    if states is None:
        return _whole(model, batch)
    return torch.cat([_score(model, *part) for part in _chunks(model, states, batch.targets)])


@contextmanager
def scored_positions(model: Any, places: torch.Tensor) -> Iterator[None]:
    """Inside, `model`'s output layer sees only the tokens at `places` of the flattened batch.

    The model's own forward then yields logits of shape (1, positions, vocabulary), whatever the architecture does to
    them afterwards (Gemma's soft cap, Cohere's scale); most of an instruction batch never meets the largest matrix.
    """

    def select(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0].flatten(0, 1)[places].unsqueeze(0), *inputs[1:])

    handle = _head(model).register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


class _ChunkedLoss(torch.autograd.Function):
    """-sum of the log-probabilities of `targets` (n,) after `states` (n, width); the output layer's trainable
    parameters follow, so that their gradients can be handed back."""

    @staticmethod
    def forward(ctx: Any, model: Any, states: torch.Tensor, targets: torch.Tensor, *head: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        of_states, of_head = [], [torch.zeros_like(parameter) for parameter in head]
        for part, wanted in _chunks(model, states.detach(), targets):
            with torch.enable_grad():
                part.requires_grad_()
                loss = -_score(model, part, wanted).sum()
                of_part, *found = torch.autograd.grad(loss, (part, *head))
            total += loss.detach()
            of_states.append(of_part)
            for gradient, more in zip(of_head, found, strict=True):
                gradient += more
        ctx.save_for_backward(torch.cat(of_states), *of_head)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_states, *of_head = ctx.saved_tensors
        return (None, of_states * outer[0], None, *(gradient * outer[0] for gradient in of_head))


def _states_for_chunks(model: Any, batch: MicroBatch) -> torch.Tensor | None:
    """What the output layer is given at the positions before supervised tokens, (n, width); None for a batch that is
    small enough to be done at once, and for a model whose logits are more than `_score` knows."""
    head = _head(model)
    few = len(batch.before) * head.weight.shape[0] <= _LOGITS
    if few or not _understood.get(head, True):
        return None
    seen: list[torch.Tensor] = []

    def capture(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        seen.append(inputs[0].flatten(0, 1)[batch.before])
        return (seen[0][:1].unsqueeze(0), *inputs[1:])  # one position, to compare with

    handle = head.register_forward_pre_hook(capture)
    try:
        own = _forward(model, batch)[0]
    finally:
        handle.remove()
    if head not in _understood:
        with torch.no_grad():
            _understood[head] = torch.allclose(own, _logits(model, seen[0][:1]), rtol=1e-4, atol=1e-4)
    return seen[0] if _understood[head] else None


def _chunks(model: Any, states: torch.Tensor, targets: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """States and targets, as many at a time as `_LOGITS` allows."""
    count = max(1, _LOGITS // _head(model).weight.shape[0])
    return zip(states.split(count), targets.split(count), strict=True)


def _score(model: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -functional.cross_entropy(_logits(model, states).float(), targets, reduction="none")


def _logits(model: Any, states: torch.Tensor) -> torch.Tensor:
    """The output layer, and what known architectures do after it: Gemma's soft cap, Cohere's and Granite's scale."""
    config = model.config.get_text_config()
    logits: torch.Tensor = _head(model)(states)
    if getattr(config, "logit_scale", None):
        logits = logits * config.logit_scale
    if getattr(config, "logits_scaling", None):
        logits = logits / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def _whole(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Log-probabilities of the supervised tokens from the model's own forward pass."""
    with scored_positions(model, batch.before):
        logits = _forward(model, batch)[0].float()
    return -functional.cross_entropy(logits, batch.targets, reduction="none")


def _forward(model: Any, batch: MicroBatch) -> torch.Tensor:
    output = model(**batch.inputs, use_cache=False)
    logits: torch.Tensor = output.logits
    return logits


def _head(model: Any) -> Any:
    return model.get_output_embeddings()
