"""Money for device time: the cheapest node type that takes a process prices the share of the node that it blocks."""

from __future__ import annotations

from collections.abc import Sequence

from raysft.spec.rates import NodePrice
from raysft.spec.resources import Shape

_HOUR = 3600.0


class Pricing:
    """Prices by shape. `unpriced` are the shapes asked for that no node type takes."""

    def __init__(self, prices: Sequence[NodePrice]) -> None:
        self._prices = prices
        self.unpriced: list[str] = []

    def device_second(self, shape: Shape) -> float | None:
        """Money for a second of one of the GPUs that a shape holds, or of its CPU cores; None if unpriced."""
        hourly = [worker_hour(node, shape) for node in self._prices if takes(node, shape)]
        if not hourly:
            if self._prices and str(shape) not in self.unpriced:
                self.unpriced.append(str(shape))
            return None
        return min(hourly) / (shape.gpus or shape.cpus) / _HOUR


def takes(node: NodePrice, shape: Shape) -> bool:
    """Whether a node of this type can hold one worker of a shape."""
    labelled = all(node.labels.get(key) == value for key, value in shape.labels)
    return labelled and node.gpus >= shape.gpus and node.cpus >= shape.cpus


def worker_hour(node: NodePrice, shape: Shape) -> float:
    """Money for an hour of one worker: the node's price times the larger of its shares of GPUs and CPUs."""
    share = shape.cpus / node.cpus
    return node.per_hour * (max(share, shape.gpus / node.gpus) if node.gpus else share)
