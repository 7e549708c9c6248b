"""`training.compile` changes the time of a training and not its numbers.

By default the graphs that it captures are run as they are; making machine code of them takes a minute. With
RAYSFT_COMPILER=inductor in the environment, and a C++ compiler, the test makes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from raysft.models.methods import apply_method, prepare
from raysft.spec.sweep import MethodSpec
from raysft.training.loop import EpochStats, Hooks, Job, train
from raysft.training.parallel import DataParallel
from tests.invariants.tiny_models import optimisation, random_rows, tiny_base

pytestmark = pytest.mark.invariants


@pytest.fixture(autouse=True)
def _backend() -> Iterator[None]:
    before = torch.compiler.get_default_backend()
    torch.compiler.set_default_backend(os.environ.get("RAYSFT_COMPILER", "eager"))
    yield
    torch.compiler.set_default_backend(before)
    torch.compiler.reset()


def test_a_compiled_training_has_the_numbers_of_one_that_is_not() -> None:
    def trained(compiled: bool) -> tuple[list[EpochStats], dict[str, torch.Tensor]]:
        tuned = apply_method(tiny_base("llama"), MethodSpec(name="lora", kind="lora", rank=4, alpha=8), 0)
        prepare(tuned, activation_checkpointing=False, compiled=compiled, packed=False)
        layers = [module for module in tuned.model.modules() if module._compiled_call_impl is not None]
        assert bool(layers) == compiled
        job = Job(random_rows(12), optimisation(), 0, 1, 0, 128, torch.device("cpu"))
        history: list[EpochStats] = []
        engine = DataParallel(tuned.model, tuned.trainable(), job.settings)
        assert train(engine, job, Hooks(epoch_ended=history.append))
        weights = {name: parameter.detach().clone() for name, parameter in tuned.trainable()}
        tuned.detach()
        assert all(module._compiled_call_impl is None for module in layers)
        return history, weights

    (plain, theirs), (compiled, ours) = trained(False), trained(True)
    for mine, other in zip(compiled, plain, strict=True):
        assert mine.loss == pytest.approx(other.loss, rel=1e-5)
        assert mine.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=2e-5)
