"""The training loop: from tokenised rows to weights, telling the outside through callables.

The numbers depend on (rows, settings, seed, epochs) and never on the token budget, the number of ranks or how they
share the model: a step's loss is the sum over supervised tokens divided by the supervised tokens of its whole global
batch, and whatever is random belongs to a row and a step (`raysft.models.noise`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from raysft.corpus.batching import steps_per_epoch
from raysft.corpus.tokenize import TokenisedRow
from raysft.models.noise import RowNoise, row_key
from raysft.spec.grid import Optimisation
from raysft.training.feed import Feed, Part, Recipe, StepRows
from raysft.training.loss import summed_loss
from raysft.training.parallel import Engine


class DivergenceError(RuntimeError):
    """A loss or gradient norm that is not finite, with the epoch and the step (from 1) at which it came.

    `last_good` is the position before that step where the weights are still those; None where they were stepped.
    """

    def __init__(self, loss: float, norm: float, epoch: int, step: int, last_good: Progress | None) -> None:
        super().__init__(f"loss {loss} and gradient norm {norm} at step {step}, epoch {epoch}")
        self.loss = loss
        self.grad_norm = norm
        self.epoch = epoch
        self.step = step
        self.last_good = last_good


class MemoryFloorError(RuntimeError):
    """Not even one row at a time fits the device."""


@dataclass(frozen=True)
class EpochStats:
    """What one epoch did; see `raysft.store.schema.TRAINING` for units.

    While the epoch runs, `loss` and `grad_norm` are sums over its supervised tokens and its steps.
    """

    at_epoch: int
    step: int = 0
    loss: float = 0.0
    last_loss: float = 0.0
    grad_norm: float = 0.0
    tokens: int = 0
    supervised_tokens: int = 0
    rows: int = 0
    oom_retries: int = 0

    def averaged(self, steps: int) -> EpochStats:
        """The finished epoch of so many steps: mean loss of a supervised token, mean gradient norm of a step."""
        return replace(self, loss=self.loss / self.supervised_tokens, grad_norm=self.grad_norm / steps)


@dataclass(frozen=True)
class Progress:
    """Where a training stands: optimiser steps done, and the sums of the epoch in flight (None on its boundary)."""

    steps: int = 0
    running: EpochStats | None = None

    def as_json(self) -> dict[str, Any]:
        """Numbers only; `from_json` reads them back equal to the last bit."""
        return {"steps": self.steps, "running": None if self.running is None else asdict(self.running)}

    @staticmethod
    def from_json(content: dict[str, Any]) -> Progress:
        running = content["running"]
        return Progress(content["steps"], None if running is None else EpochStats(**running))


@dataclass(frozen=True)
class Job:
    """What to train on what. `rows` are all of the trial's training rows; `pad_id` fills micro-batches, unless `packed`
    ones have nothing to fill (the model must take them, see `raysft.models.packing`)."""

    rows: Sequence[TokenisedRow] = field(repr=False)
    settings: Optimisation
    seed: int
    epochs: int
    pad_id: int
    token_budget: int
    device: torch.device
    noise: RowNoise | None = None
    packed: bool = False


@dataclass(frozen=True)
class Hooks:
    """What the loop tells the outside and asks it, on every rank. A question that one rank answers with yes, all do.

    `epoch_ended` may use the model and must leave its weights as they were.
    """

    epoch_ended: Callable[[EpochStats], None] = lambda stats: None
    should_stop: Callable[[], bool] = lambda: False
    should_save: Callable[[], bool] = lambda: False
    save: Callable[[Progress], None] = lambda progress: None


def learning_rate_at(settings: Optimisation, step: int, total: int) -> float:
    """Learning rate of step `step` (from 0) of `total`: linear warm-up, then constant or a cosine to zero."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - settings.warmup_steps) / max(1, total - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train(engine: Engine, job: Job, hooks: Hooks, start: Progress = Progress()) -> bool:
    """Train from `start` to the end of epoch `job.epochs`; false if told to stop before.

    Raises DivergenceError and MemoryFloorError.
    """
    return _Training(engine, job, hooks, start).run()


