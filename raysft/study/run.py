"""The whole study: the sweep's tables in, the study's tables and a summary out. Needs neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysft.store.schema import TABLES
from raysft.study.ceilings import noise_ceiling_table
from raysft.study.checks import check_table
from raysft.study.claims.table import claim_table
from raysft.study.comparisons import comparison_table
from raysft.study.correlate import correlation_table
from raysft.study.depth import intrinsic_dimension_by_depth, weight_change_by_depth
from raysft.study.gains import gain_matrix, gain_table
from raysft.study.layer_tests import layer_test_table
from raysft.study.lint import lint_table
from raysft.study.maps import ModelMap, model_map
from raysft.study.predict import prediction_table
from raysft.study.schema import STUDY_TABLES
from raysft.study.similarity import ENTRIES, Clustering, cluster, correlation_matrix, linkage_table, similarity_table
from raysft.study.tables import read_tables, write_json, write_table
from raysft.study.updates import update_similarity, update_similarity_means
from raysft.study.variants import trial_variants

# Per-sample outcomes are by far the largest table, and nothing here looks at single items.
SWEEP_TABLES = {name: schema for name, schema in TABLES.items() if name != "samples"}


@dataclass(frozen=True)
class Study:
    """Everything a study holds: its tables by name (schemas in `STUDY_TABLES`) and a summary of plain numbers."""

    tables: Mapping[str, pa.Table]
    summary: Mapping[str, Any]


def run_study(tables: Path, out: Path, clip_below: float | None = None) -> Study:
    """Study the sweep in `tables` and write `out/tables/<name>.parquet` and `out/summary.json`.

    Equal inputs give equal files. Whatever cannot be computed is left null, with the reason beside it or in `checks`.
    `clip_below`, nats, freezes the threshold of the map (see `model_map`).

    Raises:
        ValueError: `tables` is not a folder, or holds two base scores for one model, task and metric.
    """
    study = study_of(read_tables(tables, SWEEP_TABLES), clip_below)
    for name, table in study.tables.items():
        write_table(table, out / "tables" / f"{name}.parquet")
    write_json(study.summary, out / "summary.json")
    return study


def study_of(sweep: Mapping[str, pa.Table], clip_below: float | None = None) -> Study:
    """The study of tables already in memory; `sweep` has the tables of `SWEEP_TABLES`."""
    variants = trial_variants(*(sweep[name] for name in ("trials", "scores", "weight_change", "log_likelihood")))
    gains = gain_table(sweep["scores"], variants)
    similarity = similarity_table(gains)
    clusterings = {kind: cluster(correlation_matrix(similarity, kind)) for kind in ENTRIES}
    changes = weight_change_by_depth(sweep["weight_change"], variants)
    sketches = sweep.get("weight_sketches", TABLES["weight_sketches"].empty_table())
    updates = update_similarity(sketches, variants)
    placed = model_map(sweep["log_likelihood"], variants, clip_below)
    checks = check_table(sweep["trials"], sweep["scores"], gains, _skipped(clusterings, placed))
    found = {
        "gains": gains,
        "gain_matrix": gain_matrix(gains),
        "similarity": similarity,
        "linkage": linkage_table(clusterings),
        "correlations": correlation_table(gains, sweep["data_properties"], changes),
        "layer_tests": layer_test_table(gains, changes),
        "matrix_comparisons": comparison_table(gains, placed.distances),
        "noise_ceilings": noise_ceiling_table(gains),
        "prediction": prediction_table(gains, sweep["data_properties"]),
        "weight_change_by_depth": changes,
        "update_similarity": updates,
        "update_similarity_means": update_similarity_means(updates),
        "intrinsic_dimension_by_depth": intrinsic_dimension_by_depth(sweep["intrinsic_dimension"], variants),
        "map": placed.points,
        "map_distances": placed.distances,
        "map_layouts": placed.layouts,
        "trajectories": placed.trajectories,
        "checks": checks,
        "lint": lint_table(sweep),
    }
    found["claims"] = claim_table(found)
    return Study({name: found[name] for name in STUDY_TABLES}, _summary(sweep, found, checks))


def _skipped(clusterings: dict[str, Clustering], placed: ModelMap) -> dict[str, str]:
    clusters = {
        f"{kind} {name} in the clustering of {kind}s": why
        for kind, found in clusterings.items()
        for name, why in found.skipped.items()
    }
    return {**clusters, **{f"{name} in the map": why for name, why in placed.skipped.items()}}


def _summary(sweep: Mapping[str, pa.Table], found: Mapping[str, pa.Table], checks: pa.Table) -> dict[str, Any]:
    counted = [row for row in checks.to_pylist() if row["value"] is not None]
    return {
        "checks": {row["check"]: {"value": row["value"], "of": row["of"], "note": row["note"]} for row in counted},
        "left_out": [row["note"] for row in checks.to_pylist() if row["value"] is None],
        "sweep_rows": {name: table.num_rows for name, table in sweep.items()},
        "study_rows": {name: table.num_rows for name, table in found.items()},
    }
