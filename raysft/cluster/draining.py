"""Whether this process's node is to be taken away: a spot node that got its notice, or one that an operator drains."""

from __future__ import annotations

import time

import ray
from ray._private.state import state as ray_state

_LOOK_EVERY_S = 2.0  # a spot node's notice comes two minutes, on GCP half a minute, before its end


class NodeNotice:
    """Asks Ray, at most every two seconds, whether the node of this process is being drained."""

    def __init__(self) -> None:
        self._node = ray.get_runtime_context().get_node_id()
        self._looked_at = float("-inf")
        self._came = False

    def __call__(self) -> bool:
        if not self._came and time.monotonic() - self._looked_at > _LOOK_EVERY_S:
            self._came = self._node in draining_nodes()
            self._looked_at = time.monotonic()
        return self._came


def draining_nodes() -> set[str]:
    """Ids, in hexadecimal, of the nodes that get no new work because they will go."""
    return set(ray_state.get_draining_nodes())  # no public call says so
