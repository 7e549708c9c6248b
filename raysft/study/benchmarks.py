"""What is published about well-known benchmarks, by the words of a column's name: items, and the score of a guess."""

from __future__ import annotations

import re
from dataclasses import dataclass

RELEASED = "released"
"""The metric of a column of released scores, which do not say what was measured."""


@dataclass(frozen=True)
class Benchmark:
    """`items` is None where the score is no share of items; `chance` is a share, None where a guess scores nothing."""

    items: int | None
    chance: float | None


# Sizes of the sets that arXiv 2506.14681 evaluates on; chance is one over the number of choices.
_KNOWN = {
    "boolq": Benchmark(3270, 0.5),
    "cmmlu": Benchmark(11582, 0.25),
    "jmmlu": Benchmark(14042, 0.25),
    "mmlu": Benchmark(14042, 0.25),
    "mmlujp": Benchmark(14042, 0.25),
    "mmluzh": Benchmark(11582, 0.25),
    "hellaswag": Benchmark(10042, 0.25),
    "longbenchv2": Benchmark(503, 0.25),
    "gsm8k": Benchmark(1319, None),
    "humaneval": Benchmark(164, None),
    "math": Benchmark(5000, None),
    "mbpp": Benchmark(257, None),
    "nq": Benchmark(3610, None),
}
UNKNOWN = Benchmark(None, None)


def benchmark_of(column: str) -> Benchmark:
    """The benchmark that a column is named after, `-5shot`, `_0shot` and all but letters and digits left away."""
    stem = re.sub(r"[-_ ]*\d+[-_ ]*shots?$", "", column.strip().lower())
    return _KNOWN.get(re.sub(r"[^0-9a-z]", "", stem), UNKNOWN)
