"""Which rows are in which step, and how a step's rows become micro-batches.

A global batch is a set of rows decided by (seed, epoch, step) alone. How it is cut into micro-batches, and over how
many ranks, is a question of speed: the loss is summed and divided by the supervised tokens of the whole global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from raysft.corpus.tokenize import TokenisedRow


@dataclass(frozen=True)
class MicroBatch:
    """Rows for one forward pass: padded on the right, (rows, longest), or packed end to end, (1, tokens).

    `input_ids` is int64. `supervised` is a bool mask of the same shape: true where a token has a loss. `before` are the
    int64 places, in the flattened batch, of the tokens before those, whose hidden states predict them. `lengths` are
    the rows' own. `bounds` (int32, rows + 1) says where packed rows start and stop, and `positions` (int64, of the
    shape of `input_ids`) where in its row a token is; both are None for padded rows.
    """

    input_ids: torch.Tensor
    supervised: torch.Tensor
    before: torch.Tensor
    lengths: tuple[int, ...]
    positions: torch.Tensor | None = None
    bounds: torch.Tensor | None = None

    @property
    def targets(self) -> torch.Tensor:
        """Supervised token ids in row-major order, int64 (supervised tokens,)."""
        return self.input_ids.flatten()[self.before + 1]

    @property
    def tokens(self) -> torch.Tensor:
        """Bool mask of padded rows, of the shape of `input_ids`: false where there is padding."""
        lengths = torch.tensor(self.lengths, device=self.input_ids.device)
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device) < lengths[:, None]

    @property
    def inputs(self) -> dict[str, Any]:
        """Arguments of a causal model's forward pass.

        Padding on the right needs no mask, because no token looks to its right; without one, attention takes its fast
        kernels. Packed rows are told to attention by `transformers`' names for it; see `raysft.models.packing`.
        """
        if self.bounds is None:
            return {"input_ids": self.input_ids}
        longest = max(self.lengths)
        return {
            "input_ids": self.input_ids,
            "position_ids": self.positions,
            "attention_mask": self.input_ids.new_zeros((1, 1, 1, 1)),  # four dimensions: taken as made, and not read
            "cu_seq_lens_q": self.bounds,
            "cu_seq_lens_k": self.bounds,
            "max_length_q": longest,
            "max_length_k": longest,
        }

    def to(self, device: torch.device) -> MicroBatch:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> MicroBatch:
        """The same batch in memory that a GPU copies from without waiting."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> MicroBatch:
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **changed)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimiser steps of an epoch; the last one may have a smaller batch."""
    return -(-rows // batch_size)


def global_batch(rows: int, batch_size: int, seed: int, epoch: int, step: int) -> list[int]:
    """Indices of the rows of step `step` (from 0) of `epoch` (from 1)."""
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    return [int(index) for index in order[step * batch_size : (step + 1) * batch_size]]


def cut(lengths: Sequence[int], token_budget: int, packed: bool = False) -> list[list[int]]:
    """Places of rows, given their lengths from the longest down, in micro-batches of at most `token_budget` tokens,
    with padding unless they are packed, and at least one row."""
    parts: list[list[int]] = []
    size = 0
    for place, length in enumerate(lengths):
        cost = length if packed or not parts else lengths[parts[-1][0]]
        if not parts or size + cost > token_budget:
            parts.append([])
            size, cost = 0, length
        parts[-1].append(place)
        size += cost
    return parts


def length_groups(rows: Sequence[TokenisedRow], token_budget: int) -> list[list[int]]:
    """Indices of `rows`, longest first, in groups that fit the token budget: batches with little padding."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].ids))
    return [[order[place] for place in part] for part in cut([len(rows[index].ids) for index in order], token_budget)]


def pad_rows(rows: Sequence[TokenisedRow], pad_id: int) -> MicroBatch:
    """Pad rows on the right to the longest."""
    lengths = tuple(len(row.ids) for row in rows)
    ids = np.full((len(rows), max(lengths)), pad_id, dtype=np.int64)
    supervised = np.zeros(ids.shape, dtype=bool)
    for own, mask, row in zip(ids, supervised, rows, strict=True):
        own[: len(row.ids)] = row.ids
        _mark(mask, row)
    return MicroBatch(torch.from_numpy(ids), torch.from_numpy(supervised), _before(supervised), lengths)


def pack_rows(rows: Sequence[TokenisedRow]) -> MicroBatch:
    """Rows end to end, without padding."""
    lengths = tuple(len(row.ids) for row in rows)
    bounds = np.cumsum([0, *lengths], dtype=np.int32)
    supervised = np.zeros((1, bounds[-1]), dtype=bool)
    for start, row in zip(bounds, rows, strict=False):
        _mark(supervised[0, start:], row)
    return MicroBatch(
        torch.from_numpy(np.concatenate([np.asarray(row.ids, dtype=np.int64) for row in rows])[None]),
        torch.from_numpy(supervised),
        _before(supervised),
        lengths,
        torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])[None]),
        torch.from_numpy(bounds),
    )


def _mark(mask: np.ndarray, row: TokenisedRow) -> None:
    """Set the row's supervised tokens in a mask that begins with it; nothing predicts a row's first token."""
    for start, stop in row.spans:
        mask[max(1, start) : stop] = True


def _before(supervised: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(supervised) - 1)
