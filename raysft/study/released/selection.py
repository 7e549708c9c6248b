"""Which of the released scores are studied: the main slice, unless it is chosen otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysft.study.released.reading import ReleasedError
from raysft.study.tables import reals

# The twelve benchmarks of arXiv 2506.14681: zero-shot, and two judged by a model.
TASKS = (
    "math-0shot",
    "gsm8k-0shot",
    "humaneval-0shot",
    "mbpp-0shot",
    "BoolQ-0shot",
    "nq-0shot",
    "Truthful_QA-0shot",
    "mmlu-0shot",
    "cmmlu-0shot",
    "jmmlu-0shot",
    "mtbench-total",
    "alpaca_eval_v2-total",
)
EVERY, LAST = "every", "last"
MIXTURE = "all"  # the dataset that holds all others


@dataclass(frozen=True)
class Choice:
    """What to study; None is the main slice, and ("every",) everything.

    Main slice: every model and method; single datasets, which are those not called `all` or `w/o-...`; the twelve
    benchmarks of the paper; 1,000 samples; the cosine schedule; each trial's last epoch. Where a file has none of these
    (no size of 1,000, none of the twelve), everything it has is taken.
    """

    models: tuple[str, ...] | None = None
    datasets: tuple[str, ...] | None = None
    tasks: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    sizes: tuple[str, ...] | None = None
    schedules: tuple[str, ...] | None = None
    epochs: tuple[str, ...] | None = None


# field of a choice -> column that it looks at
_COLUMNS = {
    "models": "model",
    "datasets": "dataset",
    "tasks": "task",
    "methods": "method",
    "sizes": "size",
    "schedules": "schedule",
    "epochs": "epoch",
}
_MAIN: dict[str, Callable[[str], bool]] = {
    "datasets": lambda name: name != MIXTURE and not name.startswith("w/o-"),
    "tasks": lambda name: name in TASKS,
    "sizes": lambda size: size == "1000",
    "schedules": lambda schedule: schedule == "cosine",
}


def select_gains(gains: pa.Table, choice: Choice) -> tuple[pa.Table, dict[str, str]]:
    """The chosen rows of a table of schema `GAINS`, and for every axis what was chosen, for people.

    Raises:
        ReleasedError: a name, size or epoch that the scores do not have.
    """
    chosen: dict[str, str] = {}
    for field in fields(choice):
        wanted = getattr(choice, field.name)
        gains, chosen[field.name] = _narrow(gains, field.name, wanted)
    return gains, chosen


def _narrow(gains: pa.Table, axis: str, wanted: tuple[str, ...] | None) -> tuple[pa.Table, str]:
    column = _COLUMNS[axis]
    texts = [None if value is None else str(value) for value in gains[column].to_pylist()]
    there = _ordered(text for text in set(texts) if text is not None)
    if not there:
        return gains, f"not in this file: {column}"
    if wanted is None:
        return _main_slice(gains, axis, texts, there)
    if wanted == (EVERY,):
        return gains, f"all {len(there)}: {', '.join(there)}"
    if axis == "epochs" and wanted == (LAST,):
        return _last(gains)
    strange = [name for name in wanted if name not in there]
    if strange:
        raise ReleasedError(f"--{axis} {strange[0]}: not among these scores, which have {', '.join(there)}")
    return _keep(gains, texts, wanted), ", ".join(wanted)


def _main_slice(gains: pa.Table, axis: str, texts: list[str | None], there: list[str]) -> tuple[pa.Table, str]:
    if axis == "epochs":
        return _last(gains)
    main = [name for name in there if axis not in _MAIN or _MAIN[axis](name)]
    if axis == "tasks":
        main = [name for name in TASKS if name in main]
    if not main or len(main) == len(there):
        return gains, f"all {len(there)}: {', '.join(there)}"
    left = len(there) - len(main)
    return _keep(gains, texts, main), f"{', '.join(main)} (main slice; {left} more, --{axis} every)"


def _last(gains: pa.Table) -> tuple[pa.Table, str]:
    kept = gains.filter(gains["final"])
    found = _ordered({str(epoch) for epoch in kept["epoch"].to_pylist()})
    return kept, f"the last of each trial: {', '.join(found)}"


def _keep(gains: pa.Table, texts: list[str | None], names: Iterable[str]) -> pa.Table:
    wanted = frozenset(names)
    return gains.filter(pa.array([text in wanted for text in texts], pa.bool_()))


def _ordered(names: Iterable[str]) -> list[str]:
    """Numbers by their value, then names."""
    return sorted(names, key=lambda name: (0, float(name), name) if name.isdigit() else (1, 0.0, name))


def unmeasured(gains: pa.Table, tasks: Iterable[str]) -> list[str]:
    """Those of `tasks` without a single gain."""
    known = gains.filter(pa.array(np.isfinite(reals(gains, "gain")), pa.bool_()))
    there = set(pc.unique(known["task"]).to_pylist())
    return [task for task in tasks if task not in there]
