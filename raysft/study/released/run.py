"""The study of released scores from the CSV to `tables/` and `summary.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysft.study.components import pca_table
from raysft.study.gains import gain_table
from raysft.study.lint import lint_table
from raysft.study.matrix import pivot
from raysft.study.pairs import pairs_table
from raysft.study.released.prediction import prediction_table
from raysft.study.released.reading import Released, base_models, read_released
from raysft.study.released.selection import Choice, select_gains, unmeasured
from raysft.study.released.similarity import clusterings, similarities, similarity_rows
from raysft.study.released_schemas import RELEASED_GAINS, RELEASED_TABLES
from raysft.study.similarity import linkage_table
from raysft.study.tables import write_json, write_table

_ROW = ("model", "dataset", "method", "epoch", "size", "schedule", "task")


@dataclass(frozen=True)
class ReleasedStudy:
    """Tables by name (schemas in `RELEASED_TABLES`), and what was read, chosen and left out.

    `gains` are the chosen ones with all the study knows of them, of schema `GAINS`; `released` is the file as tables of
    a sweep. Whatever further statistic is wanted starts from these two.
    """

    tables: Mapping[str, pa.Table]
    summary: Mapping[str, Any]
    gains: pa.Table
    released: Released


def study_released(
    csv: Path, out: Path, choice: Choice | None = None, columns: Mapping[str, str] | None = None
) -> ReleasedStudy:
    """Study released scores and write `out/tables/<name>.parquet` and `out/summary.json`; equal files give equal bytes.

    Args:
        csv: one row for each checkpoint, one column for each benchmark (see `read_released`, also for `columns`).
        out: folder to write to; it is made.
        choice: the slice; by default the main one. Lint looks at the whole file whatever is chosen.

    Raises:
        ReleasedError: the file cannot be read as released scores, or does not have what was chosen.
    """
    study = study_of_released(read_released(csv, columns), choice or Choice())
    for name, table in study.tables.items():
        write_table(table, out / "tables" / f"{name}.parquet")
    write_json(study.summary, out / "summary.json")
    return study


def study_of_released(released: Released, choice: Choice) -> ReleasedStudy:
    """The study of a file already read."""
    every, skipped = _gains(released)
    gains, chosen = select_gains(every, choice)
    tables = {"gains": _as_released(gains)}
    if gains.num_rows:
        found = similarities(gains)
        clustered = clusterings(found)
        tables["similarity"] = similarity_rows(found)
        tables["linkage"] = linkage_table(clustered)
        for kind, clustering in clustered.items():
            skipped |= {f"{name} in the clustering of {kind}": why for name, why in clustering.skipped.items()}
        for name, make in _STATISTICS.items():
            tables[name], why = make(gains)
            skipped |= why
    else:
        skipped["every statistic"] = "no gain is left to study"
    tables["lint"] = lint_table(released.tables)
    tables = {name: tables.get(name, schema.empty_table()) for name, schema in RELEASED_TABLES.items()}
    summary = _summary(released, {**chosen, "scales": _scales(gains)}, tables, skipped)
    return ReleasedStudy(tables, summary, gains, released)


def _scales(gains: pa.Table) -> str:
    """`1: a; 100: b, c`: what gains are divided by before they are compared across tasks."""
    of = dict(zip(gains["task"].to_pylist(), gains["scale"].to_pylist(), strict=True))
    found = {scale: [task for task in sorted(of) if of[task] == scale] for scale in sorted(set(of.values()))}
    return "; ".join(f"{scale:g}: {', '.join(tasks)}" for scale, tasks in found.items()) or "no gains"


def _components(gains: pa.Table) -> tuple[pa.Table, dict[str, str]]:
    return pca_table(pivot(gains, ("trial", "epoch"), "task", "gain"))


_STATISTICS: dict[str, Callable[[pa.Table], tuple[pa.Table, dict[str, str]]]] = {
    "pca": _components,
    "pairs": pairs_table,
    "prediction": prediction_table,
}


def _gains(released: Released) -> tuple[pa.Table, dict[str, str]]:
    """Gains of every checkpoint whose base was scored, of schema `GAINS`, each checkpoint and base model once."""
    scores, doubled = _first_of_each(released.scores)
    skipped = {"repeated rows": f"{doubled} scores of a model, trial and epoch that came before"} if doubled else {}
    gains = gain_table(scores, {})
    bases = set(base_models(scores))
    tuned = set(pc.unique(scores.filter(pc.is_valid(scores["trial"]))["model"]).to_pylist())
    skipped |= {f"gains of {model}": "no scores of the base model" for model in sorted(tuned - bases)}
    tasks = pc.unique(scores["task"]).to_pylist()
    skipped |= {f"gains in {task}": "not measured in a base model and its tunings" for task in unmeasured(gains, tasks)}
    return gains, skipped


def _first_of_each(scores: pa.Table) -> tuple[pa.Table, int]:
    seen: set[tuple[object, ...]] = set()
    kept = []
    for key in zip(*(scores[name].to_pylist() for name in ("model", "trial", "epoch", "task")), strict=True):
        kept.append(key not in seen)
        seen.add(key)
    return scores.filter(pa.array(kept, pa.bool_())), kept.count(False)


def _as_released(gains: pa.Table) -> pa.Table:
    ordered = gains.sort_by([(name, "ascending") for name in _ROW])
    return ordered.select(RELEASED_GAINS.names).cast(RELEASED_GAINS)


def _summary(
    released: Released, chosen: Mapping[str, str], tables: Mapping[str, pa.Table], skipped: Mapping[str, str]
) -> dict[str, Any]:
    severities = tables["lint"]["severity"].to_pylist()
    tuned = released.trials.filter(pc.is_valid(released.trials["trial"])).num_rows
    return {
        "read": {
            "base_models": len(base_models(released.scores)),
            "trials": tuned,
            "scores": released.scores.num_rows - released.scores["value"].null_count,
            "columns": dict(released.roles),
            "not_read": list(released.notes),
        },
        "chosen": dict(chosen),
        "rows": {name: table.num_rows for name, table in tables.items()},
        "lint": {severity: severities.count(severity) for severity in dict.fromkeys(severities)},
        "left_out": [f"{what}: {why}" for what, why in skipped.items()],
    }
