"""What of a sweep is done, runs, waits and failed, as its driver hears of it: numbers for `metrics.py`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from raysft.spec.plan import Plan, Unit, Work

UnitState = Literal["waiting", "running", "done", "failed"]
TrialState = Literal["waiting", "running", "done", "failed", "diverged"]

WorkId = tuple[str, str]  # stage and key


class Tally:
    """Counts that follow the events of one run of a plan, and at its end the storage (`recount`).

    An event costs as much as its unit has works, whatever the size of the sweep. Intrinsic dimensions are no units;
    their results count when the storage is looked at.
    """

    def __init__(self, plan: Plan) -> None:
        self._begun = {unit.key: unit for unit in plan.missing_units()}
        self._count(plan)
        for unit in self._begun.values():
            self._set(unit, "waiting")

    def _count(self, plan: Plan) -> None:
        """Everything from the plan: what is not done counts as failed until it is known to wait."""
        self.results = {
            stage: {"committed": done, "planned": planned} for stage, (done, planned) in plan.count_by_stage().items()
        }
        kinds = dict.fromkeys(unit.kind for unit in plan.units)
        self.units: Counter[tuple[str, UnitState]] = Counter(
            {(kind, state): 0 for kind in kinds for state in get_args(UnitState)}
        )
        self.trials: Counter[TrialState] = Counter(dict.fromkeys(get_args(TrialState), 0))
        self._unit_states: dict[str, UnitState] = {}
        self._trial_states: dict[str, TrialState] = {}
        self._left: dict[str, set[WorkId]] = {}
        self._unmeasured: Counter[tuple[str, int]] = Counter()
        self._of_trial: dict[str, list[str]] = defaultdict(list)
        self._diverged = set(plan.diverged)
        checkpoints = set()
        for unit in plan.units:
            works = [work for work in unit.works if plan.can_be_had(work)]
            missing = [work for work in works if not plan.is_done(work)]
            self._left[unit.key] = {(work.stage, work.key) for work in missing}
            checkpoints |= set(filter(None, map(_checkpoint, works)))
            self._unmeasured.update(filter(None, map(_checkpoint, missing)))
            if unit.trial is not None:
                self._of_trial[unit.trial.key].append(unit.key)
        for unit in plan.units:
            if unit.key in self._begun or not plan.missing_works(unit):
                self._set(unit, "failed" if self._left[unit.key] else "done")
        self.checkpoints = {
            "measured": sum(not self._unmeasured[checkpoint] for checkpoint in checkpoints),
            "planned": len(checkpoints),
        }

    def started(self, unit: Unit) -> None:
        self._set(unit, "running")

    def ended(self, unit: Unit, failures: Sequence[dict[str, Any]], left: Iterable[WorkId]) -> None:
        """A unit ended by itself. `left`: those of its works that the storage does not hold."""
        committed = self._left[unit.key] - set(left)
        self._left[unit.key] -= committed
        for work in unit.works:
            if (work.stage, work.key) not in committed:
                continue
            self.results[work.stage]["committed"] += 1
            checkpoint = _checkpoint(work)
            if checkpoint is not None:
                self._unmeasured[checkpoint] -= 1
                self.checkpoints["measured"] += not self._unmeasured[checkpoint]
        if unit.trial is not None and any(failure["stage"] == "divergence" for failure in failures):
            self._diverged.add(unit.trial.key)
        only_diverged = all(failure["stage"] == "divergence" for failure in failures)
        self._set(unit, "done" if only_diverged else "failed")

    def died(self, unit: Unit, again: bool) -> None:
        """The process of a unit died."""
        self._set(unit, "waiting" if again else "failed")

    def recount(self, plan: Plan) -> None:
        """Take over what the storage holds, at the end of the run, by a plan that was made from it."""
        self._count(plan)

    def _set(self, unit: Unit, state: UnitState) -> None:
        before = self._unit_states.get(unit.key)
        if before is not None:
            self.units[unit.kind, before] -= 1
        self._unit_states[unit.key] = state
        self.units[unit.kind, state] += 1
        if unit.trial is not None:
            self._set_trial(unit.trial.key)

    def _set_trial(self, trial: str) -> None:
        before = self._trial_states.get(trial)
        if before is not None:
            self.trials[before] -= 1
        states = {self._unit_states[unit] for unit in self._of_trial[trial] if unit in self._unit_states}
        self._trial_states[trial] = state = _trial_state(states, trial in self._diverged)
        self.trials[state] += 1


def _checkpoint(work: Work) -> tuple[str, int] | None:
    """The fine-tuned checkpoint that a work measures."""
    trial, epoch = work.subject.trial, work.subject.epoch
    return (trial, epoch) if trial is not None and epoch is not None else None


def _trial_state(units: set[UnitState], diverged: bool) -> TrialState:
    for state in ("running", "failed", "waiting"):
        if state in units:
            return state
    return "diverged" if diverged else "done"
