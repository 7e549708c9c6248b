"""All checks on one set of tables. A check whose table is not there says so, rather than finding nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import pyarrow as pa

from raysft.store.schema import IDENTITY
from raysft.study.lint.duplicates import duplicate_findings
from raysft.study.lint.findings import SEVERITIES, Finding
from raysft.study.lint.missing import missing_findings
from raysft.study.lint.repeated import repeated_findings
from raysft.study.lint.runs import (
    contamination_findings,
    diverged_findings,
    precision_findings,
    seed_findings,
    version_findings,
)
from raysft.study.lint.scores import chance_findings, constant_findings, format_findings, scale_findings
from raysft.study.lint.sheet import score_sheet
from raysft.study.schema import LINT
from raysft.study.tables import from_rows

# check -> table it needs, column that must not be empty there, function
_RECORDS: dict[str, tuple[str, str, Callable[[pa.Table], Iterable[Finding]]]] = {
    "diverged_trial": ("trials", "state", diverged_findings),
    "low_precision_delta": ("weight_change", "level", precision_findings),
    "contaminated_pair": ("contamination", "overlap", contamination_findings),
    "single_seed": ("trials", "trial", seed_findings),
    "changed_version": ("costs", "versions", version_findings),
    "at_or_below_chance": ("scores", "chance", chance_findings),
}

_READ = {"scores", *(name for name, _, _ in _RECORDS.values())}
_ORDER = ("task", "metric", "tensor", "stage", "key")


def lint_table(sweep: Mapping[str, pa.Table]) -> pa.Table:
    """Every finding, of schema `LINT`, in the order of `lint_findings`."""
    rows = [{name: getattr(finding, name) for name in LINT.names} for finding in lint_findings(sweep)]
    return from_rows(rows, LINT)


def lint_findings(sweep: Mapping[str, pa.Table]) -> list[Finding]:
    """Every finding: errors first, then warnings, then notes, in the order of the checks.

    Args:
        sweep: tables by name with the schemas of `raysft.store.schema.TABLES`; `scores` is needed, the others may be
            absent or empty, which is then a note.
    """
    tables = {name: _sorted(table) for name, table in sweep.items() if name in _READ}
    found = [*_score_findings(tables["scores"]), *_record_findings(tables)]
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))  # stable: within a severity as they were found
    return found


def _sorted(table: pa.Table) -> pa.Table:
    """Rows in an order that does not depend on how they came, so that equal tables give equal findings."""
    keys = [name for name in (*IDENTITY.names, *_ORDER) if name in table.column_names]
    return table.sort_by([(key, "ascending") for key in keys])


def _score_findings(scores: pa.Table) -> Iterator[Finding]:
    if not scores.num_rows:
        yield Finding("scores", "error", "scores", "the table is empty: there is nothing to check")
        return
    sheet = score_sheet(scores)
    for check in (duplicate_findings, scale_findings, constant_findings, missing_findings):
        yield from check(sheet)
    yield from format_findings(scores)
    yield from repeated_findings(scores)


def _record_findings(sweep: Mapping[str, pa.Table]) -> Iterator[Finding]:
    for check, (name, column, findings) in _RECORDS.items():
        table = sweep.get(name)
        if table is None or column not in table.column_names or table[column].null_count == table.num_rows:
            yield Finding(check, "note", name, f"not checked: no {column} in the table {name}")
        else:
            yield from findings(table)
