"""The two sides of a comparison, and which of their variants, models, datasets and tasks are the same.

Names are compared as they are and never guessed: a model that is called differently in the two is reported as missing
from each. Only variants need more than a name, because a name says what varies within its own study: `full` of a study
with one size is `full, 1,000 rows` of a study with two. So variants of one name are a pair; those left over are named
again by what varies over both studies together, without what one of them does not know.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysft.report.findings import Findings
from raysft.study.variants import trial_variants

SETTINGS = ("size", "learning_rate", "schedule", "epochs")
AXES = ("model", "dataset", "task")

Row = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One study: what it is called on the page, and its tables."""

    name: str
    findings: Findings

    def names(self, axis: str) -> set[str]:
        """Names with a gain at the main slice."""
        return set(self.findings.study["gain_matrix" if axis != "model" else "gains"][axis].to_pylist()) - {None}


@dataclass(frozen=True)
class Pair:
    """A variant that both sides have: its name for people, and what each side calls it."""

    label: str
    first: str
    second: str


def pairs(first: Side, second: Side) -> list[Pair]:
    """Variants of both sides that are the same, sorted by name."""
    ours, theirs = (set(side.findings.study["gain_matrix"]["variant"].to_pylist()) for side in (first, second))
    found = [Pair(name, name, name) for name in ours & theirs]
    again = _named_together(first, second)
    rest = [{again[at][name]: name for name in left if name in again[at]} for at, left in enumerate((ours, theirs))]
    taken = ours & theirs
    for label in rest[0].keys() & rest[1].keys():
        if rest[0][label] not in taken and rest[1][label] not in taken:
            found.append(Pair(label, rest[0][label], rest[1][label]))
    return sorted(found, key=lambda pair: pair.label)


def _named_together(first: Side, second: Side) -> tuple[dict[str, str], dict[str, str]]:
    """Own name of a variant -> its name by what varies over both sides; variants that get several are left out."""
    trials = [side.findings.trials for side in (first, second)]
    known = [[table for table in trials if pc.count(table[field]).as_py()] for field in SETTINGS]
    blank = [field for field, tables in zip(SETTINGS, known, strict=True) if len(tables) < 2]
    plain = [_without(table, blank) for table in trials]
    labels = trial_variants(*plain)
    found = []
    for table in trials:
        names: dict[str, set[str]] = defaultdict(set)
        for trial, variant in zip(table["trial"].to_pylist(), table["variant"].to_pylist(), strict=True):
            names[variant].add(labels[trial])
        found.append({variant: of.pop() for variant, of in names.items() if len(of) == 1})
    return found[0], found[1]


def _without(table: pa.Table, fields: Iterable[str]) -> pa.Table:
    for field in fields:
        at = table.column_names.index(field)
        table = table.set_column(at, field, pa.nulls(table.num_rows, table.schema.field(field).type))
    return table


def different_settings(first: Side, second: Side, found: list[Pair]) -> list[Row]:
    """For each pair the settings that differ, or that one side does not know."""
    rows: list[Row] = []
    for pair in found:
        sides = [_settings(first, pair.first), _settings(second, pair.second)]
        for field in (*SETTINGS, "batch_size", "seed"):
            a, b = (side[field] for side in sides)
            if a != b:
                rows.append({"variant": pair.label, "setting": field.replace("_", " "), "A": a, "B": b})
    return rows


def _settings(side: Side, variant: str) -> dict[str, str]:
    trials = side.findings.trials
    ours = trials.filter(pc.equal(trials["variant"], variant))
    return {field: _values(ours[field].to_pylist()) for field in (*SETTINGS, "batch_size", "seed")}


def _values(values: list[Any]) -> str:
    known = sorted({value for value in values if value is not None})
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in known) or "not known"


def only_in_one(first: Side, second: Side, found: list[Pair]) -> list[Row]:
    """What one side has and the other has not under that name."""
    rows: list[Row] = []
    for axis in AXES:
        ours, theirs = first.names(axis), second.names(axis)
        rows += [{"what": axis, "name": name, "only_in": "A"} for name in sorted(ours - theirs)]
        rows += [{"what": axis, "name": name, "only_in": "B"} for name in sorted(theirs - ours)]
    for label, side, taken in (
        ("A", first, {pair.first for pair in found}),
        ("B", second, {pair.second for pair in found}),
    ):
        variants = set(side.findings.study["gain_matrix"]["variant"].to_pylist())
        rows += [{"what": "variant", "name": name, "only_in": label} for name in sorted(variants - taken)]
    return rows
