"""Which checkpoints of a sweep are exported: those that its storage holds, narrowed axis by axis."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysft.export.mistakes import ExportError
from raysft.export.names import checkpoint_name
from raysft.spec.grid import Trial, expand
from raysft.spec.mistakes import shown
from raysft.spec.sweep import Sweep
from raysft.store.layout import Storage, checkpoint_folder
from raysft.study.gains import primary_metric

EVERY, LAST = "every", "last"
_SHORTEST_KEY = 6  # digits
_LISTED = 12
_READERS = 16  # threads, for folders on an object store

Names = tuple[str, ...] | None


@dataclass(frozen=True)
class Choice:
    """What to export. An axis is None where it does not narrow, and ("every",) says so; `epochs` is then the last kept
    one of each trial, or with `best` all of them. `trials` are keys, their first six digits or more, or names of
    exports; `best` is a task of whose scores the `top` highest count (lowest, where lower is better)."""

    models: Names = None
    datasets: Names = None
    methods: Names = None
    sizes: Names = None
    seeds: Names = None
    epochs: Names = None
    trials: Names = None
    best: str | None = None
    top: int = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in the storage, and the `name` of its export."""

    trial: Trial
    epoch: int
    name: str

    @property
    def folder(self) -> str:
        """Where it lies, relative to the storage."""
        return checkpoint_folder(self.trial.key, self.epoch)


_AXES: dict[str, Callable[[Checkpoint], str]] = {
    "models": lambda one: one.trial.model,
    "datasets": lambda one: one.trial.dataset,
    "methods": lambda one: one.trial.method,
    "sizes": lambda one: "all" if one.trial.size is None else str(one.trial.size),
    "seeds": lambda one: str(one.trial.seed),
    "epochs": lambda one: str(one.epoch),
}


def stored_checkpoints(sweep: Sweep, storage: Storage) -> list[Checkpoint]:
    """Every checkpoint of the sweep that the storage has a folder of, in the sweep's order."""
    there = set(storage.names("checkpoints"))
    trials = [trial for trial in expand(sweep)[0] if trial.key in there]
    with ThreadPoolExecutor(_READERS) as pool:
        listings = pool.map(lambda trial: storage.names("checkpoints", trial.key), trials)
        return [
            Checkpoint(trial, epoch, checkpoint_name(sweep.name, trial, epoch))
            for trial, names in zip(trials, listings, strict=True)
            for epoch in _epochs(names)
        ]


def _epochs(names: Iterable[str]) -> list[int]:
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"epoch-(\d+)", name)))


def select(stored: Sequence[Checkpoint], choice: Choice, scores: pa.Table) -> list[Checkpoint]:
    """The chosen ones; `scores` is the table of that name, for `choice.best`.

    Raises:
        ExportError: nothing is chosen or left, or a name is not among those that are there.
    """
    if not stored:
        raise ExportError("there is no checkpoint of this sweep in its storage; `raysft run` makes them")
    if choice.top < 1 or (choice.top > 1 and choice.best is None):
        raise ExportError(f"--top {choice.top}: a number from 1 on, with --best TASK")
    if choice == Choice():
        raise ExportError(f"nothing selected: narrow an axis, or take all with --models {EVERY}. {described(stored)}")
    chosen = _of_trials(stored, choice.trials)
    for axis in _AXES:
        if axis != "epochs":
            chosen = _narrowed(chosen, stored, axis, getattr(choice, axis))
    chosen = _of_epochs(chosen, stored, choice)
    if not chosen:
        raise ExportError(f"nothing selected: no checkpoint is all of what was asked for. {described(stored)}")
    return chosen if choice.best is None else _best(chosen, choice.best, choice.top, scores)


def described(stored: Sequence[Checkpoint]) -> str:
    """`There are 36 checkpoints of 30 trials: models a, b; datasets c; ...`"""
    axes = [f"{axis} {_listed(_values(stored, axis))}" for axis in _AXES]
    trials = len({one.trial.key for one in stored})
    return f"There are {len(stored)} checkpoints of {trials} trials: {'; '.join(axes)}"


