"""The plan: every result a sweep asks for (`raysft/spec/units.py`), minus what the storage holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from raysft.spec.grid import BlockCount, Trial, expand
from raysft.spec.sweep import Sweep, resolved_yaml
from raysft.spec.units import (
    SHIPPED_TEXTS,
    Subject,
    Unit,
    UnitKind,
    Work,
    divergence_work,
    likelihood_identity,
    model_key,
    sweep_units,
    text_count,
    trial_subject,
)
from raysft.store.checkpoints import is_complete
from raysft.store.layout import (
    REPORT_FILE,
    REPORT_SPEC_FILE,
    Storage,
    checkpoint_folder,
    embeddings_folder,
    model_folder,
)
from raysft.store.results import NewerSchemaError, read_result, scan_results
from raysft.store.schema import RESULTS

__all__ = [
    "SHIPPED_TEXTS",
    "Plan",
    "Subject",
    "Unit",
    "UnitKind",
    "Work",
    "divergence_work",
    "is_up_to_date",
    "likelihood_identity",
    "make_plan",
    "model_key",
    "nothing_missing",
    "text_count",
    "trial_subject",
    "with_storage",
]


@dataclass(frozen=True)
class Plan:
    """All units of a sweep in the order they should run, and which of their works are committed already.

    `diverged` maps trials whose training came to a loss that is not finite to the epoch in which it did: what was to be
    measured from there on cannot be had, and is neither missing nor done.

    `lost` are trials that were trained and whose checkpoints are not all in the storage although something is still to
    be measured of them by another process than the one that trains: they are trained again, which commits nothing new
    but the checkpoints.

    `newer` has a line for each record of a divergence that a newer version of this package wrote, and that therefore
    says nothing here.
    """

    sweep: Sweep
    trials: tuple[Trial, ...]
    blocks: tuple[BlockCount, ...]
    units: tuple[Unit, ...]
    geometry: tuple[Work, ...]
    committed: frozenset[tuple[str, str]] = frozenset()
    damaged: tuple[str, ...] = ()
    lost: frozenset[str] = frozenset()
    diverged: Mapping[str, int] = field(default_factory=dict)
    newer: tuple[str, ...] = ()

    def is_done(self, work: Work) -> bool:
        return (work.stage, work.key) in self.committed

    def missing_works(self, unit: Unit) -> list[Work]:
        """Works of a unit that are to be done."""
        return [work for work in unit.works if self._is_missing(work)]

    def _is_missing(self, work: Work) -> bool:
        if work.stage == "train" and work.subject.trial in self.lost:
            return True
        return not self.is_done(work) and self.can_be_had(work)

    def can_be_had(self, work: Work) -> bool:
        """Whether there can be such a result: not after the epoch in which its trial diverged."""
        ended = self.diverged.get(work.subject.trial or "")
        return ended is None or work.subject.epoch is None or work.subject.epoch < ended

    def missing_units(self) -> list[Unit]:
        """Units with work to do, in order; a base model that is only needed by finished work is not pretrained."""
        missing = [unit for unit in self.units if any(map(self._is_missing, unit.works))]
        needed = {unit.model for unit in missing if unit.kind != "pretrain"}
        needed |= {work.subject.model for work in self.missing_geometry()}
        return [unit for unit in missing if unit.kind != "pretrain" or unit.model in needed]

    def missing_trials(self) -> list[Trial]:
        """Trials that are still to be trained or measured in place, in order."""
        return [unit.trial for unit in self.missing_units() if unit.trial is not None and unit.kind == "fine_tune"]

    def works_apart(self) -> dict[str, dict[int, list[Work]]]:
        """Trial -> epoch -> works that other units are still to do on the checkpoint of that epoch."""
        found: dict[str, dict[int, list[Work]]] = {}
        for unit in self.units:
            if unit.kind == "checkpoint" and (works := self.missing_works(unit)):
                trial, epoch = unit.weights
                found.setdefault(trial, {})[epoch] = works
        return found

    def missing_geometry(self) -> list[Work]:
        """What is to be made of embeddings; these are only a step on the way, and are not kept by default."""
        return [work for work in self.geometry if work.stage != "embed" and self._is_missing(work)]

    def works(self) -> Iterator[Work]:
        """Every work that can be had."""
        every = [*(work for unit in self.units for work in unit.works), *self.geometry]
        return (work for work in every if self.can_be_had(work))

    def count_by_stage(self) -> dict[str, tuple[int, int]]:
        """Stage -> (done, planned)."""
        planned: Counter[str] = Counter()
        done: Counter[str] = Counter()
        for work in self.works():
            planned[work.stage] += 1
            done[work.stage] += self.is_done(work)
        return {stage: (done[stage], planned[stage]) for stage in RESULTS if planned[stage]}


def make_plan(sweep: Sweep, storage: Storage | None = None) -> Plan:
    """Plan a sweep; what `storage` holds is marked as committed. Reads local files and the storage, no network."""
    trials, blocks = expand(sweep)
    units, geometry = sweep_units(sweep, trials)
    plan = Plan(sweep, tuple(trials), tuple(blocks), tuple(units), tuple(geometry))
    return plan if storage is None else with_storage(plan, storage)


def with_storage(plan: Plan, storage: Storage, weights: bool = True) -> Plan:
    """The plan with what the storage holds by now; what an earlier look found committed is not looked at again.

    `weights=False` spares a look at every checkpoint that something is still to be measured of: `lost` is then empty.
    """
    committed: set[tuple[str, str]] = set()
    damaged: list[str] = []
    sound: dict[str, set[str]] = {stage: set() for stage in RESULTS}
    for stage, key in plan.committed:
        sound[stage].add(key)
    for stage in RESULTS:
        scan = scan_results(storage, stage, sound[stage])
        committed.update((stage, key) for key in scan.committed)
        damaged.extend(scan.damaged)
    diverged, newer = _diverged(plan.trials, committed, storage)
    committed -= {
        ("pretrain", unit.key) for unit in plan.units if unit.kind == "pretrain" and not _is_made(unit, storage)
    }
    lost = _lost_trials(plan.units, plan.geometry, committed, storage) if weights else ()
    return replace(
        plan,
        committed=frozenset(committed),
        damaged=tuple(damaged),
        lost=frozenset(lost) - diverged.keys(),
        diverged=diverged,
        newer=newer,
    )


def _diverged(
    trials: Iterable[Trial], committed: set[tuple[str, str]], storage: Storage
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Trial -> epoch of its divergence, of which one that was to end before is no concern of this sweep's; a line for
    each record of a newer version."""
    found, newer = {}, []
    any_did = any(stage == "divergence" for stage, _ in committed)
    for trial in trials if any_did else ():
        work = divergence_work(trial)
        if (work.stage, work.key) in committed:
            try:
                epoch = read_result(storage, work.stage, work.key).column("in_epoch")[0].as_py()
            except NewerSchemaError as error:
                newer.append(str(error))
                continue
            if epoch <= trial.epochs:
                found[trial.key] = epoch
    return found, tuple(newer)


