"""The Tune class trainable that does units, one after the other, in a process that stays.

A process pays once for its imports, its base model and its benchmark items: Tune hands the same actor the next unit
(`reset_config`). A unit of one worker runs in this very process, through Ray Train's local mode; one of several gets a
worker group of its own from `TorchTrainer`, and this process only waits for it.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from ray import train, tune
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from raysft.cluster import unit_log
from raysft.cluster.deaths import own_error
from raysft.cluster.draining import NodeNotice
from raysft.cluster.train_runs import run_name, train_run
from raysft.measure import Report
from raysft.session import Session, pick_device
from raysft.spec.plan import Unit, Work
from raysft.spec.resources import Shape
from raysft.spec.sweep import Sweep
from raysft.store.checkpoints import is_complete
from raysft.store.layout import Storage, checkpoint_folder, require_storage
from raysft.store.results import result_path
from raysft.training.parallel import Ranks
from raysft.trial import InterruptedTrainingError, first_missing, run_unit

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

        missing = partial(_uncommitted, storage)
        making = [work for work in self.works if work.stage in _MAKING]
        apart = {
            epoch: left
            for epoch, works in self.apart.items()
            if (left := missing(works)) and not is_complete(storage, checkpoint_folder(self.unit.key, epoch))
        }
        return Task(self.unit, making + missing([work for work in self.works if work not in making]), apart)


def _uncommitted(storage: Storage, works: list[Work]) -> list[Work]:
    return [work for work in works if not storage.exists(result_path(work.stage, work.key))]


Tasks = Mapping[str, Task]

# Rank 0 writes checkpoints while the others wait in a collective, which must not time out meanwhile.
_COLLECTIVE_TIMEOUT_S = 2 * 3600


class UnitTrainable(tune.Trainable):
    """Does the unit that `config["unit"]` names, in one step."""

    def setup(self, config: dict[str, Any], sweep: Sweep, tasks: Tasks) -> None:
        unit_log.open_log()
        self.tasks = tasks
        self.session = Session(sweep, pick_device())
        self.has_to_go = NodeNotice()
        self._left = self.logdir
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if self._left != self.logdir:  # Tune made a working directory for the trial before, which nothing was put into
            shutil.rmtree(self._left, ignore_errors=True)
        self._left = self.logdir
        self.config = new_config
        self.task = self.tasks[new_config["unit"]]
        torch.set_num_threads(max(1, int(self.task.unit.shape.cpus)))
        return True

    def step(self) -> dict[str, Any]:
        started = time.perf_counter()
        unit = self.task.unit
        if self.has_to_go():  # Tune hands a free process its next unit wherever that is
            raise InterruptedTrainingError("its node is being taken away; it has not begun")
        require_storage(self.session.storage)
        task = self.task.still_missing(self.session.storage)
        unit_log.begins(unit, task.works)
        report = (
            _run_here(self.session, task, self.has_to_go)
            if unit.shape.workers == 1
            else _run_in_group(self.session, task)
        )
        left = _uncommitted(self.session.storage, task.works) if report.failures else []
        wall_s = time.perf_counter() - started
        unit_log.ended(unit, report, wall_s)
        return {
            **asdict(report),
            "left": [(work.stage, work.key) for work in left],
            "unit": unit.key,
            "wall_s": wall_s,
            "done": True,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: results and checkpoints are in the sweep's own storage."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: a unit that starts again looks at the sweep's own storage."""


def _run_here(session: Session, task: Task, has_to_go: Callable[[], bool]) -> Report:
    unit = task.unit

    def loop() -> Report:
        progress = partial(unit_log.goes_on, unit)
        return run_unit(session, unit, task.works, task.apart, progress=progress, has_to_go=has_to_go)

    with tempfile.TemporaryDirectory() as scratch, train_run(unit) as ended:
        run = RunConfig(storage_path=scratch, name=run_name(unit))
        report: Report = (
            TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=0), run_config=run).fit().return_value
        )
        ended(report)
    return report


def _run_in_group(session: Session, task: Task) -> Report:
    """Run a unit in a worker group, which holds the resources and is gone afterwards.

    An exception in a rank tears the group down. What the trial's own code raised is recorded; if a process, a node or
    the storage was lost, the error goes to the driver, which decides whether the trial is tried again.
    """
    shape = task.unit.shape
    scaling = ScalingConfig(
        num_workers=shape.workers,
        use_gpu=shape.gpus > 0,
        resources_per_worker=shape.bundle(),
        label_selector=dict(shape.labels) or None,
    )
    with tempfile.TemporaryDirectory() as scratch:
        trainer = TorchTrainer(
            _worker_loop,
            train_loop_config={"sweep": session.sweep, "task": task},
            scaling_config=scaling,
            # Whatever ends the group, the driver decides, and looks first at what is still missing.
            run_config=RunConfig(
                storage_path=scratch,
                name=run_name(task.unit),
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            ),
            torch_config=TorchConfig(backend=_backend(shape), timeout_s=_COLLECTIVE_TIMEOUT_S),
        )
        try:
            report: Report = trainer.fit().return_value
        except TrainingFailedError as error:
            own = own_error(error)
            if own is None:
                raise
            work = first_missing(session, task.works)
            return Report(failures=[session.fail(work.stage, work.key, own, work.subject.as_row())])
    return report


def _backend(shape: Shape) -> str:
    """NCCL, unless the GPUs are only so called, as in tests."""
    return "nccl" if shape.gpus > 0 and torch.version.cuda is not None else "gloo"


def _worker_loop(config: dict[str, Any]) -> Report:
    """One rank of a worker group; the report of the first one is the group's."""
    context = train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    task: Task = config["task"]
    torch.set_num_threads(max(1, int(task.unit.shape.cpus)))
    session = Session(config["sweep"], pick_device())
    unit_log.open_log()
    progress = partial(unit_log.goes_on, task.unit) if ranks.is_first else lambda _: None
    return run_unit(session, task.unit, task.works, task.apart, ranks, progress, NodeNotice())
