"""The study of released scores: a CSV as the tables of a sweep, of which a slice is studied as any sweep is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysft.study.released.reading import Released, ReleasedError, base_models, read_released
from raysft.study.released.selection import Choice, select_scores
from raysft.study.run import Study, study_of
from raysft.study.tables import write_json, write_table

SWEEP, TABLES, SUMMARY = "sweep", "tables", "summary.json"


@dataclass(frozen=True)
class ReleasedStudy:
    """A study (tables by name, schemas in `STUDY_TABLES`), and what was read, chosen and left out.

    `released` is the file as tables of a sweep: all of it, whatever was chosen.
    """

    tables: Mapping[str, pa.Table]
    summary: Mapping[str, Any]
    released: Released


def study_released(
    csv: Path, out: Path, choice: Choice | None = None, columns: Mapping[str, str] | None = None
) -> ReleasedStudy:
    """Study released scores and write `out/tables/<name>.parquet` and `out/summary.json`; equal files give equal bytes.

    The file as a sweep's tables `trials` and `scores` goes to `out/sweep/`.

    Args:
        csv: one row for each checkpoint, one column for each benchmark (see `read_released`, also for `columns`).
        out: folder to write to; it is made.
        choice: the slice; by default the main one. Lint and gains over epochs look at the whole file.

    Raises:
        ReleasedError: the file cannot be read as released scores, or does not have what was chosen.
    """
    if out.exists() and not out.is_dir():
        raise ReleasedError(f"{out}: a file; a folder for the study is wanted")
    study = study_of_released(read_released(csv, columns), choice or Choice())
    for name, table in study.tables.items():
        write_table(table, out / TABLES / f"{name}.parquet")
    write_table(study.released.trials, out / SWEEP / "trials.parquet")
    write_table(_first_of_each(study.released.scores)[0], out / SWEEP / "scores.parquet")
    write_json(study.summary, out / SUMMARY)
    return study


def study_of_released(released: Released, choice: Choice) -> ReleasedStudy:
    """The study of a file already read."""
    scores, doubled = _first_of_each(released.scores)
    chosen, said = select_scores(scores.filter(pc.is_valid(scores["trial"])), choice)
    # Lint is there to see the repeated rows, which are no part of the statistics.
    study = study_of({**released.tables, "scores": scores}, chosen=chosen, linted=released.tables)
    gains = study.tables["gains"]
    skipped = _without_gains(scores, chosen, gains)
    if doubled:
        skipped["repeated rows"] = f"{doubled} scores of a model, trial and epoch that came before"
    if not gains.num_rows:
        skipped["every statistic"] = "no gain is left to study"
    said["scales"] = _scales(gains)
    return ReleasedStudy(study.tables, _summary(released, said, study, skipped), released)


def _scales(gains: pa.Table) -> str:
    """`1: a; 100: b, c`: what gains are divided by before they are compared across tasks."""
    of = dict(zip(gains["task"].to_pylist(), gains["scale"].to_pylist(), strict=True))
    found = {scale: [task for task in sorted(of) if of[task] == scale] for scale in sorted(set(of.values()))}
    return "; ".join(f"{scale:g}: {', '.join(tasks)}" for scale, tasks in found.items()) or "no gains"


def _without_gains(scores: pa.Table, chosen: pa.Table, gains: pa.Table) -> dict[str, str]:
    bases = set(base_models(scores))
    skipped = {
        f"gains of {model}": "no scores of the base model"
        for model in sorted(set(pc.unique(chosen["model"]).to_pylist()) - bases)
    }
    known = set(pc.unique(gains["task"]).to_pylist())
    tasks = [task for task in pc.unique(chosen["task"]).to_pylist() if task not in known]
    return skipped | {f"gains in {task}": "not measured in a base model and its tunings" for task in tasks}


def _first_of_each(scores: pa.Table) -> tuple[pa.Table, int]:
    """Each checkpoint's and base model's scores once, the first that is there, and how many came again."""
    keys = list(zip(*(scores[name].to_pylist() for name in ("model", "trial", "epoch", "task")), strict=True))
    first: dict[tuple[object, ...], int] = {}
    known = scores["value"].is_valid().to_pylist()
    for at, key in sorted(enumerate(keys), key=lambda place: not known[place[0]]):  # stable: those that are there first
        first.setdefault(key, at)
    kept = sorted(first.values())
    return scores.take(pa.array(kept, pa.int64())), sum(known) - sum(known[at] for at in kept)


def _summary(released: Released, chosen: Mapping[str, str], study: Study, skipped: Mapping[str, str]) -> dict[str, Any]:
    severities = study.tables["lint"]["severity"].to_pylist()
    tuned = released.trials.filter(pc.is_valid(released.trials["trial"])).num_rows
    read = {
        "base_models": len(base_models(released.scores)),
        "trials": tuned,
        "scores": released.scores.num_rows - released.scores["value"].null_count,
        "columns": dict(released.roles),
        "not_read": list(released.notes),
    }
    left_out = [*(f"{what}: {why}" for what, why in skipped.items()), *study.summary["left_out"]]
    return {
        "read": read,
        "chosen": dict(chosen),
        "lint": {severity: severities.count(severity) for severity in dict.fromkeys(severities)},
        **study.summary,
        "left_out": left_out,
    }
