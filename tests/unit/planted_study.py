"""Rows for tables of a study that a synthetic sweep is too small for, so that every figure of the report is drawn."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysft.report.findings import STUDIED

Row = dict[str, Any]
# Whose rows the study of a synthetic sweep has, but not those that a figure or a verdict needs.
_ALWAYS = ("claims", "epoch_gains")


def fill_study(study: Path, tasks: list[str], models: list[str], datasets: list[str]) -> None:
    """Write the rows below into those tables of `study/tables` that are missing or lack them."""
    rows = {
        "pca": [
            {"scaling": scaling, "component": at + 1, "cumulative": share}
            for scaling in ("raw", "minmax", "zscore")
            for at, share in enumerate((0.6, 0.92, 1.0))
        ],
        "pairs": [_pair(task, at) for at, task in enumerate(tasks)],
        "epoch_gains": [
            {
                "model": model,
                "method": "full",
                "size": size,
                "schedule": "constant",
                "epochs": 3,
                "epoch": epoch,
                "task": task,
                "gain": 0.01 * epoch,
                "same_datasets": True,
                "stderr": 0.02,
                "datasets": len(datasets),
            }
            for model, size, epoch, task in product(models, (1000, 20000), (1, 2, 3), tasks)
        ],
        "layer_similarity": [{"a": a, "b": b, "r": 1.0 if a == b else 0.4, "n": 4} for a, b in product(models, models)],
        "claims": [
            {
                "claim": f"Claim {verdict} <b>bold</b>",
                "section": "3.1",
                "verdict": verdict,
                "statement": "Said with its numbers.",
                "numbers": "n = 3",
                "reason": "too few models" if verdict == "cannot be told" else None,
            }
            for verdict in ("supported", "not supported", "cannot be told")
        ],
        "update_similarity_means": [
            {"kind": kind, "a": a, "b": b, "cosine": 0.3, "left_overlap": 0.1, "right_overlap": 0.1, "pairs": 2}
            for kind, names in (("dataset", sorted(datasets)), ("variant", ["full", "lora"]))
            for a, b in product(names, names)
            if a < b
        ],
        "matrix_comparisons": [
            {
                "kind": "task",
                "a": "task: full",
                "b": "task: lora",
                "n": 6,
                "r": 0.8,
                "spearman": 0.7,
                "p": 0.01,
                "q": 0.02,
            }
        ],
    }
    for name, found in rows.items():
        path = study / "tables" / f"{name}.parquet"
        if name in _ALWAYS or not path.exists() or not _filled(path):
            pq.write_table(pa.Table.from_pylist(found, schema=STUDIED[name]), path)
    _fill_models_similarity(study / "tables" / "similarity.parquet", models)


def _filled(path: Path) -> bool:
    table = pq.read_table(path)
    return bool(table.num_rows) and ("r" not in table.column_names or bool(_known(table)))


def _known(table: pa.Table) -> int:
    return table.num_rows - table["r"].null_count


def _pair(task: str, at: int) -> Row:
    names = {"task": task, "first": "full", "second": "lora", "n": 9}
    return {
        **names,
        "mean_difference": 0.02 * at,
        "scale": 1.0,
        "low": 0.02 * at - 0.03,
        "high": 0.02 * at + 0.03,
        "p": 0.04,
        "q": 0.06,
    }


def _fill_models_similarity(path: Path, models: list[str]) -> None:
    table = pq.read_table(path)
    kinds = ("model_by_task", "model_by_dataset")
    rows = [row for row in table.to_pylist() if row["kind"] not in kinds]
    rows += [
        {"kind": kind, "a": a, "b": b, "r": 1.0 if a == b else 0.5, "n": 9}
        for kind, a, b in product(kinds, models, models)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=STUDIED["similarity"]), path)
