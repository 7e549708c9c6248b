"""What ended a trial's process: its own doing, its node, or the storage."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import ray
from ray._private.state import state as ray_state
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import RayActorError, RayTaskError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import PreemptionError, WorkerGroupError
from torch.distributed import DistError

from raysft.store.layout import StorageAccessError, one_line
from raysft.trial import InterruptedTrainingError

# A broken connection comes first; what broke it is known when the node's other processes, or their silence, have told.
_WAIT_FOR_CAUSE_S = 15.0


class ProcessDiedError(Exception):
    """A process of the trial ended, and its node did not: killed, out of memory, or an error that nothing caught."""


class NodeLostError(Exception):
    """A node under the trial died, or was taken back (a spot node)."""


class StorageLostError(Exception):
    """The trial could not write to the storage."""


Death = ProcessDiedError | NodeLostError | StorageLostError


def error_of(trial: Any) -> BaseException | None:
    """The error with which a Tune trial ended; Tune keeps it in its own folder on this machine alone."""
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return None
    error: BaseException = pickle.loads(Path(path).read_bytes())  # written by this process a moment ago
    return error


def death_of(error: BaseException | None) -> Death:
    """What `error`, as Tune reports it for a trial, was."""
    if error is None:
        return ProcessDiedError("its process ended, see the logs of the Ray session")
    causes = _causes(error)[::-1]  # the innermost first: Ray's own error is at the same time one of what it wraps
    for cause in causes:
        if isinstance(cause, InterruptedTrainingError | PreemptionError):
            return NodeLostError(one_line(cause))
        if isinstance(cause, RayActorError):
            return _death_of_actor(cause)
        if isinstance(cause, StorageAccessError):
            return StorageLostError(one_line(cause))
    return ProcessDiedError(one_line(causes[0]))


def own_error(error: BaseException) -> BaseException | None:
    """What the code of a worker group's rank raised of itself; None where a process, a node or the storage was lost.

    When one rank goes, those that wait for it in a collective raise errors of their connection, and may be heard first.
    """
    causes = _causes(error)
    lost = RayActorError | PreemptionError | InterruptedTrainingError | StorageAccessError
    if any(isinstance(cause, lost) for cause in causes):
        return None
    for cause in causes:
        if isinstance(cause, UserExceptionWithTraceback) and not _is_lost_connection(cause._base_exc):
            own: BaseException = cause._base_exc
            own.__cause__ = cause  # which has the traceback of the other process
            return own
    return None


def _is_lost_connection(error: BaseException) -> bool:
    return isinstance(error, DistError) or any(name in str(error) for name in ("gloo", "NCCL"))


def _causes(error: BaseException) -> list[BaseException]:
    """`error`, and what it was raised from, in this process or in those it waited for; the innermost last."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or any(one is other for other in found):
            continue
        found.append(one)
        waiting.append(one.__cause__)
        if isinstance(one, RayTaskError):
            waiting.append(one.cause)
        if isinstance(one, WorkerGroupError):
            waiting += one.worker_failures.values()
        if isinstance(one, WorkerHealthCheckFailedError):
            waiting.append(one.health_check_failure)
        if isinstance(one, UserExceptionWithTraceback):
            waiting.append(one._base_exc)
    return found


def _death_of_actor(error: RayActorError) -> Death:
    """From what Ray's own table of actors says, since an error may be of a connection alone."""
    context = _context(error.actor_id) if error.actor_id else None
    text = one_line(error)
    if error.preempted or (context is not None and context.reason == ActorDiedErrorContext.NODE_DIED):
        return NodeLostError(text)
    if context is not None and context.error_message:
        text = " ".join(context.error_message.split())
    return ProcessDiedError(text)


def _context(actor_id: str) -> ActorDiedErrorContext | None:
    """Why an actor died; None if it does not appear as dead."""
    end = time.monotonic() + _WAIT_FOR_CAUSE_S
    while time.monotonic() < end:
        found = ray_state.actor_table(actor_id)
        if found and not _is_alive(found["Address"]["NodeID"]):
            return ActorDiedErrorContext(reason=ActorDiedErrorContext.NODE_DIED)
        if found and found["State"] == "DEAD":
            context: ActorDiedErrorContext = found["DeathCause"].actor_died_error_context
            return context
        time.sleep(0.2)
    return None


def _is_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
