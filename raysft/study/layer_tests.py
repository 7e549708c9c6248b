"""Which layer's weight change goes with gain most, tested as what it is: the strongest of many correlated layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from raysft.study.cells import Pair, Slice, gain_cells, slices
from raysft.study.depth import at_equal_epochs, depth_profiles
from raysft.study.statistics.bootstrap import resampled_coefficients
from raysft.study.statistics.multiplicity import q_values
from raysft.study.statistics.permutation import PermutationTest, permutation_test
from raysft.study.statistics.schema import LAYER_TESTS
from raysft.study.tables import Reals, from_rows

EFFECTS = {"none": False, "fixed": True}
_RESAMPLES = 499

Row = dict[str, Any]


def layer_test_table(gains: pa.Table, by_depth: pa.Table) -> pa.Table:
    """For every slice of the gains, plain and within models and datasets, a row for each depth; schema `LAYER_TESTS`.

    Args:
        gains: the study's `gains`.
        by_depth: the study's `weight_change_by_depth`.
    """
    paired, changes = at_equal_epochs(gains, by_depth)
    profiles = depth_profiles(changes)
    rows: list[Row] = []
    for part in slices(gain_cells(paired)):
        curves = {pair: curve for (variant, pair), curve in profiles.curves.items() if variant == part.variant}
        rows += [row for effects in EFFECTS for row in _rows(part, profiles.depths, curves, effects)]
    return from_rows(_with_q(rows), LAYER_TESTS)


def _with_q(rows: list[Row]) -> list[Row]:
    """`rows` with the q of the strongest depth over scopes and tasks: each of these searched its depths once."""
    tested = [row for row in rows if row.get("strongest")]
    families = [(row["variant"], row["effects"]) for row in tested]
    for row, q in zip(tested, q_values(np.array([row["p_max"] for row in tested]), families), strict=True):
        row["q"] = float(q)
    return rows


def _rows(part: Slice, depths: Reals, curves: dict[Pair, Reals], effects: str) -> list[Row]:
    gains = part.gains()
    pairs = [pair for pair in sorted(gains) if pair in curves]
    if not pairs:
        return []
    change, gain = np.array([curves[pair] for pair in pairs]).T, np.array([gains[pair] for pair in pairs])
    groups = [[model for model, _ in pairs], [dataset for _, dataset in pairs]]
    test = permutation_test(change, gain, groups, EFFECTS[effects])
    chosen, why_not = _chosen(change, gain, groups, EFFECTS[effects]) if test.reason is None else (None, None)
    shared = {"variant": part.variant, "scope": part.scope, "task": part.task, "effects": effects}
    return [
        {
            **shared,
            "depth": float(depth),
            "n": len(pairs),
            "layers": len(depths),
            **_of_depth(test, at),
            "chosen": None if chosen is None else float(chosen[at]),
            "reason": test.reason or ("constant" if np.isnan(test.r[at]) else why_not),
        }
        for at, depth in enumerate(depths)
    ]


def _of_depth(test: PermutationTest, at: int) -> Row:
    if test.reason is not None:
        return {}
    return {
        "r": float(test.r[at]),
        "strongest": bool(at == np.nanargmax(np.abs(test.r))),
        "p": float(test.p[at]),
        "p_max": float(test.p_max[at]),
        "permutations": test.permutations,
        "exact": test.exact,
    }


def _chosen(change: Reals, gain: Reals, groups: list[list[str]], fixed: bool) -> tuple[Reals | None, str | None]:
    """How often each depth is the strongest of a resample of models and datasets, shape (depths,)."""
    drawn, reason = resampled_coefficients(change, gain, groups, fixed, _RESAMPLES)
    if reason is not None:
        return None, reason
    defined = np.abs(drawn[np.isfinite(drawn).any(axis=1)])
    if not len(defined):
        return None, "undefined in every resample"
    return np.bincount(np.nanargmax(defined, axis=1), minlength=len(change)) / len(defined), None
