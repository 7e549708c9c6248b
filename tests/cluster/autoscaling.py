"""A Ray cluster on this machine whose autoscaler adds and removes nodes, by Ray's fake node provider.

`ray.cluster_utils.AutoscalingCluster` is not used: it needs a file that the wheel has not, and stops every Ray here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
from ray.autoscaler.v2.sdk import get_cluster_status

from tests.ray_head import free_port

NodeTypes = Mapping[str, dict[str, Any]]

LOOK_EVERY_S = 0.25
START_LOOKS = 240
START_TRIES = 3
LOG = "head.log"
END_S = 20
MEMORY = 80 << 20  # of each object store, in bytes: the least that Ray takes is 75 MiB


@contextmanager
def autoscaling_cluster(node_types: NodeTypes, idle_s: float) -> Iterator[str]:
    """A head without CPUs that adds nodes of `node_types`, as in `available_node_types` of a cluster YAML; its address.

    Nodes that are idle for `idle_s` seconds are removed. At the end whatever was started here is ended, by its id.
    """
    # In a short path, as Unix sockets are in it.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            yield _started(node_types, idle_s, Path(folder))
        finally:
            _end(folder)


def running_types(address: str) -> Counter[str]:
    """How many nodes of each type are alive; the head has a type of its own."""
    status = get_cluster_status(address)
    return Counter(node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes))


class Watch(threading.Thread):
    """Looks at the types of the nodes that are alive until it is told to stop; inside `with`."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.seen: list[Counter[str]] = []
        self._address = address
        self._enough = threading.Event()

    def run(self) -> None:
        while not self._enough.wait(LOOK_EVERY_S):
            self.seen.append(running_types(self._address))

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self.join()


def _configuration(node_types: NodeTypes, idle_s: float, gcs_address: str) -> dict[str, Any]:
    head: dict[str, Any] = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    workers = {
        name: {
            "node_config": {},
            "min_workers": 0,
            **kind,
            "resources": {**kind["resources"], "object_store_memory": MEMORY},
        }
        for name, kind in node_types.items()
    }
    lists = ["cluster_synced_files", "initialization_commands"]
    lists += [f"{whose}setup_commands" for whose in ("", "head_", "worker_")]
    lists += [f"{whose}_start_ray_commands" for whose in ("head", "worker")]
    return {
        "cluster_name": "autoscaling",
        "max_workers": sum(kind["max_workers"] for kind in node_types.values()),
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": gcs_address,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {FAKE_HEAD_NODE_TYPE: head, **workers},
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in lists},
    }


def _started(node_types: NodeTypes, idle_s: float, folder: Path) -> str:
    """The address of a head that is up. On a busy machine Ray's patience with its own agents, 15 s, is not enough."""
    for attempt in range(START_TRIES):
        own = folder / str(attempt)
        own.mkdir()
        address = _address(_start(node_types, idle_s, own), own)
        if address is not None:
            return address
    raise TimeoutError(f"no head node in {START_TRIES} tries: {(own / LOG).read_text()[-2000:]}")


def _start(node_types: NodeTypes, idle_s: float, folder: Path) -> subprocess.Popen[bytes]:
    """A head that keeps all it writes in `folder`, on free ports: other Rays of this machine have the default ones."""
    gcs, agent, metrics, client = (free_port() for _ in range(4))
    config = folder / "autoscaler.yaml"
    config.write_text(yaml.safe_dump(_configuration(node_types, idle_s, f"127.0.0.1:{gcs}")))
    words = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=0", "--num-gpus=0"]
    words += ["--node-ip-address=127.0.0.1", f"--port={gcs}", f"--ray-client-server-port={client}"]
    words += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}", "--disable-usage-stats"]
    words += ["--include-dashboard=false", f"--object-store-memory={MEMORY}"]
    words += [f"--autoscaling-config={config}", f"--temp-dir={folder}"]
    with (folder / LOG).open("w") as log:
        return subprocess.Popen(words, env=_environment(), stdout=log, stderr=subprocess.STDOUT)


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }


def _address(head: subprocess.Popen[bytes], folder: Path) -> str | None:
    """As Ray writes it once the node is up, with the machine's own IP in place of 127.0.0.1; None if the head ended."""
    current = folder / "ray_current_cluster"
    for _ in range(START_LOOKS):
        if head.poll() is not None:
            break
        if current.is_file() and (address := current.read_text().strip()):
            return address
        time.sleep(LOOK_EVERY_S)
    return None


def _end(folder: str) -> None:
    """Kill what has the cluster's folder in its command line or writes into it, and what that started.

    On a softer signal the head waits half a minute for actors to leave it, and Train's own never does.
    """
    for _ in range(2):  # the autoscaler may have started a node while it was looked for
        ours = {one for one in psutil.process_iter(["cmdline"]) if _is_of(folder, one)}
        for one in list(ours):
            with suppress(psutil.NoSuchProcess):
                ours.update(one.children(recursive=True))
        for one in ours:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(ours, timeout=END_S)


def _is_of(folder: str, process: psutil.Process) -> bool:
    words = " ".join(process.info["cmdline"] or [])
    if folder in words:
        return True
    if not words.startswith("ray::"):  # agents and workers, which have taken another name
        return False
    with suppress(psutil.Error):
        return any(folder in file.path for file in process.open_files())
    return False
