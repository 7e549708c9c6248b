"""The claim about languages: what fine-tuning does to a benchmark it does to the benchmark in another language."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysft.study.association import Association, associate, within
from raysft.study.claims.evidence import Evidence
from raysft.study.claims.verdict import (
    CANNOT_TELL,
    LEVEL,
    MATTERS_R,
    NOT_SUPPORTED,
    SUPPORTED,
    Number,
    Outcome,
    alone,
    cannot,
    interval_text,
    p_text,
    pearson_p,
)
from raysft.study.languages import ENGLISH, language_families
from raysft.study.statistics.bootstrap import too_few_levels, two_way_interval
from raysft.study.statistics.multiplicity import q_values
from raysft.study.statistics.permutation import permutation_test

_MMLU = "mmlu"  # the word that all its editions have in their names


def crosses_languages(study: Evidence) -> Outcome:
    """What training in English does to a benchmark in English it does to the benchmark in other languages too.

    What a dataset does to every model alike is part of that, so no effects are taken out: whole models and whole
    datasets are permuted and resampled instead.
    """
    found = [_against(study, english, task) for english, task in _translations(study.tasks)]
    if not found:
        return cannot("no benchmark is there both in English and in another language (MMLU and its translations)")
    usable = [one for one in found if one.reason is None]
    if not usable:
        return cannot(f"{found[0].english} against {found[0].task}: {found[0].reason}")
    q = q_values(np.array([one.p for one in usable]))
    verdicts = [_verdict(one, float(value)) for one, value in zip(usable, q, strict=True)]
    verdict = SUPPORTED if set(verdicts) == {SUPPORTED} else NOT_SUPPORTED if NOT_SUPPORTED in verdicts else CANNOT_TELL
    open_ones = [one.task for one, each in zip(usable, verdicts, strict=True) if each == CANNOT_TELL]
    why = f"an r of {MATTERS_R} is neither shown nor excluded on {', '.join(open_ones)}"
    parts = [
        f"{one.english} against {one.task}: r = {one.plain.pearson:.2f}{interval_text(one.low, one.high)}, "
        f"{p_text(float(value), 'q')}, n = {one.plain.n}; given model and dataset {one.within:.2f}. "
        f"{_beside(one, each)}"
        for one, value, each in zip(usable, q, verdicts, strict=True)
    ]
    numbers: dict[str, Number] = {}
    for one, value in zip(usable, q, strict=True):
        of = {"pearson": one.plain.pearson, "low": one.low, "high": one.high, "q": float(value), "within": one.within}
        numbers |= {f"{one.task}: {name}": number for name, number in of.items()}
    said = f"Gains on {' '.join(parts)} ({study.variant})"
    return Outcome(verdict, said, numbers, why if verdict == CANNOT_TELL else None)


def _translations(tasks: list[str]) -> list[tuple[str, str]]:
    """MMLU in English with each of its translations, at equal shots, by the names that the report's figure goes by."""
    families = language_families(tasks)
    return [
        (of[ENGLISH], task)
        for benchmark, of in families.items()
        if _MMLU in benchmark.split()
        for language, task in of.items()
        if language != ENGLISH
    ]


@dataclass(frozen=True)
class _Against:
    """Gains on a foreign benchmark against the English one: plain coefficients, their permuted p and intervals."""

    english: str
    task: str
    plain: Association
    within: float = np.nan
    p: float = np.nan
    low: float = np.nan
    high: float = np.nan
    most: float = np.nan  # the end of the one-sided interval
    reason: str | None = None


def _against(study: Evidence, english: str, task: str) -> _Against:
    here, there = study.of_task(english), study.of_task(task)
    pairs = sorted(set(here) & set(there))
    x, y = (np.array([gains[pair] for pair in pairs]) for gains in (here, there))
    groups = [[model for model, _ in pairs], [dataset for _, dataset in pairs]]
    plain, test = associate(x, y), permutation_test(x, y, groups, fixed=False)
    reason = plain.reason or test.reason or too_few_levels([len(set(labels)) for labels in groups])
    if reason is not None:
        return _Against(english, task, plain, reason=reason)
    both, one_sided = (two_way_interval(x, y, groups, fixed=False, level=level) for level in (1 - LEVEL, 1 - 2 * LEVEL))
    fixed = within(x, y, groups)
    return _Against(english, task, plain, fixed.r, float(test.p[0]), both.low, both.high, one_sided.high, both.reason)


def _verdict(one: _Against, q: float) -> str:
    if q <= LEVEL and one.plain.pearson > 0:
        return SUPPORTED
    return NOT_SUPPORTED if one.most < MATTERS_R else CANNOT_TELL


def _beside(one: _Against, verdict: str) -> str:
    p = pearson_p(one.plain.pearson, one.plain.n)
    return f"Points taken as independent ({p_text(p)}) {alone(p <= LEVEL and one.plain.pearson > 0, verdict)}."
