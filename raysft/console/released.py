"""`raysft study --released`: what was read and chosen, what is wrong with it, and where the tables are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from raysft.study.released import Choice, ReleasedStudy, study_released
from raysft.study.released.reading import ReleasedError

_SHOWN = 3  # findings of one check


def study_and_print(
    console: Console, csv: Path, out: Path | None, axes: Mapping[str, str | None], columns: Sequence[str]
) -> None:
    """Study `csv` into `out`; `axes` are fields of `Choice` as names by comma, `columns` are `ROLE=NAME`.

    Raises:
        ReleasedError: no `out`, a file that cannot be read, or a choice that it does not have.
    """
    if out is None:
        raise ReleasedError("--released: a folder for the study is wanted (--out DIR)")
    choice = Choice(**{axis: _names(axis, text) for axis, text in axes.items()})
    study = study_released(csv, out, choice, dict(_role(column) for column in columns))
    for line in lines(study):
        console.print(line)
    console.print(f"Study: {out}")


def lines(study: ReleasedStudy) -> Iterator[str]:
    """What a person should know of the study before looking at its tables."""
    read = study.summary["read"]
    yield f"Read: {read['base_models']} base models, {read['trials']} fine-tunings, {read['scores']:,} scores"
    yield f"Columns: {', '.join(f'{role} = {name}' for role, name in read['columns'].items())}"
    yield from read["not_read"]
    for axis, chosen in study.summary["chosen"].items():
        yield f"{axis.capitalize()}: {chosen}"
    yield f"Tables: {', '.join(f'{name} {rows:,}' for name, rows in study.summary['study_rows'].items() if rows)}"
    yield from (f"Left out: {line}" for line in study.summary["left_out"])
    yield from (f"Claim {row['verdict']}: {row['claim']}" for row in study.tables["claims"].to_pylist())
    yield from _lint(study)


def _lint(study: ReleasedStudy) -> Iterator[str]:
    findings = study.tables["lint"].to_pylist()
    counts = Counter((row["severity"], row["check"]) for row in findings)
    shown: Counter[tuple[str, str]] = Counter()
    for row in findings:
        place = (row["severity"], row["check"])
        shown[place] += 1
        if shown[place] <= _SHOWN:
            yield f"{row['severity']}: {row['check']}: {row['subject']}: {row['detail']}"
        elif shown[place] == counts[place]:
            yield f"{row['severity']}: {row['check']}: {counts[place] - _SHOWN} more in the table lint"


def _names(axis: str, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ReleasedError(f"--{axis}: no name in {text!r}")
    return names


def _role(column: str) -> tuple[str, str]:
    role, equals, name = column.partition("=")
    if not equals or not role or not name:
        raise ReleasedError(f"--column {column}: ROLE=NAME is wanted, such as model=checkpoint")
    return role, name
