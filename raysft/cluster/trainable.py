"""The Tune class trainable that does units, one after the other, in a process that stays.

A process pays once for its imports, its base model and its benchmark items: Tune hands the same actor the next unit
(`reset_config`). A unit of one worker runs in this very process, through Ray Train's local mode; one of several gets a
worker group of its own from `TorchTrainer`, and this process only waits for it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from ray import train, tune
from ray.train import RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from raysft.measure import Report
from raysft.session import Session, pick_device
from raysft.spec.plan import Unit, Work
from raysft.spec.resources import Shape
from raysft.spec.sweep import Sweep
from raysft.store.checkpoints import is_complete
from raysft.store.layout import Storage, checkpoint_folder
from raysft.store.results import read_failures, result_path
from raysft.training.parallel import Ranks
from raysft.trial import run_unit

# Works whose weights may be missing although their result is there; the plan knows.
_MAKING = ("pretrain", "train")


@dataclass(frozen=True)
class Task:
    """A unit, the works of it that are missing, and by epoch those that other units do on its checkpoints."""

    unit: Unit
    works: list[Work]
    apart: Mapping[int, list[Work]]

    def still_missing(self, storage: Storage) -> Task:
        """Without what was committed since the plan was made, by a process that died or by other units, and without
        the epochs whose checkpoints are there. One process looks, for all ranks of a trial."""

        def missing(works: list[Work]) -> list[Work]:
            return [work for work in works if not storage.exists(result_path(work.stage, work.key))]

        making = [work for work in self.works if work.stage in _MAKING]
        apart = {
            epoch: left
            for epoch, works in self.apart.items()
            if (left := missing(works)) and not is_complete(storage, checkpoint_folder(self.unit.key, epoch))
        }
        return Task(self.unit, making + missing([work for work in self.works if work not in making]), apart)


Tasks = Mapping[str, Task]

# Rank 0 writes checkpoints while the others wait in a collective, which must not time out meanwhile.
_COLLECTIVE_TIMEOUT_S = 2 * 3600


class UnitTrainable(tune.Trainable):
    """Does the unit that `config["unit"]` names, in one step."""

    def setup(self, config: dict[str, Any], sweep: Sweep, tasks: Tasks) -> None:
        self.tasks = tasks
        self.session = Session(sweep, pick_device())
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config = new_config
        self.task = self.tasks[new_config["unit"]]
        torch.set_num_threads(max(1, int(self.task.unit.shape.cpus)))
        return True

    def step(self) -> dict[str, Any]:
        started = time.perf_counter()
        unit = self.task.unit
        task = self.task.still_missing(self.session.storage)
        report = _run_here(self.session, task) if unit.shape.workers == 1 else _run_in_group(self.session, task)
        return {**asdict(report), "unit": unit.key, "wall_s": time.perf_counter() - started, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: results and checkpoints are in the sweep's own storage."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a unit that starts again looks at the sweep's own storage."""


def _run_here(session: Session, task: Task) -> Report:
    def loop() -> Report:
        return run_unit(session, task.unit, task.works, task.apart)

    with tempfile.TemporaryDirectory() as scratch:
        run = RunConfig(storage_path=scratch, name=task.unit.key)
        report: Report = (
            TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=0), run_config=run).fit().return_value
        )
    return report


def _run_in_group(session: Session, task: Task) -> Report:
    """Run a unit in a worker group, which holds the resources and is gone afterwards.

    An exception in a rank tears the group down. If a rank recorded a failure before, the trial failed for a reason of
    its own, and is not tried again; otherwise the error goes to Tune, which is what retries are for.
    """
    shape = task.unit.shape
    scaling = ScalingConfig(
        num_workers=shape.workers,
        use_gpu=shape.gpus > 0,
        resources_per_worker=shape.bundle(),
        label_selector=dict(shape.labels) or None,
    )
    before = _failures(session, task.works)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = TorchTrainer(
            _worker_loop,
            train_loop_config={"sweep": session.sweep, "task": task},
            scaling_config=scaling,
            run_config=RunConfig(storage_path=scratch, name=task.unit.key),
            torch_config=TorchConfig(backend=_backend(shape), timeout_s=_COLLECTIVE_TIMEOUT_S),
        )
        try:
            report: Report = trainer.fit().return_value
        except TrainingFailedError:
            recorded = _failures(session, task.works)[len(before) :]
            if not recorded:
                raise
            return Report(failures=recorded)
    return report


def _backend(shape: Shape) -> str:
    """NCCL, unless the GPUs are only so called, as in tests."""
    return "nccl" if shape.gpus > 0 and torch.version.cuda is not None else "gloo"


def _failures(session: Session, works: list[Work]) -> list[dict[str, Any]]:
    return [failure for work in works for failure in read_failures(session.storage, work.stage, work.key)]


def _worker_loop(config: dict[str, Any]) -> Report:
    """One rank of a worker group; the report of the first one is the group's."""
    context = train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    task: Task = config["task"]
    torch.set_num_threads(max(1, int(task.unit.shape.cpus)))
    return run_unit(Session(config["sweep"], pick_device()), task.unit, task.works, task.apart, ranks)
