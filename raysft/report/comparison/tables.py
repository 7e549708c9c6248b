"""What two studies say beside their gains: coverage, claims, similarity matrices and lint, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from raysft.report.comparison.sides import AXES, Pair, Side, different_settings, only_in_one
from raysft.report.listing import Listing
from raysft.study.gains import final_gains
from raysft.study.lint.findings import SEVERITIES
from raysft.study.matrix import Matrix
from raysft.study.similarity import ENTRIES, KINDS, centred, correlation_matrix, gain_similarities
from raysft.study.statistics.mantel import mantel
from raysft.study.statistics.multiplicity import q_values
from raysft.study.tables import from_rows

_TEXT, _REAL, _WHOLE = pa.string(), pa.float64(), pa.int64()
_CENTRED = ("task", "model")

Row = dict[str, Any]


def _listing(
    name: str, title: str, empty: str, rows: list[Row], columns: dict[str, pa.DataType], **more: Any
) -> Listing:
    return Listing(name, title, empty, pa.Table.from_pylist(rows, pa.schema(columns.items())), **more)


def coverage(first: Side, second: Side, found: list[Pair]) -> Listing:
    """How much each has, and how much of it is in both."""
    rows: list[Row] = []
    for axis in AXES:
        ours, theirs = first.names(axis), second.names(axis)
        rows.append({"what": f"{axis}s", "A": len(ours), "B": len(theirs), "both": len(ours & theirs)})
    variants = [len(set(side.findings.study["gain_matrix"]["variant"].to_pylist())) for side in (first, second)]
    rows.append({"what": "variants", "A": variants[0], "B": variants[1], "both": len(found)})
    counts: dict[str, Callable[[Side], int]] = {
        "fine-tunings planned": lambda side: side.findings.trials.num_rows,
        "fine-tunings failed": lambda side: _in_state(side, "failed"),
        "fine-tunings missing": lambda side: _in_state(side, "missing"),
        "fine-tunings diverged": lambda side: _in_state(side, "diverged"),
        "gains of checkpoints, all metrics": lambda side: side.findings.study["gains"].num_rows,
    }
    rows += [{"what": what, "A": count(first), "B": count(second), "both": None} for what, count in counts.items()]
    columns = {"what": _TEXT, "A": _WHOLE, "B": _WHOLE, "both": _WHOLE}
    return _listing("coverage", "What each has", "Neither has anything.", rows, columns)


def _in_state(side: Side, state: str) -> int:
    return side.findings.trials["state"].to_pylist().count(state)


def names(first: Side, second: Side, found: list[Pair]) -> Listing:
    """Names that only one of them has: left out of everything here."""
    columns = {"what": _TEXT, "name": _TEXT, "only_in": _TEXT}
    about = "These are left out of the comparison. A thing that the two call by different names is in here twice."
    rows = only_in_one(first, second, found)
    return _listing("names", "What only one of them has", "Both have the same names.", rows, columns, about=about)


def settings(first: Side, second: Side, found: list[Pair]) -> Listing:
    """How the variants that are compared differ nevertheless."""
    columns = {"variant": _TEXT, "setting": _TEXT, "A": _TEXT, "B": _TEXT}
    rows = different_settings(first, second, found)
    empty = "The variants that both have agree in size, learning rate, schedule, epochs, batch size and seeds."
    return _listing("settings", "Settings that differ within a compared variant", empty, rows, columns)


def claims(first: Side, second: Side) -> Listing:
    """Verdicts on each claim that either has."""
    verdicts = [
        {(row["claim"], row["section"]): row["verdict"] for row in side.findings.study["claims"].to_pylist()}
        for side in (first, second)
    ]
    keys = list(dict.fromkeys([*verdicts[0], *verdicts[1]]))
    rows = [
        {"agree": _agreement(a, b), "claim": key[0], "section": key[1], "A": a, "B": b}
        for key in keys
        for a, b in [(verdicts[0].get(key), verdicts[1].get(key))]
    ]
    columns = {"agree": _TEXT, "claim": _TEXT, "section": _TEXT, "A": _TEXT, "B": _TEXT}
    empty = "Neither study has tested a claim."
    return _listing("claims", "Claims of the paper", empty, rows, columns, badge="agree", stacked=True)


def _agreement(a: str | None, b: str | None) -> str:
    if a is None or b is None or "cannot be told" in (a, b):
        return "not both told"
    return "agree" if a == b else "disagree"


def similarities(first: Side, second: Side) -> Listing:
    """Mantel's test of each similarity matrix of A with that of B, over the names that both have; q is over all."""
    rows: list[Row] = []
    for kind in KINDS:
        ours, theirs = (_similarity(side, kind) for side in (first, second))
        shared = sorted(set(ours.rows) & set(theirs.rows))
        found = mantel(_of(ours, shared), _of(theirs, shared))
        rows.append(
            {
                "matrix": kind.replace("_", " "),
                "in_both": len(shared),
                "compared": found.n,
                "r": found.r,
                "p": found.p,
                "reason": found.reason,
            }
        )
    for row, q in zip(rows, q_values(np.array([row["p"] for row in rows])), strict=True):
        row["q"] = float(q)
    columns = {"matrix": _TEXT, "in_both": _WHOLE, "compared": _WHOLE, "r": _REAL, "p": _REAL, "q": _REAL}
    schema = pa.schema([*columns.items(), ("reason", _TEXT)])
    return Listing(
        "similarities", "Similarity matrices", "", from_rows(rows, schema), _ABOUT_SIMILARITIES, stacked=True
    )


_ABOUT_SIMILARITIES = (
    "Whether what reacts alike in A reacts alike in B: r of the lower triangles, p of Mantel's test, q over all rows. "
    "For tasks and for models, gains are first taken less their mean over each study's datasets: two studies of one "
    "base model share the error of its scores, which alone would make these matrices agree. That is done without a "
    "common name too, since a base may go by two."
)


def _similarity(side: Side, kind: str) -> Matrix:
    """The study's own matrix, or that of centred gains where the error of a base score would be in it."""
    if kind in _CENTRED:
        return gain_similarities(centred(final_gains(side.findings.study["gains"])), kind, ENTRIES[kind])
    return correlation_matrix(side.findings.study["similarity"], kind)


def _of(matrix: Matrix, shared: list[str]) -> np.ndarray:
    at = [matrix.rows.index(name) for name in shared]
    return matrix.values[np.ix_(at, at)]


def lint(first: Side, second: Side) -> Listing:
    """Findings of each check in both."""
    counts = [
        Counter(zip(*(side.findings.study["lint"][name].to_pylist() for name in ("severity", "check")), strict=True))
        for side in (first, second)
    ]
    keys = sorted(counts[0] | counts[1], key=lambda key: (SEVERITIES.index(key[0]), key[1]))
    rows = [{"severity": key[0], "check": key[1], "A": counts[0][key], "B": counts[1][key]} for key in keys]
    columns = {"severity": _TEXT, "check": _TEXT, "A": _WHOLE, "B": _WHOLE}
    return _listing("lint", "Lint", "Nothing was found in either.", rows, columns, badge="severity")
