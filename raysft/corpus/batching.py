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
    same shape over target positions: entry (i, t) is true where token t of row i has a loss."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    supervised: torch.Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch on another device."""
        tensors = (self.input_ids, self.attention_mask, self.supervised)
        return MicroBatch(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimiser steps of an epoch; the last one may have a smaller batch."""
    return -(-rows // batch_size)


def global_batch(rows: int, batch_size: int, seed: int, epoch: int, step: int) -> list[int]:
    """Indices of the rows of step `step` (from 0) of `epoch` (from 1)."""
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    return [int(index) for index in order[step * batch_size : (step + 1) * batch_size]]


def micro_batches(rows: Sequence[TokenisedRow], token_budget: int, pad_id: int) -> list[MicroBatch]:
    """Cut rows, longest first, into micro-batches of at most `token_budget` tokens with padding, at least one row."""
    ordered = sorted(rows, key=lambda row: -len(row.ids))
    batches, start = [], 0
    while start < len(ordered):
        fitting = max(1, token_budget // len(ordered[start].ids))
        batches.append(pad_rows(ordered[start : start + fitting], pad_id))
        start += fitting
    return batches


def pad_rows(rows: Sequence[TokenisedRow], pad_id: int) -> MicroBatch:
    """Pad rows on the right to the longest."""
    length = max(len(row.ids) for row in rows)
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
    supervised = torch.zeros((len(rows), length), dtype=torch.bool)
    for index, row in enumerate(rows):
        input_ids[index, : len(row.ids)] = torch.tensor(row.ids)
        attention_mask[index, : len(row.ids)] = 1
        supervised[index, row.supervised_from : len(row.ids)] = True
    return MicroBatch(input_ids, attention_mask, supervised)
