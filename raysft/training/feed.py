"""The micro-batches of each optimiser step, made one step ahead so that a device never waits for its rows."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from raysft.corpus.batching import MicroBatch, cut, global_batch, pack_rows, pad_rows, steps_per_epoch
from raysft.corpus.tokenize import TokenisedRow
from raysft.training.parallel import Ranks


@dataclass(frozen=True)
class Part:
    """A micro-batch and the indices of its rows. `weight` is 1; 0 for one that only keeps step with other ranks."""

    batch: MicroBatch
    rows: list[int]
    weight: float


@dataclass(frozen=True)
class StepRows:
    """The rows of one optimiser step: numbers of its whole global batch, and this rank's micro-batches."""

    rows: int
    tokens: int
    supervised: int
    longest: int
    parts: list[Part]


@dataclass(frozen=True)
class Recipe:
    """What decides the micro-batches of a step: the rows and their order, this rank, and the form of a micro-batch.

    In `lockstep` every rank has as many micro-batches as the one that has most.
    """

    rows: Sequence[TokenisedRow]
    batch_size: int
    seed: int
    pad_id: int
    ranks: Ranks
    lockstep: bool
    packed: bool

    def step(self, done: int, token_budget: int) -> StepRows:
        """The step after `done` steps, with micro-batches of at most so many tokens, on the CPU."""
        epoch, step = divmod(done, steps_per_epoch(len(self.rows), self.batch_size))
        chosen = global_batch(len(self.rows), self.batch_size, self.seed, epoch + 1, step)
        rows = {index: self.rows[index] for index in chosen}
        chosen.sort(key=lambda index: -len(rows[index].ids))
        lengths = [len(rows[index].ids) for index in chosen]
        return StepRows(
            rows=len(chosen),
            tokens=sum(lengths),
            supervised=sum(row.supervised for row in rows.values()),
            longest=lengths[0],
            parts=[
                Part(self._batch([rows[index] for index in part]), part, weight)
                for part, weight in self._own(chosen, lengths, token_budget)
            ],
        )

    def _own(self, chosen: list[int], lengths: list[int], budget: int) -> list[tuple[list[int], float]]:
        """Row indices of this rank's micro-batches, longest rows first, with their weights."""
        shares = [list(range(rank, len(chosen), self.ranks.count)) for rank in range(self.ranks.count)]
        cuts = [cut([lengths[place] for place in share], budget, self.packed) for share in shares]
        own = self.ranks.share(chosen)
        parts = [([own[place] for place in part], 1.0) for part in cuts[self.ranks.rank]]
        if self.lockstep:
            parts += [(chosen[-1:], 0.0)] * (max(len(other) for other in cuts) - len(parts))
        return parts

    def _batch(self, rows: list[TokenisedRow]) -> MicroBatch:
        return pack_rows(rows) if self.packed else pad_rows(rows, self.pad_id)


class Feed:
    """Steps of a recipe, in order, each made by a thread while the step before it runs. Use it as a context."""

    def __init__(self, recipe: Recipe, device: torch.device, last: int) -> None:
        self._recipe = recipe
        self._pins = device.type == "cuda"
        self._last = last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: tuple[tuple[int, int], Future[StepRows]] | None = None

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: Any) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, done: int, token_budget: int) -> StepRows:
        """The step after `done` steps."""
        wanted = (done, token_budget)
        if self._ahead is None or self._ahead[0] != wanted:
            self._ask(wanted)
        assert self._ahead is not None
        step = self._ahead[1].result()
        if done + 1 < self._last:
            self._ask((done + 1, token_budget))
        return step

    def _ask(self, wanted: tuple[int, int]) -> None:
        self._ahead = (wanted, self._thread.submit(self._make, *wanted))

    def _make(self, done: int, token_budget: int) -> StepRows:
        step = self._recipe.step(done, token_budget)
        if not self._pins:
            return step
        parts = [Part(part.batch.pinned(), part.rows, part.weight) for part in step.parts]
        return StepRows(step.rows, step.tokens, step.supervised, step.longest, parts)
