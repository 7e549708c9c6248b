"""The ranks of a trial, and how they share a step: each holds the whole model and sums its gradients with the others.

A step's gradient is the sum over all supervised tokens of the global batch, whichever rank had them, so the numbers are
those of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import distributed

from raysft.spec.grid import Optimisation
from raysft.training.state import NamedParameters, load_state, save_state

T = TypeVar("T")

_BUCKET = 32 << 20  # numbers that are summed in one message: enough to fill a network, little beside a model


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of a trial."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, rows: Sequence[T]) -> list[T]:
        """This rank's part of a global batch: every count-th row."""
        return list(rows[self.rank :: self.count])

    def sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Sums of numbers over ranks, in fp64 and in one message."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return [float(value) for value in total]

    def agree(self, mine: bool, device: torch.device) -> bool:
        """Whether every rank says yes."""
        return self.sum([float(not mine)], device)[0] == 0

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.count > 1:
            distributed.barrier()


ALONE = Ranks()
"""The only process of a trial."""


class Engine(Protocol):
    """What the loop trains with: a model whose gradients and optimiser are kept in some way over ranks."""

    ranks: Ranks
    lockstep: bool
    """Whether ranks meet inside forward and backward, so that each must do the same number of them."""

    @property
    def model(self) -> Any:
        """The module to call."""
        ...

    def zero_grad(self) -> None:
        """Forget the gradients of an attempt."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of this rank's part of the step's loss."""
        ...

    def gradient_norm(self) -> float | None:
        """Norm of the whole step's gradient, before clipping; None where it is only known after `step`."""
        ...

    def step(self, learning_rate: float) -> float:
        """Clip, update the weights, and return the norm of the gradient before clipping."""
        ...

    def save_optimizer(self, folder: Path) -> None:
        """Write this rank's part of the optimiser's state."""
        ...

    def load_optimizer(self, folder: Path) -> None:
        """Take over what `save_optimizer` wrote on as many ranks."""
        ...

    def gathered_weights(self) -> dict[str, torch.Tensor] | None:
        """The model's weights by name on the CPU of the first rank, where no rank holds them all; None where the model
        itself does. Every rank must ask."""
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


class DataParallel:
    """Every rank holds the model, its gradients and the optimiser's state: one process, or DDP over several."""

    lockstep = False

    def __init__(self, model: Any, named: NamedParameters, settings: Optimisation, ranks: Ranks = ALONE) -> None:
        self.model = model
        self.ranks = ranks
        self.optimizer = make_optimizer([parameter for _, parameter in named], settings)
        self._named = named
        self._parameters = [parameter for _, parameter in named]
        self._max_norm = settings.max_grad_norm
        self._norm: torch.Tensor | None = None

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self._norm = None

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def gradient_norm(self) -> float:
        self._sum_gradients()
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        self._norm = torch.nn.utils.get_total_norm(gradients)
        return float(self._norm)

    def step(self, learning_rate: float) -> float:
        assert self._norm is not None, "gradient_norm comes first: it sums the gradients over ranks"
        torch.nn.utils.clip_grads_with_norm_(self._parameters, self._max_norm, self._norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        return float(self._norm)

    def save_optimizer(self, folder: Path) -> None:
        save_state(folder, self.optimizer, self._named)

    def load_optimizer(self, folder: Path) -> None:
        load_state(folder, self.optimizer, self._named)

    def gathered_weights(self) -> None:
        return None

    def close(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def _sum_gradients(self) -> None:
        """Replace each gradient by its sum over ranks; a rank that had no row contributes zeros."""
        if self.ranks.count == 1:
            return
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            distributed.all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))


def make_optimizer(parameters: Sequence[torch.nn.Parameter], settings: Optimisation) -> torch.optim.AdamW:
    """AdamW (betas 0.9 and 0.999, epsilon 1e-8) over the trainable parameters, in one fused kernel."""
    return torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, eps=1e-8, fused=True
    )


def _buckets(tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Tensors in their order, in runs of one dtype and at most `_BUCKET` numbers (or one tensor)."""
    buckets: list[list[torch.Tensor]] = []
    size = 0
    for tensor in tensors:
        fits = buckets and size + tensor.numel() <= _BUCKET and buckets[-1][0].dtype == tensor.dtype
        if not fits:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += tensor.numel()
    return buckets
