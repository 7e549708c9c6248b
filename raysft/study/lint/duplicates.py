"""Rows of scores that were copied: identical ones, and ones that agree where checkpoints hardly ever do.

Two checkpoints may tie on a coarse benchmark: none of 164 programs right is common. They do not tie to the last digit
on three benchmarks of thousands of items. So each agreement weighs as much as it is rare: in pairs of rows that are as
near each other (of one base model, or not), how often does this column agree? Columns that agree in more than 1% of
pairs weigh nothing, which also leaves out all of a sweep whose benchmarks have a handful of items.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raysft.study.lint.findings import Finding, listed
from raysft.study.lint.sheet import Sheet
from raysft.study.tables import Reals

RARE = 0.01  # share of pairs: a column that agrees more often tells nothing
FEWEST = 3  # agreements in telling columns; also the fewest scores that make two identical rows a finding
EXPECTED = 1e-3  # pairs as alike as this in the whole table, if columns were independent
CERTAIN = 1e-6  # so few that columns which do depend on each other cannot explain the pair

Wholes = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Copy:
    """How many columns two rows agree in although that is rare, and log10 of how many such pairs chance would make."""

    telling: int
    log_expected: float


def duplicate_findings(sheet: Sheet) -> Iterator[Finding]:
    """Groups of rows that are identical, then pairs that agree too often to be two measurements."""
    copied = copied_pairs(sheet.values, [str(subject["model"]) for subject in sheet.subjects])
    groups = identical_rows(sheet.values)
    group = {row: at for at, rows in enumerate(groups) for row in rows}
    proved = {group[first] for first, second in copied if first in group and group[first] == group.get(second)}
    for at, rows in enumerate(groups):
        scores = int(np.isfinite(sheet.values[rows[0]]).sum())
        proven = at in proved
        detail = f"identical in all {scores} scores"
        detail += "" if proven else "; of so few items that it may be a tie"
        yield _finding(sheet, rows, "error" if proven else "warning", detail)
    for (first, second), copy in sorted(copied.items()):
        if first not in group or group[first] != group.get(second):
            both = np.isfinite(sheet.values[first]) & np.isfinite(sheet.values[second])
            equal = [sheet.columns[at] for at in np.flatnonzero(sheet.values[first] == sheet.values[second])]
            detail = f"equal to the last digit in {len(equal)} of {both.sum()} scores, {copy.telling} of which hardly "
            detail += f"ever agree (chance makes about {10**copy.log_expected:.0e} such pairs): {', '.join(equal)}"
            severity = "error" if 10**copy.log_expected < CERTAIN else "warning"
            yield _finding(sheet, [first, second], severity, detail)


def _finding(sheet: Sheet, rows: list[int], severity: str, detail: str) -> Finding:
    base = not sheet.tuned[rows].any()
    if base and severity == "error":
        detail += "; gains of all but one of these models are measured from the scores of another"
    names = tuple(sheet.label(row) for row in rows)
    check = "duplicate_baseline" if base else "duplicate_scores"
    return Finding(check, severity, listed(names, " = "), detail, names)


def identical_rows(values: Reals) -> list[list[int]]:
    """Groups of rows with the same scores in the same columns, three scores or more; constant columns do not count."""
    known = np.isfinite(values)
    varied = [at for at in range(values.shape[1]) if len(np.unique(values[known[:, at], at])) > 1]
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row in range(len(values)):
        if known[row, varied].sum() >= FEWEST:
            groups[np.where(known[row], values[row] + 0.0, np.inf)[varied].tobytes()].append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def copied_pairs(values: Reals, models: list[str]) -> dict[tuple[int, int], Copy]:
    """Pairs of rows, lower first, that agree in telling columns beyond what chance allows.

    Args:
        values: shape (rows, columns), NaN where missing.
        models: base model of each row.
    """
    rows = len(models)
    if rows < 2:
        return {}
    model = np.unique(models, return_inverse=True)[1]
    of_one_model = sum(count * (count - 1) // 2 for count in Counter(model.tolist()).values())
    every = rows * (rows - 1) // 2
    found = [_rare_agreements(values[:, column], model, of_one_model, every) for column in range(values.shape[1])]
    # A pair as one number, so that millions of agreements are summed without an object for each.
    pairs, place = np.unique(np.concatenate([pair for pair, _ in found]), return_inverse=True)
    telling = np.bincount(place, minlength=len(pairs))
    expected = np.bincount(place, np.concatenate([rate for _, rate in found]), len(pairs)) + np.log10(every)
    chosen = np.flatnonzero((telling >= FEWEST) & (expected <= np.log10(EXPECTED)))
    return {
        (int(pairs[at] // rows), int(pairs[at] % rows)): Copy(int(telling[at]), float(expected[at])) for at in chosen
    }


def _rare_agreements(scores: Reals, model: Wholes, of_one_model: int, every: int) -> tuple[Wholes, Reals]:
    """Equal pairs of one column, as row x rows + row, and log10 of how often such rows agree, where that is rare."""
    groups = _equal(scores)
    agreeing = sum(len(group) * (len(group) - 1) // 2 for group in groups)
    within = sum(
        count * (count - 1) // 2 for group in groups for count in Counter(model[group].tolist()).values() if count > 1
    )
    of_same, of_different = _rate(within, of_one_model), _rate(agreeing - within, every - of_one_model)
    pairs, rates = [np.empty(0, dtype=np.intp)], [np.empty(0)]
    known = int(np.isfinite(scores).sum())
    for group in groups if min(of_same, of_different) < RARE else []:
        common = (len(group) - 2) / known  # a value that many rows have, such as what always saying yes scores
        if common < RARE:
            first, second = (group[at] for at in np.triu_indices(len(group), 1))
            rate = np.maximum(np.where(model[first] == model[second], of_same, of_different), common)
            pairs.append((first * len(scores) + second)[rate < RARE])
            rates.append(np.log10(rate[rate < RARE]))
    return np.concatenate(pairs), np.concatenate(rates)


def _rate(agreeing: int, pairs: int) -> float:
    """How often two rows agree, the pair in question left out; half a pair is the least that can be known."""
    return (max(agreeing - 1, 0) + 0.5) / pairs if pairs else 1.0


def _equal(scores: Reals) -> list[Wholes]:
    """Rows of each value that two or more rows have."""
    known = np.flatnonzero(np.isfinite(scores))
    ordered = known[np.argsort(scores[known], kind="stable")]
    breaks = np.flatnonzero(np.diff(scores[ordered])) + 1
    return [np.sort(group) for group in np.split(ordered, breaks) if len(group) > 1]
