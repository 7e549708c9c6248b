"""What a sweep costs, done and left: device time and money for training, evaluation and probes.

At first everything is reckoned from FLOP (`raysft/spec/flops.py`) and assumed speeds (`resources.assumed`). As results
come, what they took replaces that: their seconds for each unit of work of the same stage, base model and method;
elsewhere the FLOP model, times how far it was off in the stage. Of a large storage a sample of the results is read, up
to `MOST_READ` at a time, from every stage, base model and method.

Device time is that of the work in the results; what a process takes to start, or idles, is not in it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from raysft.spec.calibration import Basis, Calibration, Device, Group, Kind
from raysft.spec.flops import FlopModel
from raysft.spec.plan import Plan
from raysft.spec.prices import Pricing
from raysft.spec.resources import Shape
from raysft.spec.sweep import Sweep
from raysft.spec.units import Work
from raysft.store.costs import ResultId, read_costs, reduced_costs
from raysft.store.layout import Storage
from raysft.store.results import Cost

__all__ = ["GROUPS", "CostBook", "Device", "Estimate", "Group", "GroupCost", "estimate"]

GROUPS: tuple[Group, ...] = ("train", "evaluate", "probes")
MOST_READ = 400

_BASES: tuple[Basis, ...] = ("measured", "scaled", "modelled")


@dataclass
class GroupCost:
    """Device seconds of a group of stages on one kind of device, and the results they are of.

    `done_s` was measured in the results that were read (`read` of `done`); the others are taken like them. `left_s` is
    estimated; `modelled_done_s` and `modelled_left_s` are what the FLOP model says. `unknown` of the `left` are in no
    number. Money is None unless `resources.prices` has a node type for all of it.
    """

    group: Group
    device: Device
    done: int = 0
    left: int = 0
    read: int = 0
    unknown: int = 0
    done_s: float = 0.0
    left_s: float = 0.0
    modelled_done_s: float = 0.0
    modelled_left_s: float = 0.0
    done_money: float | None = 0.0
    left_money: float | None = 0.0
    bases: Counter[Basis] = field(default_factory=Counter)

    @property
    def total_s(self) -> float:
        return self.done_s + self.left_s

    @property
    def total_money(self) -> float | None:
        return None if self.done_money is None or self.left_money is None else self.done_money + self.left_money

    @property
    def basis(self) -> str:
        """What the seconds left rest on, in words; counts are results."""
        parts = [f"{self.bases[basis]:,} {basis}" for basis in _BASES if self.bases[basis]]
        if len(parts) == 1 and not self.unknown:
            return parts[0].partition(" ")[2]
        return ", ".join(parts + ([f"{self.unknown:,} unknown"] if self.unknown else []))


class CostBook:
    """Costs of one sweep over time: remembers what was read, so that each look reads only more."""

    def __init__(self, plan: Plan) -> None:
        self._assumed = plan.sweep.resources.assumed
        self._known: dict[ResultId, Cost] = {}
        self._kinds: dict[ResultId, Kind] = dict(_kinds(plan))
        pricing = Pricing(plan.sweep.resources.prices)
        self._prices = {kind: pricing.device_second(kind.shape) for kind in self._kinds.values()}
        self.unpriced = tuple(pricing.unpriced)

    def estimate(self, plan: Plan, storage: Storage | None = None) -> Estimate:
        """Reckon with what `plan`, of the same sweep, holds as done; costs of results are read from the storage."""
        done, left = _done_and_left(plan)
        if storage is not None:
            if not self._known:
                self._known.update(reduced_costs(storage))
            self._known.update(read_costs(storage, self._sample(done)))
        return Estimate(self._kinds, self._prices, self.unpriced, self._known, Calibration(self._assumed), done, left)

    def _sample(self, done: Iterable[ResultId]) -> list[ResultId]:
        """Results to read: as many of each stage, model and method, in the order of their keys, which are hashes."""
        unread: dict[tuple[str, str, str | None], list[ResultId]] = defaultdict(list)
        for result in done:
            if result not in self._known:
                kind = self._kinds[result]
                unread[kind.stage, kind.model, kind.method].append(result)
        chosen: list[ResultId] = []
        for count, results in enumerate(sorted(unread.values(), key=len)):  # the short ones leave room to the others
            each = (MOST_READ - len(chosen)) // (len(unread) - count)
            chosen += sorted(results)[:each]
        return chosen


class Estimate:
    """What a `CostBook` found. `groups`: those with anything in them; `unknown`: fields that would tell more;
    `unpriced`: what no node type of `resources.prices` takes; `measured`: results whose costs it rests on."""

    def __init__(
        self,
        kinds: Mapping[ResultId, Kind],
        prices: Mapping[Kind, float | None],
        unpriced: tuple[str, ...],
        known: Mapping[ResultId, Cost],
        calibration: Calibration,
        done: Iterable[ResultId],
        left: Iterable[ResultId],
    ) -> None:
        self._kinds, self._prices, self._known, self._calibration = kinds, prices, known, calibration
        self.unpriced = unpriced
        self._groups: dict[tuple[Group, Device], GroupCost] = {}
        read, unread = _split(done, known)
        self.measured = len(read)
        self._add_read(read)
        for kind, count in Counter(kinds[result] for result in unread).items():
            self._add_done(kind, kind.device, count, (self._reckoned(kind) or 0.0) * count)
        waiting = Counter(kinds[result] for result in left)
        for kind, count in waiting.items():
            self._add_left(kind, count)
        lacking = (kind.load.unknown for kind in waiting if calibration.seconds(kind) is None)
        self.unknown = tuple(dict.fromkeys(lacking))
        self.groups = tuple(cost for group in GROUPS for key, cost in sorted(self._groups.items()) if key[0] == group)

    def seconds_of(self, works: Iterable[Work]) -> dict[Device, float]:
        """Device seconds of some of the plan's works, measured or estimated; the storage is not looked at."""
        total: dict[Device, float] = defaultdict(float)
        for work in works:
            device, seconds = self.seconds(work.stage, work.key)
            total[device] += seconds
        return dict(total)

    def knows(self, stage: str, key: str) -> bool:
        """Whether it is a work of the plan."""
        return (stage, key) in self._kinds

    def seconds(self, stage: str, key: str) -> tuple[Device, float]:
        """Device and its seconds for a work of the plan; 0 if nothing tells."""
        kind, cost = self._kinds[stage, key], self._known.get((stage, key))
        if cost is not None:
            return kind.device_of(cost), kind.seconds_of(cost)
        return kind.device, self._reckoned(kind) or 0.0

    @property
    def left_s(self) -> dict[Device, float]:
        """Device seconds left."""
        total: dict[Device, float] = defaultdict(float)
        for cost in self.groups:
            total[cost.device] += cost.left_s
        return dict(total)

    def _reckoned(self, kind: Kind) -> float | None:
        found = self._calibration.seconds(kind)
        return None if found is None else found[0]

    def _add_read(self, read: Iterable[ResultId]) -> None:
        """Results whose costs are known: they count as what they took, and the others are reckoned by them."""
        taken: dict[tuple[Kind, Device], list[float]] = defaultdict(list)
        for result in read:
            kind, cost = self._kinds[result], self._known[result]
            taken[kind, kind.device_of(cost)].append(kind.seconds_of(cost))
        for (kind, device), seconds in taken.items():
            if device == kind.device:
                self._calibration.add(kind, len(seconds), sum(seconds))
            self._add_done(kind, device, len(seconds), sum(seconds))
            self._groups[kind.group, device].read += len(seconds)

    def _add_done(self, kind: Kind, device: Device, count: int, seconds: float) -> None:
        cost = self._groups.setdefault((kind.group, device), GroupCost(kind.group, device))
        cost.done += count
        cost.done_s += seconds
        cost.modelled_done_s += count * (self._calibration.modelled(kind) or 0.0)
        cost.done_money = _plus(cost.done_money, seconds, self._prices[kind])

    def _add_left(self, kind: Kind, count: int) -> None:
        cost = self._groups.setdefault((kind.group, kind.device), GroupCost(kind.group, kind.device))
        cost.left += count
        found = self._calibration.seconds(kind)
        if found is None:
            cost.unknown += count
            return
        seconds, basis = found
        cost.left_s += count * seconds
        cost.modelled_left_s += count * (self._calibration.modelled(kind) or 0.0)
        cost.bases[basis] += count
        cost.left_money = _plus(cost.left_money, count * seconds, self._prices[kind])


