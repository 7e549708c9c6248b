"""Scores that stand there twice: one checkpoint, task and metric in several rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from raysft.study.lint.findings import Finding, listed
from raysft.study.lint.sheet import FIELDS, label_of

_KEY = ("model", "trial", "epoch", "task", "metric")


def repeated_findings(scores: pa.Table) -> Iterator[Finding]:
    """Checkpoints of which some score is there more than once: an error where the values differ."""
    values: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    subjects: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in scores.select([*dict.fromkeys([*_KEY, *FIELDS]), "value"]).to_pylist():
        if row["value"] is not None:
            values[tuple(row[name] for name in _KEY)].append(row["value"])
            subjects.setdefault((row["model"], row["trial"], row["epoch"]), row)
    repeated: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(dict)
    for (*subject, task, _), found in values.items():
        if len(found) > 1:
            repeated[tuple(subject)][task] = found
    for key, tasks in repeated.items():
        differing = [task for task, found in tasks.items() if len(set(found)) > 1]
        severity = "error" if differing else "warning"
        detail = f"{max(map(len, tasks.values()))} rows with scores of {listed(tasks)}"
        detail += f"; they differ in {listed(differing)}" if differing else "; they are equal"
        yield Finding("repeated_scores", severity, label_of(subjects[key]), detail)
