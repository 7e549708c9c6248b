"""The paragraph of the methods on statistics: each test is named where the study has a number of it, and only there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from raysft.report.findings import Findings
from raysft.study.checks import CLEAR
from raysft.study.statistics.bootstrap import RESAMPLES
from raysft.study.statistics.mantel import PERMUTATIONS as MANTEL_PERMUTATIONS
from raysft.study.statistics.permutation import PERMUTATIONS
from raysft.study.tables import reals

_TESTS = (("correlations", ("permutation_q", "within_q", "mixed_q")), ("matrix_comparisons", ("q",)), ("pairs", ("q",)))


def statistics(findings: Findings) -> Iterator[str]:
    """One sentence or two for each thing that was computed."""
    yield from _gains(findings)
    yield from _correlations(findings)
    if _any(findings.study["layer_tests"], "p_max"):
        yield "The strongest of all depths is tested against the maximum over depths of every permutation of whole"
        yield "models and whole datasets (Westfall and Young)."
    if _any(findings.study["matrix_comparisons"], "p"):
        yield f"Similarity matrices are compared by Mantel's test (up to {MANTEL_PERMUTATIONS:,} permutations)."
    if _any(findings.study["pairs"], "low"):
        yield "Paired differences have errors clustered by model and by dataset."
    tested = any(_any(findings.study[table], *columns) for table, columns in _TESTS)
    if tested or _any(findings.transfer_tests, "permutation_q"):
        yield "q is Benjamini and Hochberg's over the family tested."
    if _any(findings.study["prediction"], "r2"):
        yield "Predictions are of held-out models and held-out datasets, beside the mean of the others."
    if findings.study["linkage"].num_rows:
        yield "Clusters are average linkage on 1 - r."


def _gains(findings: Findings) -> Iterator[str]:
    final = findings.study["gain_matrix"]
    if not final.num_rows:
        yield "No gain could be computed."
        return
    yield "A gain is a checkpoint's score less its base model's at the last measured epoch"
    yield f"({int(np.nansum(reals(final, 'cells'))):,} gains). What is averaged over tasks or correlated is scaled by"
    yield "1 or 100 where scores are shares of items, else by the smallest power of ten that holds every score of the"
    yield "task."
    if _any(final, "z"):
        yield f"Stars are |z| > {CLEAR:g}."


def _correlations(findings: Findings) -> Iterator[str]:
    """What stands beside a plain correlation, of data with gain or of one language with another."""
    tables = [findings.study["correlations"], findings.transfer_tests]

    def found(column: str) -> bool:
        return any(_any(table, column) for table in tables)

    if not found("pearson"):
        return
    yield "Correlations are given plain (Pearson, Spearman)."
    if found("within"):
        yield "Beside them are those with fixed effects of model and dataset."
    if found("mixed_slope"):
        yield "Slopes are from a mixed-effects model with random intercepts of both (REML)."
    if found("pearson_low") or found("within_low"):
        yield f"Their intervals resample whole models and whole datasets ({RESAMPLES:,} draws)."
    if found("permutation_p"):
        yield f"Their permutation tests permute whole models and datasets (up to {PERMUTATIONS:,} times)."


def _any(table: pa.Table, *columns: str) -> bool:
    """Whether one of the columns has a number."""
    return any(bool(np.isfinite(reals(table, column)).any()) for column in columns)