def estimate(plan: Plan, storage: Storage | None = None) -> Estimate:
    """Reckon once what a plan costs; with a storage, by what its results took."""
    return CostBook(plan).estimate(plan, storage)


def _kinds(plan: Plan) -> Iterator[tuple[ResultId, Kind]]:
    """Every work that the plan could have, with its kind."""
    model = FlopModel(plan.sweep)
    lengths = {trial.key: trial.optimisation.max_length for trial in plan.trials}
    found: dict[tuple[object, ...], Kind] = {}
    stages = ("embed", "neighbours", "intrinsic_dimension")
    shapes = {stage: geometry_shape(plan.sweep, stage) for stage in stages}
    works = ((work, unit.shape) for unit in plan.units for work in unit.works)
    for work, shape in (*works, *((work, shapes[work.stage]) for work in plan.geometry)):
        about = work.subject
        length = lengths.get(work.as_in or about.trial or "")
        key = (
            work.stage,
            work.about,
            about.model,
            about.method,
            about.dataset,
            about.size,
            about.epochs,
            length,
            shape,
        )
        kind = found.get(key)
        if kind is None:
            kind = Kind(work.stage, about.model, about.method, shape, model.load(work, length))
            found[key] = kind
        yield (work.stage, work.key), kind


def geometry_shape(sweep: Sweep, stage: str) -> Shape:
    """What an actor that embeds holds, or a task that makes estimates: one GPU at most; of CPUs alone, a task one."""
    measuring = sweep.resources.measuring_shape
    if stage == "embed" or measuring.gpus > 0:
        return Shape(1, measuring.cpus, min(1.0, measuring.gpus), measuring.labels)
    return Shape(1, 1.0, 0.0)


def _done_and_left(plan: Plan) -> tuple[list[ResultId], list[ResultId]]:
    """Results that are there, and that are to be had; a training whose checkpoints are lost is in both."""
    done = [(work.stage, work.key) for work in plan.works() if plan.is_done(work)]
    left = [work for unit in plan.missing_units() for work in plan.missing_works(unit)]
    geometry = plan.missing_geometry()
    sources = {work.source for work in geometry}
    probe = plan.sweep.probes.intrinsic_dimension
    kept = probe is not None and probe.keep_embeddings  # if not, whatever is to be estimated is embedded again
    left += [work for work in plan.geometry if work.key in sources and not (kept and plan.is_done(work))]
    return done, [(work.stage, work.key) for work in (*left, *geometry)]


def _split(results: Iterable[ResultId], known: Mapping[ResultId, Cost]) -> tuple[list[ResultId], list[ResultId]]:
    read: list[ResultId] = []
    unread: list[ResultId] = []
    for result in results:
        (read if result in known else unread).append(result)
    return read, unread


def _plus(money: float | None, seconds: float, price: float | None) -> float | None:
    return None if money is None or price is None else money + seconds * price
