"""The Tune class trainable that does units, one after the other, in a process that stays.

A process pays once for its imports, its base model and its benchmark items: Tune hands the same actor the next unit
(`reset_config`). A unit of one worker runs in this very process, through Ray Train's local mode; a unit of several
workers gets a worker group of its own from `TorchTrainer`, and this process only waits for it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from ray import train, tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from raysft.measure import Report
from raysft.session import Session, pick_device
from raysft.spec.plan import Unit, Work
from raysft.spec.sweep import Sweep
from raysft.training.parallel import Ranks
from raysft.trial import run_unit

Units = Mapping[str, tuple[Unit, list[Work]]]

# Rank 0 measures while the others wait in a collective, which must not time out meanwhile.
_COLLECTIVE_TIMEOUT_S = 24 * 3600


class UnitTrainable(tune.Trainable):
    """Does the unit that `config["unit"]` names, in one step."""

    def setup(self, config: dict[str, Any], sweep: Sweep, units: Units) -> None:
        torch.set_num_threads(max(1, int(sweep.resources.cpus_per_worker)))
        self.session = Session(sweep, pick_device())
        self.units = units

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        started = time.perf_counter()
        unit, works = self.units[self.config["unit"]]
        workers = self.session.sweep.resources.workers if unit.kind == "fine_tune" else 1
        if workers == 1:
            report = _run_here(self.session, unit, works)
        else:
            report = _run_in_group(self.session.sweep, unit, works, workers)
        return {**asdict(report), "unit": unit.key, "wall_s": time.perf_counter() - started, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: results and checkpoints are in the sweep's own storage."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a unit that starts again looks at the sweep's own storage."""


def _run_here(session: Session, unit: Unit, works: list[Work]) -> Report:
    def loop() -> Report:
        return run_unit(session, unit, works)

    with tempfile.TemporaryDirectory() as scratch:
        run = RunConfig(storage_path=scratch, name=unit.key)
        report: Report = (
            TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=0), run_config=run).fit().return_value
        )
    return report


def _run_in_group(sweep: Sweep, unit: Unit, works: list[Work], workers: int) -> Report:
    resources = sweep.resources
    use_gpu = resources.gpus_per_worker > 0
    per_worker = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    scaling = ScalingConfig(
        num_workers=workers,
        use_gpu=use_gpu,
        resources_per_worker={kind: amount for kind, amount in per_worker.items() if amount},
    )
    backend = TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_S)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = TorchTrainer(
            _worker_loop,
            train_loop_config={"sweep": sweep, "unit": unit, "works": works},
            scaling_config=scaling,
            run_config=RunConfig(storage_path=scratch, name=unit.key),
            torch_config=backend,
        )
        report: Report = trainer.fit().return_value
    return report


def _worker_loop(config: dict[str, Any]) -> Report:
    """One rank of a worker group; the first one measures, and its report is the group's."""
    context = train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    torch.set_num_threads(max(1, int(config["sweep"].resources.cpus_per_worker)))
    return run_unit(Session(config["sweep"], pick_device()), config["unit"], config["works"], ranks)
