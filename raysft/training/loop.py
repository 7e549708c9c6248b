"""The training loop: from tokenised rows to weights, telling the outside through callables.

The numbers depend on (rows, settings, seed, epochs) and never on the token budget or the number of ranks: a step's loss
is the sum over supervised tokens divided by the supervised tokens of its whole global batch, across micro-batches and
ranks. With LoRA dropout this holds for one token budget and number of ranks only, since each micro-batch draws a mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from raysft.corpus.batching import global_batch, micro_batches, steps_per_epoch
from raysft.corpus.tokenize import TokenisedRow
from raysft.spec.grid import Optimisation
from raysft.training.loss import summed_loss
from raysft.training.parallel import ALONE, Ranks


class DivergenceError(RuntimeError):
    """A loss or gradient norm that is not finite; the weights of the step before are untouched."""


@dataclass
class EpochStats:
    """What one epoch did; see `raysft.store.schema.TRAINING` for units."""

    at_epoch: int
    step: int = 0
    loss: float = 0.0
    last_loss: float = 0.0
    grad_norm: float = 0.0
    tokens: int = 0
    supervised_tokens: int = 0
    rows: int = 0
    oom_retries: int = 0


@dataclass(frozen=True)
class Job:
    """What to train on what. `rows` are all of the trial's training rows; `pad_id` fills micro-batches."""

    rows: Sequence[TokenisedRow] = field(repr=False)
    settings: Optimisation
    seed: int
    epochs: int
    pad_id: int
    token_budget: int
    device: torch.device


EpochEnd = Callable[[EpochStats], None]


def make_optimizer(parameters: Sequence[torch.nn.Parameter], settings: Optimisation) -> torch.optim.AdamW:
    """AdamW (betas 0.9 and 0.999, epsilon 1e-8) over the trainable parameters, in one fused kernel."""
    return torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, eps=1e-8, fused=True
    )


def learning_rate_at(settings: Optimisation, step: int, total: int) -> float:
    """Learning rate of step `step` (from 0) of `total`: linear warm-up, then constant or a cosine to zero."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - settings.warmup_steps) / max(1, total - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    model: Any,
    optimizer: torch.optim.Optimizer,
    job: Job,
    on_epoch_end: EpochEnd,
    ranks: Ranks = ALONE,
    done_epochs: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train from the end of epoch `done_epochs` to the end of epoch `job.epochs`; false if told to stop before.

    `on_epoch_end` is called on every rank after each epoch; it may use the model and must leave its weights as they
    were. Raises DivergenceError.
    """
    per_epoch = steps_per_epoch(len(job.rows), job.settings.batch_size)
    budget = _Budget(job.token_budget)
    for epoch in range(done_epochs + 1, job.epochs + 1):
        model.train()
        stats = EpochStats(at_epoch=epoch, step=(epoch - 1) * per_epoch)
        for step in range(per_epoch):
            if should_stop():
                return False
            rate = learning_rate_at(job.settings, stats.step, job.epochs * per_epoch)
            _step(model, optimizer, job, ranks, budget, stats, (epoch, step, rate))
        stats.loss /= stats.supervised_tokens
        stats.grad_norm /= per_epoch
        on_epoch_end(stats)
    return True


@dataclass
class _Budget:
    """Tokens of a micro-batch: halved for good when the memory did not do."""

    tokens: int


def _step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    job: Job,
    ranks: Ranks,
    budget: _Budget,
    stats: EpochStats,
    position: tuple[int, int, float],
) -> None:
    epoch, step, rate = position
    batch = [job.rows[index] for index in global_batch(len(job.rows), job.settings.batch_size, job.seed, epoch, step)]
    batch.sort(key=lambda row: -len(row.ids))
    supervised = sum(row.supervised for row in batch)
    own = ranks.share(batch)
    while True:
        # Dropout must not depend on what came before in this process, or a resumed trial would differ.
        torch.manual_seed(hash((job.seed, epoch, step, ranks.rank)) % (1 << 63))
        optimizer.zero_grad(set_to_none=True)
        try:
            loss = _accumulate(model, job, own, supervised, budget.tokens)
            break
        except torch.OutOfMemoryError:
            longest = max(len(row.ids) for row in own)
            if budget.tokens <= longest:
                raise
            budget.tokens = max(longest, budget.tokens // 2)
            stats.oom_retries += 1
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    ranks.sum_gradients(parameters)
    loss = ranks.sum_scalar(loss, job.device)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, job.settings.max_grad_norm))
    stats.step += 1
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise DivergenceError(f"loss {loss} and gradient norm {norm} at step {stats.step}, epoch {epoch}")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    stats.loss += loss
    stats.last_loss = loss / supervised
    stats.grad_norm += norm
    stats.tokens += sum(len(row.ids) for row in batch)
    stats.supervised_tokens += supervised
    stats.rows += len(batch)


def _accumulate(model: Any, job: Job, rows: Sequence[TokenisedRow], supervised: int, token_budget: int) -> float:
    """Add the gradients of this rank's rows; returns their summed loss in nats."""
    total = torch.zeros((), dtype=torch.float64)
    for batch in micro_batches(rows, token_budget, job.pad_id):
        with torch.autocast(job.device.type, torch.bfloat16, enabled=job.settings.dtype == "bfloat16"):
            loss = summed_loss(model, batch.to(job.device))
        (loss / supervised).backward()
        total += loss.detach().double().cpu()
    return float(total)
