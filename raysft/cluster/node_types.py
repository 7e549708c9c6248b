"""The types of node that the autoscaler of a cluster may add, as its own configuration says.

Ray's autoscaler tells nobody what it could add: the GCS has a place for that (`ClusterConfig`), but the open-source
one never reports to it (2.60). So its configuration is read where it reads it itself, on the head node: from the file
that `ray start --head --autoscaling-config` was given, as `ray up` does, or on Kubernetes from the RayCluster.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import AutoscalingConfigProducer

_HEAD = "node:__internal_head__"  # a resource that the head node has, and no other
_MONITORS = ("ray/autoscaler/v2/monitor.py", "ray/autoscaler/_private/monitor.py")
_FILE_OPTION = "--autoscaling-config="
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")  # mounted by Kubernetes
_MOST_NODES = 1000  # of a type without a limit


@dataclass(frozen=True)
class NodeType:
    """A node as it would be, and the most that there may be of it."""

    name: str
    cpus: float
    gpus: float
    labels: tuple[tuple[str, str], ...]
    most: int


@cache
def autoscaled_node_types(gcs_address: str) -> tuple[NodeType, ...]:
    """What the autoscaler of the cluster that this process is connected to may add; nothing if it has none.

    Read once in a process: what another `ray up` changes holds from the next run on. OSError if Kubernetes refuses.
    """
    here = ray.get_runtime_context().get_node_id()
    if any(node["NodeID"] == here and _HEAD in node["Resources"] for node in ray.nodes()):
        return read_node_types(gcs_address)
    on_head = ray.remote(num_cpus=0, resources={_HEAD: 0.001})(read_node_types)
    found: tuple[NodeType, ...] = ray.get(on_head.remote(gcs_address))
    return found


def read_node_types(gcs_address: str) -> tuple[NodeType, ...]:
    """The same, in any process on the head node."""
    monitor = _monitor_words(gcs_address)
    for word in monitor:
        if word.startswith(_FILE_OPTION):
            return node_types(yaml.safe_load(Path(word.removeprefix(_FILE_OPTION)).read_text()))
    cluster = os.environ.get("RAY_CLUSTER_NAME")  # KubeRay sets it
    # KubeRay's autoscaler is a container of its own beside the head's, where there is then no monitor.
    if monitor or cluster is None or not _POD_NAMESPACE.is_file():
        return ()
    return node_types(AutoscalingConfigProducer(cluster, _POD_NAMESPACE.read_text().strip())())


def node_types(config: Mapping[str, Any]) -> tuple[NodeType, ...]:
    """The types of workers in an autoscaler's configuration.

    Each may be as many as its own limit and that of all together allow; what is left beside others is for Ray to say.
    """
    together = config.get("max_workers", _MOST_NODES)
    return tuple(
        NodeType(
            name,
            float(kind.get("resources", {}).get("CPU", 0)),
            float(kind.get("resources", {}).get("GPU", 0)),
            tuple(sorted(kind.get("labels", {}).items())),
            min(kind.get("max_workers", together), together, _MOST_NODES),
        )
        for name, kind in config["available_node_types"].items()
        if name != config["head_node_type"]
    )


def _monitor_words(gcs_address: str) -> list[str]:
    """Command line of the autoscaler that runs on this machine for the cluster; others may have theirs here too."""
    for process in psutil.process_iter(["cmdline"]):
        words: list[str] = process.info["cmdline"] or []
        if f"--gcs-address={gcs_address}" in words and any(word.endswith(_MONITORS) for word in words):
            return words
    return []