class _Training:
    """One run of the loop: the position, the token budget, and the sums of the epoch in flight."""

    def __init__(self, engine: Engine, job: Job, hooks: Hooks, start: Progress) -> None:
        self.engine = engine
        self.job = job
        self.hooks = hooks
        self.ranks = engine.ranks
        self.done = start.steps
        self.per_epoch = steps_per_epoch(len(job.rows), job.settings.batch_size)
        self.total = job.epochs * self.per_epoch
        self.budget = job.token_budget  # halved for good when the memory did not do
        self.stats = start.running or EpochStats(self.epoch, step=self.done)

    @property
    def epoch(self) -> int:
        """The epoch (from 1) of the next step."""
        return self.done // self.per_epoch + 1

    def run(self) -> bool:
        with self._feed() as feed:
            self.engine.model.train()
            while self.done < self.total:
                asked = [float(self.hooks.should_stop()), float(self.hooks.should_save())]
                stop, save = self.ranks.sum(asked, self.job.device)
                if save:
                    self.hooks.save(self._progress())
                if stop:
                    return False
                self._step(feed)
                if self.done % self.per_epoch == 0:
                    self.hooks.epoch_ended(self.stats.averaged(self.per_epoch))
                    self.stats = EpochStats(self.epoch, step=self.done)
                    self.engine.model.train()
        return True

    def _feed(self) -> Feed:
        job = self.job
        recipe = Recipe(
            rows=job.rows,
            batch_size=job.settings.batch_size,
            seed=job.seed,
            pad_id=job.pad_id,
            ranks=self.ranks,
            lockstep=self.engine.lockstep,
            packed=job.packed,
        )
        return Feed(recipe, job.device, self.total)

    def _progress(self) -> Progress:
        return Progress(self.done, self.stats if self.stats.rows else None)

    def _step(self, feed: Feed) -> None:
        rows, loss, norm = self._update(feed)
        self.stats = replace(
            self.stats,
            step=self.stats.step + 1,
            loss=self.stats.loss + loss,
            last_loss=loss / rows.supervised,
            grad_norm=self.stats.grad_norm + norm,
            tokens=self.stats.tokens + rows.tokens,
            supervised_tokens=self.stats.supervised_tokens + rows.supervised,
            rows=self.stats.rows + rows.rows,
        )
        self.done += 1

    def _update(self, feed: Feed) -> tuple[StepRows, float, float]:
        """One optimiser step: its rows, their summed loss in nats, and the gradient's norm.

        Out of memory anywhere in it halves the token budget and repeats it with the same rows. Ranks decide that
        together after backward; where they already met in a collective, what one of them lacks stops the trial.
        """
        rate = learning_rate_at(self.job.settings, self.done, self.total)
        while True:
            rows = feed.take(self.done, self.budget)
            mine: torch.OutOfMemoryError | None = None
            loss = 0.0
            self.engine.zero_grad()
            try:
                loss = self._accumulate(rows)
                if self.ranks.count == 1:
                    return rows, loss, self._finish(loss, rate)
            except torch.OutOfMemoryError as error:
                if self.engine.lockstep and self.ranks.count > 1:
                    raise MemoryFloorError(f"{error}; with ZeRO set a smaller training.token_budget") from error
                mine = error.with_traceback(None)  # its frames hold the activations
            lost, loss = self.ranks.sum([float(mine is not None), loss], self.job.device)
            if not lost:
                return rows, loss, self._finish(loss, rate)
            self._halve(rows.longest, mine)

    def _finish(self, loss: float, rate: float) -> float:
        """Check, clip and step; the norm of the gradient. Nothing that is not finite reaches the weights."""
        norm = self.engine.gradient_norm()
        if not math.isfinite(loss) or not math.isfinite(norm or 0.0):
            raise DivergenceError(loss, norm or math.nan, self.epoch, self.done + 1, self._progress())
        stepped = self.engine.step(rate)
        if not math.isfinite(stepped):
            raise DivergenceError(loss, stepped, self.epoch, self.done + 1, None)
        return stepped

    def _halve(self, longest: int, error: torch.OutOfMemoryError | None) -> None:
        if self.budget <= longest:
            reason = error or "another rank ran out of memory"
            raise MemoryFloorError(f"out of memory with one row of {longest} tokens at a time ({reason})") from error
        self.budget = max(longest, self.budget // 2)
        self.stats = replace(self.stats, oom_retries=self.stats.oom_retries + 1)
        if self.job.device.type == "cuda":
            torch.cuda.empty_cache()

    def _accumulate(self, rows: StepRows) -> float:
        """Add the gradients of this rank's rows; returns their summed loss in nats."""
        # For what of a base's own is random; ours belongs to rows. A resumed trial must not depend on this process.
        torch.manual_seed(hash((self.job.seed, self.done, self.ranks.rank)) % (1 << 63))
        total = torch.zeros((), dtype=torch.float64, device=self.job.device)
        for part in rows.parts:
            total += self._backward(part, rows.supervised)
        return float(total)

    def _backward(self, part: Part, supervised: int) -> torch.Tensor:
        """Add the gradients of a micro-batch; returns its summed loss."""
        job = self.job
        batch = part.batch.to(job.device)
        keys = [row_key(job.seed, self.done, index) for index in part.rows]
        autocast = torch.autocast(job.device.type, torch.bfloat16, enabled=job.settings.dtype == "bfloat16")
        with job.noise.rows(keys, batch) if job.noise is not None else nullcontext():
            with autocast:
                loss = summed_loss(self.engine.model, batch, not self.engine.lockstep) * part.weight
            self.engine.backward(loss / supervised)
        return loss.detach()
