"""Which training sets hold text of which benchmarks, so that a gain there is not taken for something learned."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from raysft.report.findings import Findings
from raysft.report.listing import Listing

MARKED = 0.01
"""Share of a benchmark's items with an n-gram of the training set, from which on the pair is marked."""

_COLUMNS = ("dataset", "size", "task", "overlap", "ngram_overlap", "longest_match", "ngram", "items", "too_short")


def marked_pairs(findings: Findings) -> set[tuple[str, str]]:
    """(training set, task) whose overlap is to be seen in figures, at whatever size the set was used."""
    rows = _marked(findings.sweep["contamination"]).select(["dataset", "task"]).to_pylist()
    return {(row["dataset"], row["task"]) for row in rows}


def overlaps(findings: Findings) -> Listing:
    """The marked pairs, those that share most first."""
    order = [("overlap", "descending"), ("dataset", "ascending"), ("size", "ascending"), ("task", "ascending")]
    data = _marked(findings.sweep["contamination"]).select(list(_COLUMNS)).sort_by(order)
    measured = findings.sweep["contamination"].num_rows
    empty = (
        f"None of {measured} pairs of training set and task shares text with {MARKED:.0%} of the task's items or more."
        if measured
        else "It was not looked for: probes.contamination."
    )
    return Listing("contamination", "Training sets that hold text of a benchmark", empty, data)


def overlap_note(findings: Findings) -> list[str]:
    """A line for the reader of the headlines, if there is something to say."""
    pairs = marked_pairs(findings)
    if not pairs:
        return []
    datasets = sorted({dataset for dataset, _ in pairs})
    return [
        f"{len(pairs)} pairs of training set and task share text with {MARKED:.0%} of the task's items or more (sets: "
        f"{', '.join(datasets)}). Gains there may be remembered; † marks them, and they are listed below the gains."
    ]


def _marked(table: pa.Table) -> pa.Table:
    return table.filter(pc.fill_null(pc.greater_equal(table["overlap"], MARKED), False))
