"""Train runs of the state API (`/api/train/v2/runs/v1` of the dashboard), by names that a person finds again.

Ray registers the runs of worker groups, where RAY_TRAIN_ENABLE_STATE_TRACKING is set, but none of its local mode, in
which trials of one worker are trained. This registers those: nothing waits for the answer of Ray's state actor, which
at times takes long. It keeps some 17 KB for each run until the cluster ends, so each process registers its first 100.
"""

from __future__ import annotations

import functools
import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.worker import global_worker
from ray.train import DataConfig
from ray.train.v2._internal.state import schema
from ray.train.v2._internal.state.state_actor import get_or_create_state_actor
from ray.train.v2._internal.state.util import construct_data_config
from ray.train.v2._internal.util import TrainingFramework

from raysft.measure import Report
from raysft.spec.plan import Unit

_TRACKING = "RAY_TRAIN_ENABLE_STATE_TRACKING"
_MOST_RUNS = 100
_LONGEST_NAME = 200  # and the key: a run's name is a folder's too


_begun = itertools.count()


def run_name(unit: Unit) -> str:
    """What the run's lines say of the unit, and its key."""
    return f"{str(unit)[:_LONGEST_NAME]} {unit.key}"


@contextmanager
def train_run(unit: Unit) -> Iterator[Callable[[Report], None]]:
    """Inside, the state API has a run of this unit, in this process. It ends as the report says that it is given."""
    reports: list[Report] = []
    is_asked = unit.kind == "fine_tune" and os.environ.get(_TRACKING, "0") == "1"
    if not is_asked or next(_begun) >= _MOST_RUNS:
        yield reports.append
        return
    run = _run(unit)
    attempt = _attempt(unit, run.id)
    _tell(run, attempt)
    try:
        yield reports.append
    finally:
        ended = _status(reports)
        run.status, attempt.status = ended, schema.RunAttemptStatus(ended.value)
        run.status_detail = "; ".join(
            f"{one['stage']}: {one['message']}" for report in reports for one in report.failures
        )
        run.end_time_ns = attempt.end_time_ns = time.time_ns()
        _tell(run, attempt)


def _status(reports: list[Report]) -> schema.RunStatus:
    if not reports:
        return schema.RunStatus.ABORTED
    return schema.RunStatus.ERRORED if any(report.failures for report in reports) else schema.RunStatus.FINISHED


def _tell(run: schema.TrainRun, attempt: schema.TrainRunAttempt) -> None:
    actor = _state_actor()
    actor.create_or_update_train_run.remote(run)
    actor.create_or_update_train_run_attempt.remote(attempt)


@functools.cache
def _state_actor() -> Any:
    return get_or_create_state_actor()


def _run(unit: Unit) -> schema.TrainRun:
    context = ray.get_runtime_context()
    return schema.TrainRun(
        id=uuid.uuid4().hex,
        name=run_name(unit),
        job_id=context.get_job_id(),
        controller_actor_id=context.get_actor_id(),
        status=schema.RunStatus.RUNNING,
        start_time_ns=time.time_ns(),
        controller_log_file_path=global_worker.get_out_file_path(),
        framework_versions={"ray": ray.__version__},
        run_settings=_settings(unit),
    )


def _settings(unit: Unit) -> schema.RunSettings:
    """What the schema demands; the sweep's own settings are in the storage."""
    return schema.RunSettings(
        train_loop_config={"unit": unit.key},
        backend_config=schema.BackendConfig(framework=TrainingFramework.TORCH, config={}),
        scaling_config=schema.ScalingConfig(
            num_workers=1,
            use_gpu=unit.shape.gpus > 0,
            resources_per_worker=unit.shape.bundle(),
            placement_strategy="PACK",
            accelerator_type=None,
            use_tpu=False,
            topology=None,
            bundle_label_selector=None,
        ),
        datasets=[],
        data_config=construct_data_config(DataConfig()),
        run_config=schema.RunConfig(
            name=run_name(unit),
            failure_config=schema.FailureConfig(max_failures=0, controller_failure_limit=0),
            worker_runtime_env={},
            checkpoint_config=schema.CheckpointConfig(
                num_to_keep=None, checkpoint_score_attribute=None, checkpoint_score_order="max"
            ),
            storage_path="",
            storage_filesystem=None,
        ),
    )


def _attempt(unit: Unit, run: str) -> schema.TrainRunAttempt:
    context = ray.get_runtime_context()
    resources = schema.TrainResources(resources=unit.shape.bundle())
    worker = schema.TrainWorker(
        world_rank=0,
        local_rank=0,
        node_rank=0,
        actor_id=context.get_actor_id(),
        node_id=context.get_node_id(),
        node_ip=ray.util.get_node_ip_address(),
        pid=os.getpid(),
        gpu_ids=[int(index) for index in ray.get_gpu_ids() if str(index).isdigit()],
        status=schema.ActorStatus.ALIVE,
        resources=resources,
        log_file_path=global_worker.get_out_file_path(),
    )
    return schema.TrainRunAttempt(
        run_id=run,
        attempt_id=uuid.uuid4().hex,
        status=schema.RunAttemptStatus.RUNNING,
        start_time_ns=time.time_ns(),
        resources=[resources],
        workers=[worker],
    )
