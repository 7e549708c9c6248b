"""Joining a Ray cluster, or starting one on this machine; and what of it a sweep can use at a time."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.tune.execution import class_cache

from raysft.cluster.address import check_cluster
from raysft.cluster.admission import Node, fits
from raysft.cluster.draining import draining_nodes
from raysft.cluster.node_types import autoscaled_node_types
from raysft.spec.plan import Unit
from raysft.spec.sweep import SpecError

_NODE_GROUP = "ray.io/node-group"

# Read when a worker starts: progress bars would fill the logs of a thousand trials, and tokenizers' own threads fight
# with the trials that share the machine.
_WORKER_ENVIRONMENT = {
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": os.environ.get("RAY_TRAIN_ENABLE_STATE_TRACKING", "1"),
}


# Tune's own result files are turned off below, and it warns of every one that is missing.
logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)

# Tune would hand the driver's AWS keys to its workers in a runtime environment, which Ray writes into its logs. Every
# node has credentials of its own, in its environment or by its role.
class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
    {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
)


@contextmanager
def connected(address: str | None, dashboard: bool = False) -> Iterator[None]:
    """Inside, this process is a driver on the cluster at `address` (or `RAY_ADDRESS`), or else on one of its own.

    A cluster that was started here is stopped again; any other is left alone.
    """
    if ray.is_initialized():
        yield
        return
    check_cluster(address)
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
    """The nodes of the cluster that are alive and stay, and those that its autoscaler may still add.

    SpecError if it has an autoscaler whose configuration cannot be read.
    """
    gcs_address = ray.get_runtime_context().gcs_address
    draining = draining_nodes()
    there = [
        _node(node["Resources"], node["Labels"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining
    ]
    try:
        types = autoscaled_node_types(gcs_address)
    except OSError as error:
        raise SpecError(f"the autoscaler's node types cannot be read ({' '.join(str(error).split())})") from error
    running = _running_types(gcs_address, draining) if types else Counter[str]()
    for kind in types:
        node = Node(kind.cpus, kind.gpus, tuple(sorted({**dict(kind.labels), _NODE_GROUP: kind.name}.items())))
        there += [node] * max(0, kind.most - running[kind.name])
    return there


def _running_types(gcs_address: str, draining: Container[str]) -> Counter[str]:
    """How many nodes of each type stay: by what they report, as not every provider labels them with it."""
    status = get_cluster_status(gcs_address)
    running = (*status.active_nodes, *status.idle_nodes)
    return Counter(node.ray_node_type_name for node in running if node.node_id not in draining)


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
