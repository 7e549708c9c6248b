"""Joining a Ray cluster, or starting one on this machine; and what of it a sweep can use at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from raysft.spec.sweep import Resources, SpecError

# Read when a worker starts: progress bars would fill the logs of a thousand trials, and tokenizers' own threads fight
# with the trials that share the machine.
_WORKER_ENVIRONMENT = {
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
}


# Tune's own result files are turned off below, and it warns of every one that is missing.
logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)


@contextmanager
def connected(address: str | None, dashboard: bool = False) -> Iterator[None]:
    """Inside, this process is a driver on the cluster at `address` (or `RAY_ADDRESS`), or else on one of its own.

    A cluster that was started here is stopped again; any other is left alone.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    runtime_env: dict[str, Any] = {"env_vars": _WORKER_ENVIRONMENT}
    options: dict[str, Any] = {"runtime_env": runtime_env, "log_to_driver": False, "logging_level": "warning"}
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # Two processes of a trial or a stream may wait for CPUs; Ray's own guess at how many trials to queue starves them.
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "16")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    try:
        if address is None:
            # Ray's notice that it made a token for this cluster: nothing that a newcomer could or should act on.
            logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
            ray.init(address="local", include_dashboard=dashboard, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SpecError(f"no Ray cluster at {address or 'this machine'} ({' '.join(str(error).split())})") from error
    try:
        yield
    finally:
        ray.shutdown()


def trials_at_once(resources: Resources) -> int:
    """Trials that the cluster has room for. SpecError if it has room for none."""
    have = ray.cluster_resources()
    need = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    fitting = [int(have.get(kind, 0.0) / amount) for kind, amount in need.items() if amount > 0]
    at_once = min(fitting) // resources.workers
    if at_once < 1:
        wanted = ", ".join(f"{amount * resources.workers:g} {kind}" for kind, amount in need.items() if amount)
        offered = ", ".join(f"{have.get(kind, 0.0):g} {kind}" for kind in need)
        raise SpecError(f"resources: a trial needs {wanted}, the cluster has {offered}")
    return at_once
