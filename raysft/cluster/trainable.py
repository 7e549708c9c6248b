"""The Tune class trainable that does units, one after the other, in a process that stays.

A process pays once for its imports, its base model and its benchmark items: Tune hands the same actor the next unit
(`reset_config`). In a sweep of one worker a trial, units run in this very process, through Ray Train's local mode; in
a sweep of several, each unit gets a worker group of its own from `TorchTrainer`, and this process only waits for it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from ray import train, tune
from ray.train import RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from raysft.measure import Report
from raysft.session import Session, pick_device
from raysft.spec.plan import Unit, Work
from raysft.spec.sweep import Sweep
from raysft.store.results import read_failures, result_path
from raysft.training.parallel import Ranks
from raysft.trial import run_unit

# Works whose weights may be missing although their result is there; the plan knows.
_MAKING = ("pretrain", "train")

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
        unit, planned = self.units[self.config["unit"]]
        works = [work for work in planned if work.stage in _MAKING or not self._is_committed(work)]
        if self.session.sweep.resources.workers == 1:
            report = _run_here(self.session, unit, works)
        else:
            report = _run_in_group(self.session, unit, works)
        return {**asdict(report), "unit": unit.key, "wall_s": time.perf_counter() - started, "done": True}

    def _is_committed(self, work: Work) -> bool:
        """Whether an earlier attempt, in a process that died, has committed a measurement since the plan was made."""
        return self.session.storage.exists(result_path(work.stage, work.key))

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


def _run_in_group(session: Session, unit: Unit, works: list[Work]) -> Report:
    """Run a unit in a worker group that holds the resources: of all workers for a fine-tuning, of one otherwise.

    An exception in a rank tears the group down. If a rank recorded a failure before, the trial failed for a reason of
    its own, and is not tried again; otherwise the error goes to Tune, which is what retries are for.
    """
    resources = session.sweep.resources
    use_gpu = resources.gpus_per_worker > 0
    per_worker = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    scaling = ScalingConfig(
        num_workers=resources.workers if unit.kind == "fine_tune" else 1,
        use_gpu=use_gpu,
        resources_per_worker={kind: amount for kind, amount in per_worker.items() if amount},
    )
    before = _failures(session, works)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = TorchTrainer(
            _worker_loop,
            train_loop_config={"sweep": session.sweep, "unit": unit, "works": works},
            scaling_config=scaling,
            run_config=RunConfig(storage_path=scratch, name=unit.key),
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_S),
        )
        try:
            report: Report = trainer.fit().return_value
        except TrainingFailedError:
            recorded = _failures(session, works)[len(before) :]
            if not recorded:
                raise
            return Report(failures=recorded)
    return report


def _failures(session: Session, works: list[Work]) -> list[dict[str, Any]]:
    return [failure for work in works for failure in read_failures(session.storage, work.stage, work.key)]


def _worker_loop(config: dict[str, Any]) -> Report:
    """One rank of a worker group; the first one measures, and its report is the group's."""
    context = train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    torch.set_num_threads(max(1, int(config["sweep"].resources.cpus_per_worker)))
    return run_unit(Session(config["sweep"], pick_device()), config["unit"], config["works"], ranks)
