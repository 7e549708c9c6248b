"""Which rows are in which step, and how a step's rows become micro-batches.

A global batch is a set of rows decided by (seed, epoch, step) alone. How it is cut into micro-batches, and over how
many ranks, is a question of speed: the loss is summed and divided by the supervised tokens of the whole global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raysft.corpus.tokenize import TokenisedRow


@dataclass(frozen=True)
class MicroBatch:
    """Right-padded rows. `input_ids` and `attention_mask` are int64 (rows, length); `supervised` is a bool mask of the
    same shape over target positions: entry (i, t) is true where token t of row i has a loss. `before` are the int64
    places, in the flattened batch, of the tokens before those: whose hidden states predict them."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    supervised: torch.Tensor
    before: torch.Tensor

    @property
    def targets(self) -> torch.Tensor:
        """Supervised token ids in row-major order, int64 (supervised tokens,)."""
        return self.input_ids.flatten()[self.before + 1]

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch on another device."""
        tensors = (self.input_ids, self.attention_mask, self.supervised, self.before)
        return MicroBatch(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimiser steps of an epoch; the last one may have a smaller batch."""
    return -(-rows // batch_size)


def global_batch(rows: int, batch_size: int, seed: int, epoch: int, step: int) -> list[int]:
    """Indices of the rows of step `step` (from 0) of `epoch` (from 1)."""
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    return [int(index) for index in order[step * batch_size : (step + 1) * batch_size]]


def cut(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Places of rows, given their lengths from the longest down, in micro-batches of at most `token_budget` tokens with
    padding, and at least one row."""
    parts, start = [], 0
    while start < len(lengths):
        stop = min(len(lengths), start + max(1, token_budget // lengths[start]))
        parts.append(list(range(start, stop)))
        start = stop
    return parts


def length_groups(rows: Sequence[TokenisedRow], token_budget: int) -> list[list[int]]:
    """Indices of `rows`, longest first, in groups that fit the token budget: batches with little padding."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].ids))
    return [[order[place] for place in part] for part in cut([len(rows[index].ids) for index in order], token_budget)]


def pad_rows(rows: Sequence[TokenisedRow], pad_id: int) -> MicroBatch:
    """Pad rows on the right to the longest."""
    length = max(len(row.ids) for row in rows)
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
    supervised = torch.zeros((len(rows), length), dtype=torch.bool)
    for index, row in enumerate(rows):
        input_ids[index, : len(row.ids)] = torch.tensor(row.ids)
        attention_mask[index, : len(row.ids)] = 1
        for start, stop in row.spans:
            supervised[index, start:stop] = True
    supervised[:, 0] = False  # nothing comes before it that could predict it
    before = supervised.flatten().nonzero()[:, 0] - 1
    return MicroBatch(input_ids, attention_mask, supervised, before)
