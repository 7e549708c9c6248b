"""What a sweep's tables say of one checkpoint: scores and gains, training, contamination, lint marks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysft.study.gains import gain_table
from raysft.study.lint import lint_findings
from raysft.study.lint.findings import Finding
from raysft.study.variants import trial_variants

Row = dict[str, Any]

# What cards are made from: all that the lint and the variants of trials look at, and nothing as large as samples.
CARD_TABLES = ("trials", "training", "scores", "weight_change", "log_likelihood", "contamination", "costs")

# Checks of the lint that look at each row by itself: what they find of one checkpoint is found in its rows alone.
_OWN_CHECKS = frozenset(
    {"at_or_below_chance", "format_failure", "diverged_trial", "low_precision_delta", "contaminated_pair"}
)


@dataclass(frozen=True)
class Score:
    """A checkpoint's score on a task beside its base model's; errors are standard errors, null where not known."""

    task: str
    metric: str
    value: float | None
    stderr: float | None
    base: float | None
    base_stderr: float | None
    gain: float | None
    gain_stderr: float | None
    n: int | None
    chance: float | None
    unextracted: float | None
    degenerate: float | None
    bits_per_byte: float | None
    higher_is_better: bool


class Records:
    """A sweep's tables by name, with the schemas of `raysft.store.schema.TABLES`, looked up by checkpoint."""

    def __init__(self, tables: Mapping[str, pa.Table]) -> None:
        self.tables = tables
        self._scores = _by(tables["scores"].to_pylist(), "trial", "epoch")
        known = (tables[name] for name in ("trials", "scores", "weight_change", "log_likelihood"))
        gains = gain_table(tables["scores"], trial_variants(*known))
        self._gains = {_place(row): row for row in gains.to_pylist()}
        self._trials = {row["trial"]: row for row in tables["trials"].to_pylist() if row["trial"] is not None}
        self._training = _by(tables["training"].to_pylist(), "trial")
        self._contamination = _by(tables["contamination"].to_pylist(), "dataset", "size")
        self._lint = [found for found in lint_findings(tables) if found.severity != "note"]

    def scores(self, trial: str, epoch: int) -> list[Score]:
        """Every score of a checkpoint, as the table has them."""
        return [_score(row, self._gains.get(_place(row), {})) for row in self._scores.get((trial, epoch), ())]

    def base_scores(self, model: str) -> list[Score]:
        """Every score of a base model, with the errors that gains are computed with."""
        rows = [row for row in self._scores.get((None, 0), ()) if row["model"] == model]
        errors = {
            (row["task"], row["metric"]): row["base_stderr"] for row in self._gains.values() if row["model"] == model
        }
        return [_score(row, {"score_stderr": errors.get((row["task"], row["metric"]), row["stderr"])}) for row in rows]

    def trial(self, key: str) -> Row:
        """A trial's row in the table `trials`; empty where it has none."""
        return self._trials.get(key, {})

    def training(self, key: str) -> list[Row]:
        """A trial's epochs, in their order."""
        return sorted(self._training.get((key,), ()), key=lambda row: row["at_epoch"])

    def contamination(self, dataset: str, size: int | None) -> list[Row]:
        """For every benchmark, what a training set shares with it."""
        return self._contamination.get((dataset, size), [])

    def lint(self, trial: str, epoch: int) -> list[Finding]:
        """Findings of the study's lint that concern a checkpoint, errors first.

        What is found in rows one by one is looked for in the checkpoint's rows; of what only shows beside others, the
        findings that name the checkpoint, its base or a column it has a score in, and those of the whole sweep.
        """
        row = self._trials.get(trial)
        if row is None:
            return []
        concerned = {"trials", "scores", *_subjects(row, epoch)}
        for score in self._scores.get((trial, epoch), ()):
            concerned |= {score["task"], f"{score['task']} {score['metric']}"}
        beside = [
            found
            for found in self._lint
            if found.check not in _OWN_CHECKS and (_names(found) & concerned or found.check == "changed_version")
        ]
        own = [
            found
            for found in lint_findings(self._slice(row, epoch))
            if found.check in _OWN_CHECKS and found.severity != "note"
        ]
        return sorted((*own, *beside), key=lambda found: found.severity != "error")

    def _slice(self, row: Row, epoch: int) -> dict[str, pa.Table]:
        """The tables with a checkpoint's own rows."""
        of = {name: self.tables[name] for name in ("scores", "weight_change", "trials", "contamination")}
        for name in ("scores", "weight_change"):
            of[name] = of[name].filter(
                pc.and_(_equal(of[name], "trial", row["trial"]), _equal(of[name], "epoch", epoch))
            )
        of["trials"] = of["trials"].filter(_equal(of["trials"], "trial", row["trial"]))
        same = pc.and_(
            _equal(of["contamination"], "dataset", row["dataset"]), _equal(of["contamination"], "size", row["size"])
        )
        of["contamination"] = of["contamination"].filter(same)
        return of


def _equal(table: pa.Table, column: str, value: Any) -> pa.ChunkedArray:
    return pc.is_null(table[column]) if value is None else pc.fill_null(pc.equal(table[column], value), False)


def _names(finding: Finding) -> set[str]:
    """What a finding is about: its names, and for columns that its subject joins by commas each of them."""
    return {finding.subject, *finding.names, *(part.strip() for part in finding.subject.split(", "))}


def _subjects(row: Row, epoch: int) -> Iterable[str]:
    """The names that the lint gives a checkpoint, its trial and its base model."""
    words = (row["model"], row["dataset"], row["method"], row["size"] and f"{row['size']} rows", row["schedule"])
    label = " / ".join(str(word) for word in (*words, f"seed {row['seed']}") if word)
    return label, f"{label} / epoch {epoch}", row["model"], f"{row['model']} (base)"


def _score(row: Row, gain: Row) -> Score:
    return Score(
        task=row["task"],
        metric=row["metric"],
        value=row["value"],
        stderr=gain.get("score_stderr", row["stderr"]),
        base=gain.get("base"),
        base_stderr=gain.get("base_stderr"),
        gain=gain.get("gain"),
        gain_stderr=gain.get("stderr"),
        n=row["n"],
        chance=row["chance"],
        unextracted=row["unextracted"],
        degenerate=row["degenerate"],
        bits_per_byte=row["bits_per_byte"],
        higher_is_better=row["higher_is_better"] is not False,
    )


def _place(row: Row) -> tuple[Any, ...]:
    return row["trial"], row["epoch"], row["task"], row["metric"]


def _by(rows: Iterable[Row], *columns: str) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple(row[column] for column in columns)].append(row)
    return found
