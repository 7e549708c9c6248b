"""Which unit may start now: exact on the nodes that are there, largest first, and nobody waits for ever.

A unit is let in if the processes of all that run and its own can be packed on the nodes together, so that what Ray is
asked to place can be placed: no unit holds a part of what it needs while it waits for the rest.

Units are looked at in their order. One that does not fit keeps its place, and others may start past it only as long as
it would fit beside all that started past it: when those that ran before have ended, it is let in. So small units fill
the gaps that large ones leave, and never keep them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from raysft.spec.resources import Shape

_EPSILON = 1e-6  # of a CPU or GPU: Ray counts in ten-thousandths


@dataclass(frozen=True)
class Node:
    """CPUs, GPUs and labels of one node."""

    cpus: float
    gpus: float
    labels: tuple[tuple[str, str], ...] = ()


def fits(shapes: Iterable[Shape], nodes: Sequence[Node]) -> bool:
    """Whether all processes of these shapes can be on the nodes at the same time.

    They are packed by first fit from the largest down, onto the fullest node that has room, so that whole GPUs and
    whole nodes stay free. Labels that a shape asks for are compared for equality. For sizes that divide each other
    (1/4, 1/2, 1, 2, 4, 8) this finds a packing wherever there is one.
    """
    free = [[node.gpus, node.cpus] for node in nodes]
    shares: list[list[float]] = [[] for _ in nodes]  # of GPUs that are shared: what is left of each
    for shape in sorted(shapes, key=lambda shape: (shape.gpus, shape.cpus, len(shape.labels)), reverse=True):
        for _ in range(shape.workers):
            places = [
                index
                for index, node in enumerate(nodes)
                if set(shape.labels) <= set(node.labels) and _has_room(shape, free[index], shares[index])
            ]
            if not places:
                return False
            _take(shape, *min(((free[index], shares[index]) for index in places), key=lambda pair: pair[0]))
    return True


def _has_room(shape: Shape, free: list[float], shares: list[float]) -> bool:
    gpus, cpus = free
    if cpus + _EPSILON < shape.cpus:
        return False
    if 0 < shape.gpus < 1:
        return any(left + _EPSILON >= shape.gpus for left in shares) or gpus + _EPSILON >= 1
    return gpus + _EPSILON >= shape.gpus


def _take(shape: Shape, free: list[float], shares: list[float]) -> None:
    free[1] -= shape.cpus
    if not 0 < shape.gpus < 1:
        free[0] -= shape.gpus
        return
    fitting = [left for left in shares if left + _EPSILON >= shape.gpus]
    if fitting:
        shares.remove(min(fitting))
        shares.append(min(fitting) - shape.gpus)
    else:  # Ray too puts no two shares on two GPUs where one would do
        free[0] -= 1
        shares.append(1 - shape.gpus)


@dataclass
class Admission:
    """What runs, and who waits; `nodes` may be replaced as the cluster grows and shrinks."""

    nodes: Sequence[Node]
    _running: dict[str, Shape] = field(default_factory=dict)
    _head: str | None = None  # the first unit that did not fit
    _past: set[str] = field(default_factory=set)  # those that started past it

    def can_ever(self, shape: Shape) -> bool:
        """Whether it would fit if nothing else ran."""
        return fits([shape], self.nodes)

    def choose(self, units: Iterable[tuple[str, Shape]]) -> str | None:
        """The key of the first of `units` that may start; it counts as running. They are in their order, and ready."""
        running = list(self._running.values())
        head: Shape | None = None
        refused: set[Shape] = set()
        for key, shape in units:
            if shape in refused:
                continue
            free = fits([*running, shape], self.nodes)
            if free and (head is None or self._leaves_room(head, shape)):
                if head is not None:
                    self._past.add(key)
                self._running[key] = shape
                return key
            refused.add(shape)
            if head is None and self.can_ever(shape):
                head = shape
                if key != self._head:
                    self._head, self._past = key, set()
        return None

    def ended(self, key: str) -> None:
        """A unit that ran does no longer."""
        self._running.pop(key, None)
        self._past.discard(key)

    def _leaves_room(self, head: Shape, shape: Shape) -> bool:
        return fits([head, *(self._running[key] for key in self._past), shape], self.nodes)
