"""Which of the released scores are studied: the main slice, unless it is chosen otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import pyarrow as pa
import pyarrow.compute as pc

from raysft.study.released.reading import ReleasedError
from raysft.study.variants import with_final

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


def select_scores(scores: pa.Table, choice: Choice) -> tuple[pa.Table, dict[str, str]]:
    """The chosen rows of the scores of fine-tunings, and for every axis what was chosen, for people.

    Raises:
        ReleasedError: a name, size or epoch that the scores do not have.
    """
    chosen: dict[str, str] = {}
    for field in fields(choice):
        wanted = getattr(choice, field.name)
        scores, chosen[field.name] = _narrow(scores, field.name, wanted)
    return scores, chosen


def _narrow(scores: pa.Table, axis: str, wanted: tuple[str, ...] | None) -> tuple[pa.Table, str]:
    column = _COLUMNS[axis]
    texts = [None if value is None else str(value) for value in scores[column].to_pylist()]
    there = _ordered(text for text in set(texts) if text is not None)
    if not there:
        return scores, f"not in this file: {column}"
    if wanted is None:
        return _main_slice(scores, axis, texts, there)
    if wanted == (EVERY,):
        return scores, f"all {len(there)}: {', '.join(there)}"
    if axis == "epochs" and wanted == (LAST,):
        return _last(scores)
    strange = [name for name in wanted if name not in there]
    if strange:
        raise ReleasedError(f"--{axis} {strange[0]}: not among these scores, which have {', '.join(there)}")
    return _keep(scores, texts, wanted), ", ".join(wanted)


def _main_slice(scores: pa.Table, axis: str, texts: list[str | None], there: list[str]) -> tuple[pa.Table, str]:
    if axis == "epochs":
        return _last(scores)
    main = [name for name in there if axis not in _MAIN or _MAIN[axis](name)]
    if axis == "tasks":
        main = [name for name in TASKS if name in main]
    unknown = texts.count(None)
    if not main or (len(main) == len(there) and not unknown):
        return scores, f"all {len(there)}: {', '.join(there)}"
    left = len(there) - len(main)
    nameless = f", and {unknown} scores of rows without one" if unknown else ""
    return _keep(scores, texts, main), f"{', '.join(main)} (main slice; {left} more{nameless}, --{axis} every)"


def _last(scores: pa.Table) -> tuple[pa.Table, str]:
    # Of what is chosen on the other axes, each trial's last epoch that has a score.
    measured = with_final(scores.filter(pc.is_valid(scores["value"])))
    kept = scores.filter(_among(scores, measured.filter(measured["final"])))
    found = _ordered({str(epoch) for epoch in kept["epoch"].to_pylist()})
    return kept, f"the last of each trial: {', '.join(found)}"


def _among(scores: pa.Table, last: pa.Table) -> pa.Array:
    places = set(zip(last["trial"].to_pylist(), last["epoch"].to_pylist(), strict=True))
    pairs = zip(scores["trial"].to_pylist(), scores["epoch"].to_pylist(), strict=True)
    return pa.array([pair in places for pair in pairs], pa.bool_())


def _keep(scores: pa.Table, texts: list[str | None], names: Iterable[str]) -> pa.Table:
    wanted = frozenset(names)
    return scores.filter(pa.array([text in wanted for text in texts], pa.bool_()))


def _ordered(names: Iterable[str]) -> list[str]:
    """Numbers by their value, then names."""
    return sorted(names, key=lambda name: (0, float(name), name) if name.isdecimal() else (1, 0.0, name))
