"""Device time of a run, used and left, and when it will end: the plan's estimate, corrected by what its units took.

A unit's expected device seconds come from `raysft/spec/cost.py` when the run begins. What units of the same kind held,
over what was expected of them, corrects those that are left. Before the first of a kind has ended, each is expected to
take as much more as those that ended did on the mean: what starting a process takes is in no estimate. The end follows
from how many devices the run held on the mean.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from raysft.spec.calibration import Device
from raysft.spec.cost import estimate
from raysft.spec.plan import Plan, Unit
from raysft.store.layout import Storage

_Kind = tuple[Device, str]


class Forecast:
    """Follows the units of one run. `clock` is in seconds and only goes forward."""

    def __init__(self, plan: Plan, storage: Storage, clock: Callable[[], float] = time.monotonic) -> None:
        found = estimate(plan, storage)
        self._clock = clock
        self._expected: dict[str, float] = {}
        self._waiting: dict[_Kind, float] = defaultdict(float)
        self._wait: Counter[_Kind] = Counter()  # units
        for unit in plan.missing_units():
            seconds = sum(found.seconds_of(plan.missing_works(unit)).values())
            self._expected[unit.key] = seconds
            self._waits(unit, 1)
        self._geometry = found.seconds_of(work for work in plan.geometry if not plan.is_done(work))
        self._used: dict[Device, float] = defaultdict(float)
        for cost in found.groups:
            self._used[cost.device] += cost.done_s
        self._held: dict[_Kind, float] = defaultdict(float)
        self._held_for: dict[_Kind, float] = defaultdict(float)  # what was expected of the units that ended
        self._ended = 0
        self._running: dict[str, tuple[Unit, float]] = {}
        self._lost: dict[Device, float] = defaultdict(float)  # by units that died
        self._began: float | None = None

    def started(self, unit: Unit) -> None:
        now = self._clock()
        self._began = now if self._began is None else self._began
        self._running[unit.key] = unit, now
        self._waits(unit, -1)

    def ended(self, unit: Unit) -> None:
        """A unit ended by itself, so what it took tells of others."""
        kind = _kind(unit)
        self._held[kind] += self._stopped(unit)
        self._held_for[kind] += self._expected[unit.key]
        self._ended += 1

    def died(self, unit: Unit, again: bool) -> None:
        """The process of a unit died: its time is lost."""
        self._lost[_kind(unit)[0]] += self._stopped(unit)
        if again:
            self._waits(unit, 1)

    def units_over(self) -> None:
        """No unit waits any more; what is left is the geometry."""
        self._waiting.clear()
        self._wait.clear()

    def finished(self) -> None:
        """Nothing is left to do."""
        self.units_over()
        self._geometry = {}

    def used_s(self, device: Device) -> float:
        """Device seconds: of the results that were there before this run, and held by its units until now."""
        return self._used[device] + self._held_s(device)

    def left_s(self, device: Device) -> float:
        """Device seconds that are still to be held."""
        waiting = [
            self._corrected(kind, self._waiting[kind], self._wait[kind]) for kind in self._on(device, self._wait)
        ]
        running = [
            max(0.0, self._corrected(_kind(unit), self._expected[unit.key]) - self._holds(unit, since))
            for unit, since in self._running.values()
            if _kind(unit)[0] == device
        ]
        return sum(waiting) + sum(running) + self._geometry.get(device, 0.0)

    def seconds_left(self) -> float | None:
        """Wall seconds to the end of the run; None before anything of it took time."""
        if self._began is None or (elapsed := self._clock() - self._began) <= 0:
            return None
        devices: tuple[Device, ...] = ("GPU", "core")
        left = {device: self.left_s(device) for device in devices}
        held = {device: self._held_s(device) / elapsed for device in devices}
        return max((left[device] / (held[device] or 1.0) for device in devices if left[device]), default=0.0)

    def _waits(self, unit: Unit, more: int) -> None:
        self._wait[_kind(unit)] += more
        self._waiting[_kind(unit)] += more * self._expected[unit.key]

    def _stopped(self, unit: Unit) -> float:
        """Take a unit off those that run; the device seconds that it held."""
        _, since = self._running.pop(unit.key, (unit, self._clock()))
        return self._holds(unit, since)

    def _holds(self, unit: Unit, since: float) -> float:
        gpus, cpus = unit.shape.size
        return (gpus or cpus) * (self._clock() - since)

    def _held_s(self, device: Device) -> float:
        ended = sum(self._held[kind] for kind in self._on(device, self._held))
        running = [self._holds(unit, since) for unit, since in self._running.values() if _kind(unit)[0] == device]
        return ended + sum(running) + self._lost[device]

    def _corrected(self, kind: _Kind, expected: float, units: int = 1) -> float:
        """What some units of a kind will take, by those that ended."""
        if self._held_for[kind] > 0:
            return max(0.0, expected * self._held[kind] / self._held_for[kind])
        more = (sum(self._held.values()) - sum(self._held_for.values())) / max(1, self._ended)
        return max(0.0, expected + units * more)

    @staticmethod
    def _on(device: Device, kinds: Iterable[_Kind]) -> list[_Kind]:
        return [kind for kind in kinds if kind[0] == device]


def _kind(unit: Unit) -> _Kind:
    return ("GPU" if unit.shape.gpus > 0 else "core"), unit.kind
