"""What a sweep's tables say of one checkpoint: scores and gains, training, contamination, lint marks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raysft.study.gains import gain_table
from raysft.study.lint import lint_table
from raysft.study.variants import trial_variants

Row = dict[str, Any]


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
        self._lint = [row for row in lint_table(tables).to_pylist() if row["severity"] != "note"]

    def scores(self, trial: str, epoch: int) -> list[Score]:
        """Every score of a checkpoint, as the table has them."""
        return [_score(row, self._gains.get(_place(row), {})) for row in self._scores.get((trial, epoch), ())]

    def base_scores(self, model: str) -> list[Score]:
        """Every score of a base model."""
        return [_score(row, {}) for row in self._scores.get((None, 0), ()) if row["model"] == model]

    def trial(self, key: str) -> Row:
        """A trial's row in the table `trials`; empty where it has none."""
        return self._trials.get(key, {})

    def training(self, key: str) -> list[Row]:
        """A trial's epochs, in their order."""
        return sorted(self._training.get((key,), ()), key=lambda row: row["at_epoch"])

    def contamination(self, dataset: str, size: int | None) -> list[Row]:
        """For every benchmark, what a training set shares with it."""
        return self._contamination.get((dataset, size), [])

    def lint(self, trial: str, epoch: int) -> list[Row]:
        """Findings of the study's lint that concern a checkpoint, errors first.

        A finding names rows, columns or trials in its subject; those of the whole sweep concern every checkpoint.
        """
        row = self._trials.get(trial)
        if row is None:
            return []
        concerned = {"trials", "scores", *_subjects(row, epoch)}
        for score in self._scores.get((trial, epoch), ()):
            task = score["task"]
            concerned |= {task, f"{task} {score['metric']}", f"{row['dataset']} / {task}"}
        return [found for found in self._lint if _names(found) & concerned or found["check"] == "changed_version"]


def _names(finding: Row) -> set[str]:
    """What a finding's subject names: rows joined by `=`, columns by commas."""
    parts = {part.strip() for joined in finding["subject"].split(" = ") for part in joined.split(", ")}
    return parts | {finding["subject"]}


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
