"""Randomness that belongs to a row and a step: dropout of LoRA and the noise of NEFTune.

A usual dropout draws one mask for each micro-batch, so its numbers depend on how a global batch was cut and over how
many ranks. Here every element's draw is a hash of (seed, step, row, position, channel, module): cutting, sharing,
recomputing under activation checkpointing and resuming all see the same masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.utils.hooks import RemovableHandle

from raysft.corpus.batching import MicroBatch

_DRAWS = 1 << 24  # values of a draw: exact in fp32


def row_key(seed: int, step: int, row: int) -> int:
    """31-bit key of a training row at an optimiser step (from 0)."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{row}".encode(), digest_size=4).digest(), "big") >> 1


class RowNoise:
    """The rows that a model is working on, for the modules that draw."""

    def __init__(self) -> None:
        self._keys: torch.Tensor | None = None
        self._positions = torch.empty(0)
        self.lengths = torch.empty(0)
        """Tokens of the row that a token is in, fp32, to be broadcast over (rows, positions)."""

    @contextmanager
    def rows(self, keys: Sequence[int], batch: MicroBatch) -> Iterator[None]:
        """Inside, forward passes are over this batch, whose rows have these keys. Backward belongs inside as well:
        activation checkpointing runs forward again there."""
        owners, lengths = torch.tensor(keys, dtype=torch.int32), torch.tensor(batch.lengths)
        device = batch.input_ids.device
        if batch.positions is None:
            owners, each = owners[:, None], lengths[:, None]
            self._positions = torch.arange(batch.input_ids.shape[1], dtype=torch.int32, device=device)[None]
        else:
            owners, each = (values.repeat_interleave(lengths)[None] for values in (owners, lengths))
            self._positions = batch.positions.int()
        self._keys = owners.to(device, non_blocking=True)
        self.lengths = each.to(device, torch.float32, non_blocking=True)
        try:
            yield
        finally:
            self._keys = None

    def draws(self, like: torch.Tensor, salt: int) -> torch.Tensor:
        """Independent uniform draws in [0, 1), fp32, of the shape of `like` (rows, positions, channels)."""
        assert self._keys is not None, "a forward pass in training mode outside RowNoise.rows"
        channels = torch.arange(like.shape[2], dtype=torch.int32, device=like.device)
        token = _mixed(_mixed(self._keys ^ salt) + self._positions)
        return _mixed(token[..., None] + _mixed(channels)).bitwise_and_(_DRAWS - 1).float().div_(_DRAWS)


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """An integer hash of each element (Wellons' lowbias32): int32 in, int32 out, wrapping."""
    x = (x ^ _shifted(x, 16)) * 0x7FEB352D
    x = (x ^ _shifted(x, 15)) * (0x846CA68B - (1 << 32))
    return x ^ _shifted(x, 16)


def _shifted(x: torch.Tensor, places: int) -> torch.Tensor:
    """Logical shift to the right; torch's own repeats the sign bit."""
    return (x >> places) & ((1 << (32 - places)) - 1)


class RowDropout(torch.nn.Module):
    """Dropout whose mask belongs to the row; takes the place of `torch.nn.Dropout` in an adapter."""

    def __init__(self, probability: float, noise: RowNoise, name: str) -> None:
        super().__init__()
        self.p = probability
        self._noise = noise
        self._salt = _salt(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zero each element with the probability, and scale the others up to keep the mean, while training."""
        if not self.training:
            return x
        keep = self._noise.draws(x, self._salt) >= self.p
        return x * keep.to(x.dtype).div_(1 - self.p)


def add_neftune(embedding: torch.nn.Module, alpha: float, noise: RowNoise) -> RemovableHandle:
    """NEFTune (Jain et al. 2023): in training, uniform noise within +-alpha / sqrt(length x width) on the embeddings.

    The length is the row's own. (The usual implementations take the padded length of the micro-batch, so that a row's
    noise depends on what it was batched with.) Remove the handle to take the noise off again.
    """
    salt = _salt("neftune")

    def disturb(module: torch.nn.Module, _: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        bound = alpha / (noise.lengths * output.shape[-1]).sqrt()[..., None]
        return output + ((2 * noise.draws(output, salt) - 1) * bound).to(output.dtype)

    return embedding.register_forward_hook(disturb)


def _salt(name: str) -> int:
    """31-bit number of a module, from its name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") >> 1