def _is_made(unit: Unit, storage: Storage) -> bool:
    """Whether a pretrained base is really there: a result alone does not load."""
    return is_complete(storage, model_folder(unit.key))


def _lost_trials(
    units: Iterable[Unit], geometry: Iterable[Work], committed: set[tuple[str, str]], storage: Storage
) -> Iterator[str]:
    works = (work for unit in units for work in unit.works if work.stage == "train")
    trained = {work.subject.trial for work in works if (work.stage, work.key) in committed}
    for trial, epoch in _waiting_for_weights(units, geometry, committed, storage):
        if trial in trained and not is_complete(storage, checkpoint_folder(trial, epoch)):
            yield trial


def _waiting_for_weights(
    units: Iterable[Unit], geometry: Iterable[Work], committed: set[tuple[str, str]], storage: Storage
) -> Iterator[tuple[str, int]]:
    """(trial, epoch) of the checkpoints that another process than the one that trains is still to read."""
    for unit in units:
        if unit.kind == "checkpoint" and any((work.stage, work.key) not in committed for work in unit.works):
            yield unit.weights
    for work in geometry:
        trial, epoch = work.subject.trial, work.subject.epoch
        if work.stage == "embed" or (work.stage, work.key) in committed or trial is None or epoch is None:
            continue
        if not is_complete(storage, embeddings_folder(work.source or "")):
            yield trial, epoch


def is_up_to_date(plan: Plan, storage: Storage) -> bool:
    """Whether nothing of the plan is missing and the storage's report is of this very sweep."""
    if plan.missing_units() or plan.missing_geometry() or plan.damaged:
        return False
    if not (storage.exists(REPORT_SPEC_FILE) and storage.exists(REPORT_FILE)):
        return False
    return storage.read_bytes(REPORT_SPEC_FILE).decode() == resolved_yaml(plan.sweep)


def nothing_missing(plan: Plan) -> str:
    """A line for people that says that a sweep is done."""
    total = sum(planned for _, planned in plan.count_by_stage().values())
    return f"Nothing is missing: all {total} results of {len(plan.trials)} trials are in {plan.sweep.storage}"
