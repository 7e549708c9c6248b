"""Joining a Ray cluster, or starting one on this machine; and what of it a sweep can use at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.state import state as ray_state

from raysft.cluster.admission import Node, fits
from raysft.spec.plan import Unit
from raysft.spec.sweep import SpecError

_NODE_GROUP = "ray.io/node-group"
_MOST_NODES = 1000  # of a group without a limit

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
    # The queue lets in what fits, so all that Tune is given may ask for its nodes, which an autoscaler then brings.
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1000")
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


def cluster_nodes() -> list[Node]:
    """The nodes of the cluster that are alive, and those that its autoscaler may still add."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    there = [_node(node["Resources"], node["Labels"]) for node in alive]
    config = ray_state.get_cluster_config()  # no public call says what an autoscaler may add
    for group in config.node_group_configs if config is not None else ():
        running = sum(node["Labels"].get(_NODE_GROUP) == group.name for node in alive)
        most = _MOST_NODES if group.max_count < 0 else min(group.max_count, _MOST_NODES)
        labels = {**group.labels, _NODE_GROUP: group.name}
        there += [_node(group.resources, labels)] * max(0, most - running)
    return there


def _node(resources: Mapping[str, float], labels: Mapping[str, str]) -> Node:
    return Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0), tuple(sorted(labels.items())))


def refuse_what_fits_nowhere(units: Iterable[Unit], nodes: Sequence[Node]) -> None:
    """SpecError for the first unit that would not fit if nothing else ran."""
    for shape in dict.fromkeys(unit.shape for unit in units):
        if not fits([shape], nodes):
            cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
            whose = next(unit for unit in units if unit.shape == shape)
            many = f"{len(nodes)} node" + ("" if len(nodes) == 1 else "s")
            raise SpecError(f"resources: {whose} needs {shape}, the cluster has {cpus:g} CPU, {gpus:g} GPU on {many}")