def _narrowed(chosen: list[Checkpoint], stored: Sequence[Checkpoint], axis: str, wanted: Names) -> list[Checkpoint]:
    if wanted is None or wanted == (EVERY,):
        return chosen
    there = _values(stored, axis)
    for name in wanted:
        if name not in there:
            raise ExportError(f"--{axis} {shown(name, 80)}: not among these checkpoints, which have {_listed(there)}")
    return [one for one in chosen if _AXES[axis](one) in wanted]


def _of_epochs(chosen: list[Checkpoint], stored: Sequence[Checkpoint], choice: Choice) -> list[Checkpoint]:
    wanted = choice.epochs
    if wanted is None and choice.best is not None:
        return chosen
    if wanted is not None and LAST not in wanted:
        return _narrowed(chosen, stored, "epochs", wanted)
    last: dict[str, int] = {}
    for one in stored:
        last[one.trial.key] = max(last.get(one.trial.key, 0), one.epoch)
    others = () if wanted is None else tuple(name for name in wanted if name != LAST)
    beside = {one.name for one in _narrowed(chosen, stored, "epochs", others)} if others else set()
    by_name = set(choice.trials or ()) if wanted is None else set()  # whose name says the epoch
    return [one for one in chosen if one.epoch == last[one.trial.key] or one.name in beside or one.name in by_name]


def _of_trials(stored: Sequence[Checkpoint], wanted: Names) -> list[Checkpoint]:
    if wanted is None:
        return list(stored)
    found: set[str] = set()
    for name in wanted:
        is_key = re.fullmatch(f"[0-9a-f]{{{_SHORTEST_KEY},}}", name) is not None
        own = {one.name for one in stored if one.name == name or (is_key and one.trial.key.startswith(name))}
        if not own:
            raise ExportError(
                f"--trial {shown(name, 120)}: no checkpoint of that; valid are a trial's key, as in the table trials, "
                f"or at least {_SHORTEST_KEY} digits of it, or the name of an export, such as {stored[0].name}"
            )
        found |= own
    return [one for one in stored if one.name in found]


def _best(chosen: list[Checkpoint], task: str, top: int, scores: pa.Table) -> list[Checkpoint]:
    metric, rows = best_metric(scores, task), scores.filter(pc.equal(scores["task"], task)).to_pylist()
    values = {(row["trial"], row["epoch"]): _rank(row) for row in rows if row["metric"] == metric}
    ranked = [(rank, one) for one in chosen if (rank := values.get((one.trial.key, one.epoch))) is not None]
    if not ranked:
        raise ExportError(f"--best {task}: none of the {len(chosen)} selected checkpoints was scored on it")
    ranked.sort(key=lambda pair: pair[0])  # stable: of equal ones the first in the sweep
    return [one for _, one in ranked[:top]]


def best_metric(scores: pa.Table, task: str) -> str:
    """The metric that `best` goes by: the study's primary one. ExportError for a task without scores."""
    if task not in (there := sorted(set(scores["task"].to_pylist()))):
        raise ExportError(f"--best {shown(task, 80)}: no such task in the table scores, which has {_listed(there)}")
    return primary_metric(scores.filter(pc.equal(scores["task"], task))["metric"].to_pylist())


def _rank(row: dict[str, Any]) -> float | None:
    value = row["value"]
    if value is None or math.isnan(value):
        return None
    return float(value if row["higher_is_better"] is False else -value)


def _values(checkpoints: Sequence[Checkpoint], axis: str) -> list[str]:
    """What there is of an axis, numbers by their value."""
    found = {_AXES[axis](one) for one in checkpoints}
    return sorted(found, key=lambda name: (int(name), "") if name.isdigit() else (0, name))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
