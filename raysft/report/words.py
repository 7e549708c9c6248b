"""The report's tables and headline numbers, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysft.report.findings import Findings
from raysft.study.tables import aggregate


@dataclass(frozen=True)
class Headline:
    """One number with what it counts; `mood` is good, bad or plain."""

    number: str
    label: str
    detail: str
    mood: str = "plain"


@dataclass(frozen=True)
class Listing:
    """A table of the page: `data` is also written as CSV under `name`; `empty` is said where it has no rows."""

    name: str
    title: str
    empty: str
    data: pa.Table

    @property
    def header(self) -> list[str]:
        return [name.replace("_", " ") for name in self.data.column_names]

    @property
    def cells(self) -> list[list[str]]:
        return [[_printed(value) for value in row.values()] for row in self.data.to_pylist()]

    @property
    def numeric(self) -> list[bool]:
        return [pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in self.data.schema.types]


def _printed(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.{3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0}f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def headlines(findings: Findings) -> list[Headline]:
    """The numbers that a reader should see first."""
    counts = _counts(findings)
    done, planned = counts.get("trials_done", (0, 0))
    failed, missing = counts.get("trials_failed", (0, 0))[0], counts.get("trials_missing", (0, 0))[0]
    learned, taught = counts.get("own_skill_gains", (0, 0))
    gained, elsewhere = counts.get("synergies", (0, 0))
    lost, _ = counts.get("losses", (0, 0))
    beyond = f"beyond 3 standard errors in {elsewhere:,.0f} other cells"
    own = "gained beyond 3 standard errors on a task of their own skill"
    return [
        Headline(f"{done:,.0f} / {planned:,.0f}", "fine-tunings done", f"{failed:,.0f} failed, {missing:,.0f} missing"),
        Headline(
            f"{learned:,.0f} / {taught:,.0f}", "learned what they were taught", own, "good" if learned else "plain"
        ),
        Headline(f"{gained:,.0f}", "synergies", f"gains {beyond}", "good" if gained else "plain"),
        Headline(f"{lost:,.0f}", "losses", beyond, "bad" if lost else "plain"),
    ]


def notes(findings: Findings) -> list[str]:
    """What a reader of the headlines should know: chance, gaps, and what was left out."""
    counts = _counts(findings)
    said = []
    chance, cells = counts.get("expected_by_chance", (0, 0))
    if cells:
        said.append(f"If nothing had changed, about {chance:.1f} of {cells:,.0f} cells would pass 3 standard errors.")
    early, final = counts.get("cells_before_last_epoch", (0, 0))
    if early:
        said.append(f"{early:,.0f} of {final:,.0f} cells come from an epoch before the planned last one.")
    unused, scores = counts.get("scores_unused", (0, 0))
    if unused:
        said.append(f"{unused:,.0f} of {scores:,.0f} scores have no base score to compare with, or are not finite.")
    checks = findings.study["checks"].to_pylist()
    return said + [f"Left out: {row['note']}." for row in checks if row["check"] == "left_out"]


def _counts(findings: Findings) -> dict[str, tuple[float, float]]:
    """check -> (count, out of how many)."""
    checks = findings.study["checks"].to_pylist()
    return {row["check"]: (row["value"], row["of"] or 0.0) for row in checks if row["value"] is not None}


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
