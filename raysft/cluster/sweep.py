"""The driver of a sweep: runs what the plan misses as Tune trials.

Protocol. The plan is made from the storage each time; Tune's own state is thrown away. A unit that fails records its
failure in the storage and the sweep goes on; a process that dies is restarted by Tune up to `resources.max_retries`
times, and finds what it had committed before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ray import tune
from ray.tune import Callback, FailureConfig, PlacementGroupFactory, RunConfig, TuneConfig, Tuner

from raysft.cluster.connect import cluster_nodes, refuse_what_fits_nowhere
from raysft.cluster.queue import ReadyQueue
from raysft.cluster.trainable import Task, UnitTrainable
from raysft.spec.plan import Plan, Unit
from raysft.spec.resources import Labels, Shape
from raysft.store.checkpoints import is_complete
from raysft.store.layout import Storage, checkpoint_folder
from raysft.store.results import record_failure


@dataclass
class UnitOutcome:
    """One unit as the driver saw it: wall seconds in its process, seconds by stage, recorded failures."""

    unit: Unit
    wall_s: float
    seconds: dict[str, float]
    failures: list[dict[str, Any]]

    @property
    def overhead_s(self) -> float:
        """Seconds of the unit that are neither training nor measuring: writing checkpoints is among them."""
        return self.wall_s - sum(seconds for stage, seconds in self.seconds.items() if stage != "checkpoint")


@dataclass
class SweepOutcome:
    """What `run_sweep` did."""

    outcomes: list[UnitOutcome] = field(default_factory=list)
    blocked: list[Unit] = field(default_factory=list)
    died: list[Unit] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return bool(self.blocked or self.died or any(outcome.failures for outcome in self.outcomes))


Watcher = Callable[[UnitOutcome | Unit], None]


def run_sweep(plan: Plan, storage: Storage, watch: Watcher = lambda _: None) -> SweepOutcome:
    """Run every missing unit of `plan` on the cluster that this process is connected to.

    `watch` is told each unit's outcome as it ends, or the unit itself if its process died for good.
    """
    units = plan.missing_units()
    outcome = SweepOutcome()
    if not units:
        return outcome
    refuse_what_fits_nowhere(units, cluster_nodes())
    queue = ReadyQueue(units, cluster_nodes, partial(_is_stored, storage))
    apart = plan.works_apart()
    by_key = {unit.key: Task(unit, plan.missing_works(unit), apart.get(unit.key, {})) for unit in units}
    driver_labels, shapes = plan.sweep.resources.driver_labels, {unit.key: unit.shape for unit in units}
    trainable = tune.with_resources(
        tune.with_parameters(UnitTrainable, sweep=plan.sweep, tasks=by_key),
        lambda config: _bundles(shapes[config["unit"]], driver_labels),
    )
    with tempfile.TemporaryDirectory() as scratch:
        Tuner(
            trainable,
            tune_config=TuneConfig(search_alg=queue, num_samples=len(units), reuse_actors=True),
            run_config=RunConfig(
                storage_path=scratch,
                name=plan.sweep.name,
                verbose=0,
                failure_config=FailureConfig(max_failures=plan.sweep.resources.max_retries),
                callbacks=[_Watch({unit.key: unit for unit in units}, outcome, watch)],
            ),
        ).fit()
    outcome.blocked = queue.blocked
    for unit in queue.blocked:
        error = RuntimeError(f"its base model {unit.model} could not be pretrained")
        work = by_key[unit.key].works[0]
        record_failure(storage, work.stage, work.key, error, work.subject.as_row())
    for unit in outcome.died:
        error = RuntimeError("its process died, see the logs of the Ray session")
        work = by_key[unit.key].works[0]
        record_failure(storage, work.stage, work.key, error, work.subject.as_row())
    return outcome


def _is_stored(storage: Storage, unit: Unit) -> bool:
    """Whether the checkpoint that a unit measures is complete."""
    return is_complete(storage, checkpoint_folder(*unit.weights))


def _bundles(shape: Shape, driver_labels: Labels) -> PlacementGroupFactory:
    """What a trial's own process holds: its one worker's resources; next to nothing where a worker group holds them.

    A bundle must hold something, and a CPU here would be reserved twice, so the waiting process asks for one byte.
    """
    if shape.workers > 1:
        return _placed({"memory": 1}, driver_labels)
    return _placed(shape.bundle(), dict(shape.labels))


def _placed(bundle: dict[str, float], labels: Labels) -> PlacementGroupFactory:
    return PlacementGroupFactory([bundle], **({"bundle_label_selector": [labels]} if labels else {}))


class _Watch(Callback):
    """Collects outcomes as Tune reports them."""

    def __init__(self, units: dict[str, Unit], outcome: SweepOutcome, watch: Watcher) -> None:
        self._units = units
        self._outcome = outcome
        self._watch = watch

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks into a state that is never restored, and a progress bar has locks."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result
        done = UnitOutcome(self._units[result["unit"]], result["wall_s"], result["seconds"], result["failures"])
        self._outcome.outcomes.append(done)
        self._watch(done)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.num_failures > trial.max_failures >= 0:  # no retry is left
            unit = self._units[trial.config["unit"]]
            self._outcome.died.append(unit)
            self._watch(unit)
