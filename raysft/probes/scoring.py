"""Log-probabilities of rows under a model, in batches sorted by length, in the rows' own order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raysft.corpus.batching import length_groups, pad_rows
from raysft.corpus.tokenize import TokenisedRow
from raysft.training.loss import token_log_probabilities


@dataclass(frozen=True, slots=True)
class Scored:
    """Total log-probability of a row's supervised tokens, in nats, and their number."""

    log_likelihood: float
    tokens: int


@torch.inference_mode()
def score_rows(model: Any, rows: Sequence[TokenisedRow], pad_id: int, token_budget: int) -> list[Scored]:
    """Score each row's supervised tokens; sums are in fp64. `token_budget` bounds a batch, padding counted."""
    device = next(model.parameters()).device
    scored: list[Scored | None] = [None] * len(rows)
    for chosen in length_groups(rows, token_budget):
        batch = pad_rows([rows[index] for index in chosen], pad_id).to(device)
        values = token_log_probabilities(model, batch).double().cpu()
        counts = batch.supervised[:, 1:].sum(dim=1).tolist()
        for index, part in zip(chosen, values.split(counts), strict=True):
            scored[index] = Scored(float(part.sum()), len(part))
    return [entry for entry in scored if entry is not None]
