"""Which benchmark tasks test what a dataset teaches, read off their names."""

from __future__ import annotations

import re

# Words that say what kind of file or question it is, not what it is about.
_GENERIC = frozenset(
    {"micro", "mini", "tiny", "small", "full", "hf", "the", "of", "and"}
    | {"exact", "choice", "generate", "gen", "mc", "mc1", "mc2", "cot", "zeroshot", "fewshot"}
    | {"train", "test", "dev", "val", "validation", "eval", "data", "dataset", "instruct", "instruction", "chat"}
)


def stems(name: str) -> frozenset[str]:
    """The words of a name that say what it is about, in lower case; sizes such as `20k` do not."""
    words = re.split(r"[^0-9a-z]+", name.lower())
    return frozenset(word for word in words if word and word not in _GENERIC and not re.fullmatch(r"\d+[km]?", word))


def matches(dataset: str, task: str) -> bool:
    """Whether the name of one holds every telling word of the other: `capitals` and `micro_capitals_exact`."""
    ours, theirs = stems(dataset), stems(task)
    return bool(ours) and bool(theirs) and (ours <= theirs or theirs <= ours)
