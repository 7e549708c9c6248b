"""The whole study: the sweep's tables in, the study's tables and a summary out. Needs neither Ray nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysft.store.schema import TABLES
from raysft.study.ceilings import noise_ceiling_table
from raysft.study.cells import gain_cells, not_comparable
from raysft.study.checks import check_table
from raysft.study.claims.table import claim_table
from raysft.study.comparisons import comparison_table
from raysft.study.components import pca_table
from raysft.study.correlate import correlation_table
from raysft.study.depth import (
    intrinsic_dimension_by_depth,
    layer_similarity_table,
    not_at_equal_epochs,
    weight_change_by_depth,
)
from raysft.study.epochs import epoch_gains_table
from raysft.study.gains import gain_matrix, gain_table
from raysft.study.layer_tests import layer_test_table
from raysft.study.lint import lint_table
from raysft.study.maps import ModelMap, model_map
from raysft.study.pairs import pairs_table
from raysft.study.predict import prediction_table
from raysft.study.schema import GAINS, STUDY_TABLES
from raysft.study.similarity import KINDS, Clustering, cluster, correlation_matrix, linkage_table, similarity_table
from raysft.study.tables import read_tables, write_json, write_table
from raysft.study.updates import update_similarity, update_similarity_means
from raysft.study.variants import trial_variants, with_final, with_variants

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


def study_of(
    sweep: Mapping[str, pa.Table],
    clip_below: float | None = None,
    chosen: pa.Table | None = None,
    linted: Mapping[str, pa.Table] | None = None,
) -> Study:
    """The study of tables already in memory.

    Args:
        sweep: the tables of `SWEEP_TABLES`.
        clip_below: as for `run_study`.
        chosen: those rows of the scores of fine-tunings that are studied, for whoever studies a part of a table of
            scores; all of them by default. Lint and the gains over epochs look at all.
        linted: what lint looks at, where that is not `sweep`.
    """
    variants = trial_variants(*(sweep[name] for name in ("trials", "scores", "weight_change", "log_likelihood")))
    every = gain_table(sweep["scores"], variants)
    trials, scores, gains = sweep["trials"], sweep["scores"], every
    if chosen is not None:
        scores, gains = chosen, _of_scores(every, chosen)
        trials = trials.filter(pc.is_in(trials["trial"], value_set=pc.unique(scores["trial"])))
    similarity = similarity_table(gains)
    clusterings = {kind: cluster(correlation_matrix(similarity, kind)) for kind in KINDS}
    changes = weight_change_by_depth(sweep["weight_change"], variants)
    sketches = sweep.get("weight_sketches", TABLES["weight_sketches"].empty_table())
    updates = update_similarity(sketches, variants)
    placed = model_map(sweep["log_likelihood"], variants, clip_below)
    components, incomplete = pca_table(gains)
    skipped = {**_skipped(clusterings, placed), **incomplete, **not_comparable(gain_cells(gains))}
    skipped |= not_at_equal_epochs(gains, changes)
    checks = check_table(trials, scores, gains, skipped)
    found = {
        "gains": gains,
        "gain_matrix": gain_matrix(gains),
        "epoch_gains": epoch_gains_table(every),
        "similarity": similarity,
        "linkage": linkage_table(clusterings),
        "pca": components,
        "pairs": pairs_table(gains),
        "correlations": correlation_table(gains, sweep["data_properties"], changes),
        "layer_tests": layer_test_table(gains, changes),
        "matrix_comparisons": comparison_table(gains, similarity, placed.distances),
        "noise_ceilings": noise_ceiling_table(gains),
        "prediction": prediction_table(gains, sweep["data_properties"]),
        "weight_change_by_depth": changes,
        "layer_similarity": layer_similarity_table(changes),
        "update_similarity": updates,
        "update_similarity_means": update_similarity_means(updates),
        "intrinsic_dimension_by_depth": intrinsic_dimension_by_depth(sweep["intrinsic_dimension"], variants),
        "map": placed.points,
        "map_distances": placed.distances,
        "map_layouts": placed.layouts,
        "trajectories": placed.trajectories,
        "checks": checks,
        "lint": lint_table(sweep if linted is None else linted),
    }
    found["claims"] = claim_table(found)
    return Study({name: found[name] for name in STUDY_TABLES}, _summary(sweep, found, checks))


def _of_scores(every: pa.Table, scores: pa.Table) -> pa.Table:
    """The gains of some of the scores, with the variants and last epochs that they have among themselves."""
    place = ["trial", "epoch", "task", "metric"]
    chosen = set(zip(*(scores[name].to_pylist() for name in place), strict=True))
    kept = [key in chosen for key in zip(*(every[name].to_pylist() for name in place), strict=True)]
    bare = every.filter(pa.array(kept, pa.bool_())).drop_columns(["variant", "final"])
    return with_final(with_variants(bare, trial_variants(scores))).select(GAINS.names).cast(GAINS)


def _skipped(clusterings: dict[str, Clustering], placed: ModelMap) -> dict[str, str]:
    clusters = {
        f"{name} in the clustering by {kind.replace('_', ' ')}": why
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
