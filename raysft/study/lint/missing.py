"""Missing cells and what they have in common: a mean over what is left is a mean over other models or datasets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

import numpy as np

from raysft.study.lint.findings import Finding, listed, share
from raysft.study.lint.sheet import FIELDS, Sheet

SPARSE = 0.2  # share of a crossing that may be absent before it is taken for a design that does not cross

Subject = Mapping[str, object]


def missing_findings(sheet: Sheet) -> Iterator[Finding]:
    """Scores that are absent from rows that have others, then trials absent from a crossing that is else complete."""
    yield from _missing_scores(sheet)
    yield from _missing_bases(sheet)
    yield from _missing_trials(sheet)


def _missing_scores(sheet: Sheet) -> Iterator[Finding]:
    absent = ~np.isfinite(sheet.values)
    columns_of: dict[bytes, list[int]] = defaultdict(list)
    for column in range(absent.shape[1]):
        if absent[:, column].any() and not absent[:, column].all():
            columns_of[absent[:, column].tobytes()].append(column)
    for columns in columns_of.values():
        rows = absent[:, columns[0]]
        names = ", ".join(sheet.columns[column] for column in columns)
        if rows.sum() > rows.size / 2:
            shared = pattern(_chosen(sheet, ~rows), sheet.subjects)
            detail = f"present in only {share(int((~rows).sum()), rows.size)} rows{shared}"
        else:
            detail = (
                f"missing from {share(int(rows.sum()), rows.size)} rows{pattern(_chosen(sheet, rows), sheet.subjects)}"
            )
        yield Finding("missing_cells", "warning", names, detail)


def _chosen(sheet: Sheet, rows: Iterable[bool]) -> list[Subject]:
    return [subject for subject, chosen in zip(sheet.subjects, rows, strict=True) if chosen]


def pattern(chosen: Sequence[Subject], of: Sequence[Subject]) -> str:
    """`, all of model M, method lora`: the fields whose one value all of `chosen` share, where others differ."""
    shared = {
        name: chosen[0][name]
        for name in FIELDS
        if len({subject[name] for subject in chosen}) == 1 and len({subject[name] for subject in of}) > 1
    }
    if not shared:
        return ""
    alike = sum(all(subject[name] == value for name, value in shared.items()) for subject in of)
    words = ", ".join(f"{name} {'none' if value is None else value}" for name, value in shared.items())
    return f", all of {words}" + (f" (of which there are {alike})" if alike > len(chosen) else "")


def _missing_bases(sheet: Sheet) -> Iterator[Finding]:
    based = {subject["model"] for subject in sheet.subjects if subject["trial"] is None}
    tuned = Counter(subject["model"] for subject in sheet.subjects if subject["trial"] is not None)
    for model, rows in tuned.items():
        if model not in based:
            yield Finding(
                "missing_cells", "error", str(model), f"no scores of the base model: {rows} rows without a gain"
            )


def _missing_trials(sheet: Sheet) -> Iterator[Finding]:
    by_variant: dict[tuple[object, ...], list[Subject]] = defaultdict(list)
    for subject in sheet.subjects:
        if subject["trial"] is not None:
            by_variant[tuple(subject[name] for name in ("method", "size", "schedule"))].append(subject)
    for variant, subjects in by_variant.items():
        axes = [sorted({str(subject[name]) for subject in subjects}) for name in ("model", "dataset", "epoch")]
        there = {tuple(str(subject[name]) for name in ("model", "dataset", "epoch")) for subject in subjects}
        absent = [cell for cell in product(*axes) if cell not in there]
        crossed = len(there) + len(absent)
        if absent and len(absent) <= SPARSE * crossed:
            name = ", ".join(str(word) for word in variant if word is not None)
            detail = f"{share(len(absent), crossed)} fine-tunings of the crossing are not there: {_cells(absent)}"
            yield Finding("missing_cells", "warning", name or "fine-tunings", detail)


def _cells(absent: list[tuple[str, ...]]) -> str:
    """Cells as `model / dataset`, with the epochs that are absent where not all share one."""
    epochs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for model, dataset, epoch in absent:
        epochs[model, dataset].append(epoch)
    return listed(
        f"{model} / {dataset} (epoch {' '.join(sorted(at, key=_number))})" for (model, dataset), at in epochs.items()
    )


def _number(text: str) -> float:
    return float(text) if text.isdigit() else np.inf
