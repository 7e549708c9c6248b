"""Faults for a sweep that runs on a cluster of this process, each done at a moment when it hits something."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

T = TypeVar("T")

DEADLINE_S = 20  # of a node that is being drained: the notice is much longer in a cloud
AWAY_S = 8  # of a storage: longer than a trial goes without writing
_WAIT_S = 240.0
_EXCHANGE, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of linux/fs.h and fcntl.h
_DISK_BYTES = 96 << 20

# How Ray names the process of a trial of `faulty_sweep`, before its first call and in one, and a worker of a group.
TRIAL = ("ray::Journalling", "ray::ResourceTrainable")
RANK = ("ray::RayTrainWorker",)


@dataclass
class Ground:
    """The cluster's nodes that work, one trial each, and the sweep's storage."""

    cluster: Cluster
    storage: Path
    trials: int = 1  # of a node
    gpus: int = 0

    def add_node(self) -> None:
        """A node for as many trials as any other."""
        self.cluster.add_node(num_cpus=self.trials, num_gpus=self.gpus, object_store_memory=80 << 20)


def _processes(names: tuple[str, ...]) -> list[psutil.Process]:
    """Those below this one that Ray calls so, the youngest last."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(names):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.pid)


def wait_for(what: str, look: Callable[[], T], seconds: float = _WAIT_S) -> T:
    """What was found, once it is true. RuntimeError if it is not there in time."""
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.05)
    return found


def kill_trial(ground: Ground) -> None:
    """SIGKILL of the process of a trial, as the kernel does it when memory is short."""
    busy = wait_for("a process of a trial", lambda: _processes(TRIAL))
    os.kill(busy[-1].pid, signal.SIGKILL)


def kill_rank(ground: Ground) -> None:
    """SIGKILL of one worker of a group."""
    ranks = wait_for("a worker group", lambda: found if len(found := _processes(RANK)) >= 2 else None)
    os.kill(ranks[-1].pid, signal.SIGKILL)


def remove_node(ground: Ground) -> None:
    """A node goes without a word, with what ran there; another one comes."""
    nodes = sorted(ground.cluster.worker_nodes, key=lambda node: node.node_id)
    ground.cluster.remove_node(nodes[0], allow_graceful=False)
    ground.add_node()


def drain_node(ground: Ground) -> None:
    """A node gets its notice, as from a cloud that takes a spot node back, and goes at its deadline; another comes."""
    node = sorted(ground.cluster.worker_nodes, key=lambda node: node.node_id)[0]
    client = ray._raylet.GcsClient(address=ground.cluster.address)
    reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    accepted, why = client.drain_node(node.node_id, reason, "chaos", int((time.time() + DEADLINE_S) * 1000))
    if not accepted:
        raise RuntimeError(f"Ray refused to drain a node: {why}")
    ground.add_node()
    time.sleep(DEADLINE_S)
    ground.cluster.remove_node(node, allow_graceful=False)


def refuse_writes(ground: Ground) -> None:
    """The storage goes, as a network filesystem that is unmounted, and comes back."""
    aside = ground.storage.with_name("aside")
    aside.write_text("not a folder")
    _exchange(ground.storage, aside)
    time.sleep(AWAY_S)
    _exchange(ground.storage, aside)
    aside.unlink()


def _exchange(one: Path, other: Path) -> None:
    """Each takes the other's name at once: between two renames somebody who writes would make the folder anew."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
        raise OSError(ctypes.get_errno(), f"{one} and {other} cannot be exchanged")


def fill_disk(ground: Ground) -> None:
    """Every byte of the storage's filesystem is taken, and given back. It has to be a small one of its own."""
    ballast = ground.storage.parent / "ballast"
    with ballast.open("wb") as file, suppress(OSError):
        while True:
            os.write(file.fileno(), b"\0" * 4096)
    time.sleep(AWAY_S)
    ballast.unlink()


def hang(ground: Ground) -> None:
    """Whoever writes to the storage's filesystem waits, as for a network filesystem whose server is away.

    It has to be one of its own that can be frozen. Another process thaws it, in case that this one dies.
    """
    mount = ground.storage.parent
    freeze = f"fsfreeze --freeze {mount} && sleep {AWAY_S} && fsfreeze --unfreeze {mount}"
    subprocess.run(["sh", "-c", freeze], check=True, start_new_session=True)


FAULTS: dict[str, Callable[[Ground], None]] = {
    "trial": kill_trial,
    "rank": kill_rank,
    "node": remove_node,
    "drain": drain_node,
    "refuse": refuse_writes,
    "full": fill_disk,
    "hang": hang,
}


@contextmanager
def filesystems(folder: Path) -> Iterator[set[str]]:
    """Inside, `folder` has a filesystem for each fault that needs one of its own: small, or such as can be frozen.

    Yields the faults for which this machine allows none.
    """
    with _mounted(folder / "full") as can_fill, _mounted(folder / "hang", folder / "hang.image") as can_freeze:
        yield {fault for fault, can in (("full", can_fill), ("hang", can_freeze)) if not can}


@contextmanager
def _mounted(folder: Path, image: Path | None = None) -> Iterator[bool]:
    """Whether `folder` is a filesystem, in memory or in a file of that name; only root may mount one."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(folder)]
    done = os.geteuid() == 0
    if done and image is not None:
        image.touch()
        os.truncate(image, _DISK_BYTES)
        command = ["mount", "-o", "loop", str(image), str(folder)]
        done = _ran(["mkfs.ext4", "-q", str(image)])
    done = done and _ran(command)
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=True)


def _ran(command: list[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
