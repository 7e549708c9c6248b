"""Correlations with gain as the report says them: with the tests that know of models and datasets beside each.

Tables without rows stay out of the page: the figures above them say why there is nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysft.report.findings import Findings
from raysft.report.listing import Listing, number
from raysft.study.correlate import LAYERWISE
from raysft.study.tables import reals

# The page begins with the widest choices of tasks.
_SCOPES = ("all", "matching", "other", "cells", "task")
# What stands on the page where there is a value of it, in this order; the other columns are in the CSV.
_SHOWN = (
    "predictor",
    "variant",
    "scope",
    "task",
    "n",
    "pearson",
    "pearson_low",
    "pearson_high",
    "permutation_p",
    "permutation_q",
    "spearman",
    "within",
    "within_p",
    "within_q",
    "mixed_slope",
    "mixed_p",
    "mixed_q",
)
_MOST_REASONS = 4
_MOST_ROWS = 200  # wide ones: of every choice of tasks but single ones, where there are some 25 properties
_ABOUT = (
    "Plain: Pearson's r with its two-way bootstrap interval and the p of permuting whole models and whole datasets, "
    "and Spearman's. Within: given model and dataset. Mixed: a slope with random effects of both. "
)

Row = dict[str, Any]


def correlations(findings: Findings) -> Listing:
    """Every property of the data against every choice of tasks: the widest first, in each the clearest first."""
    table = findings.study["correlations"]
    table = table.filter(pc.not_equal(table["predictor"], LAYERWISE))
    scope = np.array([_SCOPES.index(name) for name in table["scope"].to_pylist()])
    order = np.lexsort((np.nan_to_num(reals(table, "permutation_p"), nan=2.0), scope))
    about = _ABOUT + "Each q is over all properties and tasks of one variant and scope."
    return _listing("correlations", "What goes with gain, tested", about, table.take(pa.array(order)))


def cross_lingual_tests(findings: Findings) -> Listing:
    """Gains in English against gains in another language: a row for each pair of tasks and variant."""
    about = _ABOUT + "Each q is over the pairs of tasks of one variant."
    table = findings.transfer_tests
    return _listing("cross_lingual_tests", "From English to other languages, tested", about, table)


def _listing(name: str, title: str, about: str, table: pa.Table) -> Listing:
    shown = [column for column in _SHOWN if table[column].null_count < table.num_rows]
    hidden = tuple(column for column in table.column_names if column not in shown)
    about += _not_computed(table, "reason", "tests_reason")
    return Listing(name, title, "", table.select([*shown, *hidden]), about, hidden=hidden, most=_MOST_ROWS)


def _not_computed(table: pa.Table, *columns: str) -> str:
    """Why numbers are missing, once for all rows."""
    reasons = Counter(reason for column in columns for reason in table[column].to_pylist() if reason)
    said = "; ".join(reason for reason, _ in reasons.most_common(_MOST_REASONS))
    return f" Not computed everywhere: {said}." if said else ""


def strongest_layers(findings: Findings) -> Listing:
    """For every choice of tasks the depth whose weight change goes with gain most, tested as the strongest of all."""
    table = findings.study["layer_tests"]
    strongest = table.filter(pc.fill_null(table["strongest"], False)).drop_columns(["strongest"])
    about = (
        "p max is the p of the largest |r| of all depths, whole models and whole datasets permuted; p is that of this "
        "depth as if it had been chosen before. Chosen: how often resampled models and datasets choose it."
    )
    about += _not_computed(strongest, "reason")
    return Listing("strongest_layers", "The strongest layers, tested", "", strongest, about, hidden=("reason",))


def coefficients(row: Row) -> str:
    """One row of `correlations` in words: plain, fixed-effects and mixed-effects numbers, each with its p and q."""
    if row["pearson"] is None:
        return f"undefined ({row['reason']})."
    parts = [_plain(row), _fixed(row)]
    if row["mixed_slope"] is not None and row["mixed_p"] is not None:
        error = f"standard error {number(row['mixed_stderr'])}, {_tested(row, 'mixed')}"
        parts.append(f"mixed-effects slope {number(row['mixed_slope'])} ({error})")
    said = "; ".join(part for part in parts if part)
    reason = row["tests_reason"]
    return f"{said}. {reason[0].upper()}{reason[1:]}." if reason else f"{said}."


def _plain(row: Row) -> str:
    low, high = row["pearson_low"], row["pearson_high"]
    interval = "" if low is None else f" [{low:+.2f}, {high:+.2f}]"
    permuted = _tested(row, "permutation")
    tested = f", permutation {permuted}" if permuted else ""
    return f"plain r = {row['pearson']:+.2f}{interval} (Spearman {row['spearman']:+.2f}, n = {row['n']}){tested}"


def _fixed(row: Row) -> str:
    if row["within"] is None:
        return f"with fixed effects undefined ({row['reason']})"
    tested = _tested(row, "within") or "not tested"
    return f"with fixed effects r = {row['within']:+.2f} ({tested}, {row['within_df']} df)"


def _tested(row: Row, of: str) -> str:
    """`p = 0.031, q = 0.120`, or nothing where there was no test."""
    if row[f"{of}_p"] is None:
        return ""
    q = row[f"{of}_q"]
    return f"p = {number(row[f'{of}_p'])}" + ("" if q is None else f", q = {number(q)}")
