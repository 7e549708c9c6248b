"""The study of released scores: a CSV as the tables of a sweep, of which a slice is studied as any sweep is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysft.study.released.reading import Released, base_models, read_released
from raysft.study.released.selection import Choice, select_gains, unmeasured
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
    study = study_of_released(read_released(csv, columns), choice or Choice())
    for name, table in study.tables.items():
        write_table(table, out / TABLES / f"{name}.parquet")
    for name in ("trials", "scores"):
        write_table(study.released.tables[name], out / SWEEP / f"{name}.parquet")
    write_json(study.summary, out / SUMMARY)
    return study


def study_of_released(released: Released, choice: Choice) -> ReleasedStudy:
    """The study of a file already read."""
    chosen: dict[str, str] = {}
    skipped: dict[str, str] = {}

    def choose(every: pa.Table) -> pa.Table:
        skipped.update(_without_gains(released.scores, every))
        gains, said = select_gains(every, choice)
        chosen.update(said, scales=_scales(gains))
        if not gains.num_rows:
            skipped["every statistic"] = "no gain is left to study"
        return gains

    scores, doubled = _first_of_each(released.scores)
    if doubled:
        skipped["repeated rows"] = f"{doubled} scores of a model, trial and epoch that came before"
    # Lint is there to see the repeated rows, which are no part of the statistics.
    study = study_of({**released.tables, "scores": scores}, choose=choose, linted=released.tables)
    return ReleasedStudy(study.tables, _summary(released, chosen, study, skipped), released)


def _scales(gains: pa.Table) -> str:
    """`1: a; 100: b, c`: what gains are divided by before they are compared across tasks."""
    of = dict(zip(gains["task"].to_pylist(), gains["scale"].to_pylist(), strict=True))
    found = {scale: [task for task in sorted(of) if of[task] == scale] for scale in sorted(set(of.values()))}
    return "; ".join(f"{scale:g}: {', '.join(tasks)}" for scale, tasks in found.items()) or "no gains"


def _without_gains(scores: pa.Table, every: pa.Table) -> dict[str, str]:
    bases = set(base_models(scores))
    tuned = set(pc.unique(scores.filter(pc.is_valid(scores["trial"]))["model"]).to_pylist())
    skipped = {f"gains of {model}": "no scores of the base model" for model in sorted(tuned - bases)}
    tasks = pc.unique(scores["task"]).to_pylist()
    return skipped | {
        f"gains in {task}": "not measured in a base model and its tunings" for task in unmeasured(every, tasks)
    }


def _first_of_each(scores: pa.Table) -> tuple[pa.Table, int]:
    """Each checkpoint's and base model's scores once, and how many came again."""
    seen: set[tuple[object, ...]] = set()
    kept = []
    for key in zip(*(scores[name].to_pylist() for name in ("model", "trial", "epoch", "task")), strict=True):
        kept.append(key not in seen)
        seen.add(key)
    return scores.filter(pa.array(kept, pa.bool_())), kept.count(False)


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
