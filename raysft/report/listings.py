"""The tables of the page: claims, best datasets, failures, costs, checks and lint."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysft.report.findings import Findings
from raysft.report.listing import Listing
from raysft.study.claims.verdict import CANNOT_TELL, NOT_SUPPORTED, SUPPORTED
from raysft.study.lint.findings import SEVERITIES
from raysft.study.tables import aggregate

VERDICTS = (SUPPORTED, NOT_SUPPORTED, CANNOT_TELL)


def best_datasets(findings: Findings) -> Listing:
    """For every task the dataset and variant with the largest mean gain."""
    best: dict[str, dict[str, Any]] = {}
    for row in findings.study["gain_matrix"].to_pylist():
        if row["task"] not in best or row["gain"] > best[row["task"]]["gain"]:
            best[row["task"]] = row
    columns = ("task", "dataset", "variant", "gain", "stderr", "z", "models")
    schema = pa.schema([findings.study["gain_matrix"].schema.field(name) for name in columns])
    rows = [{name: best[task][name] for name in columns} for task in sorted(best)]
    data = pa.Table.from_pylist(rows, schema)
    return Listing("best_dataset", "Best dataset for each task", "No gain was measured.", data)


def failures(findings: Findings) -> Listing:
    """What failed and has not been repeated with success."""
    table = findings.sweep["failures"]
    columns = ["stage", "model", "dataset", "method", "seed", "epoch", "attempt", "error", "message", "log"]
    open_ones = table.filter(pc.invert(pc.fill_null(table["resolved"], False))).select(columns)
    return Listing(
        "failures",
        "Unresolved failures",
        "Nothing failed.",
        open_ones.sort_by([(name, "ascending") for name in columns]),
    )


def costs(findings: Findings) -> Listing:
    """Wall and GPU seconds by stage."""
    table = findings.sweep["costs"]
    grouped = aggregate(table, ["stage"], ("wall_s", "count"), ("wall_s", "sum"), ("wall_s", "mean"), ("gpu_s", "sum"))
    names = {
        "wall_s_count": "results",
        "wall_s_sum": "wall_seconds",
        "wall_s_mean": "mean_seconds",
        "gpu_s_sum": "gpu_seconds",
    }
    data = grouped.rename_columns([names.get(name, name) for name in grouped.column_names])
    return Listing("costs", "Costs by stage", "No cost was recorded.", data)


def claims(findings: Findings) -> Listing:
    """What the paper found and what these tables say to it, the verdict first; supported ones before the others."""
    table = findings.study["claims"]
    rows = sorted(table.to_pylist(), key=lambda row: VERDICTS.index(row["verdict"]))
    shown = [{"verdict": row["verdict"], "claim": row["claim"], "found": _found(row)} | row for row in rows]
    hidden = ("name", "statement", "reason", "criterion", "numbers")
    schema = pa.schema([(name, pa.string()) for name in ("verdict", "claim", "found", "section", *hidden)])
    about = (
        "The criterion of each claim is the same for every study. Criteria and single numbers are in the CSV, and "
        "docs/study.md says how each was made."
    )
    empty = "No claim was tested: the study has no table of them."
    return Listing(
        "claims", "Claims of the paper", empty, pa.Table.from_pylist(shown, schema), about, "verdict", True, hidden
    )


def _found(row: dict[str, Any]) -> str:
    """The numbers, and why they do not tell where they do not."""
    return " ".join(f"{_begun(text).rstrip('.')}." for text in (row["statement"], row["reason"]) if text)


def _begun(text: str) -> str:
    """As a sentence begins; but names of columns stay as they are."""
    return text if "_" in text.partition(" ")[0] else text[0].upper() + text[1:]


def verdicts(findings: Findings) -> list[str]:
    """A line for the reader of the headlines, if claims were tested."""
    counts = Counter(findings.study["claims"]["verdict"].to_pylist())
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return [f"Of the paper's claims: {said}."] if said else []


def checks(findings: Findings) -> Listing:
    """The study's counts; what it left out is said in the notes."""
    table = findings.study["checks"]
    counted = table.filter(pc.is_valid(table["value"]))
    return Listing("checks", "Checks", "Nothing was counted.", counted, "How far to trust the rest.", stacked=True)


def lint_counts(findings: Findings) -> Listing:
    """Findings of lint by check and severity, errors first."""
    table = findings.study["lint"]
    counted = aggregate(table, ["severity", "check"], ("subject", "count")).to_pylist()
    counted.sort(key=lambda row: (SEVERITIES.index(row["severity"]), row["check"]))
    rows = [{"severity": row["severity"], "check": row["check"], "findings": row["subject_count"]} for row in counted]
    schema = pa.schema([("severity", pa.string()), ("check", pa.string()), ("findings", pa.int64())])
    about = "An error makes numbers wrong, a warning makes them say less than they seem to, a note is not checked."
    empty = "Nothing was found."
    return Listing("lint_counts", "Lint", empty, pa.Table.from_pylist(rows, schema), about, badge="severity")


def lint_groups(findings: Findings) -> list[Listing]:
    """The findings of each severity and check, errors first; all of them are in one CSV."""
    table = findings.study["lint"]
    groups = []
    for row in lint_counts(findings).data.to_pylist():
        chosen = pc.and_(pc.equal(table["severity"], row["severity"]), pc.equal(table["check"], row["check"]))
        title = f"{row['severity']}: {row['check'].replace('_', ' ')} ({row['findings']:,})"
        name = f"lint_{row['severity']}_{row['check']}"
        groups.append(Listing(name, title, "", table.filter(chosen).select(["subject", "detail"]), stacked=True))
    return groups
