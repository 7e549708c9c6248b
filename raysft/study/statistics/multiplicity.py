"""How many tests were made: false discovery rates over a family of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import false_discovery_control

from raysft.study.tables import Reals


def q_values(p: Reals, families: Sequence[Hashable] | None = None) -> Reals:
    """Benjamini and Hochberg (1995) adjusted p-values, shape as `p`: NaN stays NaN and does not count as a test.

    Args:
        p: p-values, shape (tests,), NaN where a test could not be made.
        families: a label for each test; each family is adjusted by itself. One family by default.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for place, value in enumerate(p):
        if np.isfinite(value):
            members[families[place] if families is not None else None].append(place)
    adjusted = np.full(len(p), np.nan)
    for places in members.values():
        adjusted[places] = false_discovery_control(p[places], method="bh")
    return adjusted
