"""The claim about languages: what fine-tuning does to a benchmark it does to the benchmark in another language."""

from __future__ import annotations

import re

import numpy as np

from raysft.study.association import associate, within
from raysft.study.claims.evidence import Evidence
from raysft.study.claims.verdict import (
    CANNOT_TELL,
    NOT_SUPPORTED,
    SUPPORTED,
    Number,
    Outcome,
    beside_plain,
    cannot,
    correlated,
    p_text,
)
from raysft.study.statistics.multiplicity import q_values

# A benchmark in English, and names that the same one has in another language.
ENGLISH = re.compile(r"^mmlu(?![a-z])(?!.*_(?:zh|ja|jp|ko|de|fr|es)\b)", re.IGNORECASE)
FOREIGN = re.compile(
    r"^(?:c|j|k)mmlu|^global_mmlu.*_(?!en\b)[a-z]{2}\b|^mmlu[-_](?:zh|ja|jp|ko|de|fr|es)\b", re.IGNORECASE
)


def crosses_languages(study: Evidence) -> Outcome:
    """What training in English does to a benchmark in English it does to the benchmark in other languages too."""
    english = [task for task in study.tasks if ENGLISH.search(task)]
    foreign = [task for task in study.tasks if FOREIGN.search(task)]
    if not english or not foreign:
        return cannot("no benchmark is there both in English and in another language (MMLU and its translations)")
    here = study.of_task(english[0])
    tests = []
    for task in foreign:
        there = study.of_task(task)
        pairs = sorted(set(here) & set(there))
        x, y = (np.array([gains[pair] for pair in pairs]) for gains in (here, there))
        groups = [[model for model, _ in pairs], [dataset for _, dataset in pairs]]
        tests.append((task, associate(x, y), within(x, y, groups)))
    usable = [(task, plain, fixed) for task, plain, fixed in tests if fixed.reason is None]
    if not usable:
        return cannot(f"{english[0]} against {foreign[0]}: {tests[0][2].reason}")
    q = q_values(np.array([fixed.p for _, _, fixed in usable]))
    each = [correlated(fixed.r, fixed.df, value, 1) for (_, _, fixed), value in zip(usable, q, strict=True)]
    verdicts = [verdict for verdict, _ in each]
    verdict = SUPPORTED if set(verdicts) == {SUPPORTED} else NOT_SUPPORTED if NOT_SUPPORTED in verdicts else CANNOT_TELL
    why = next((reason for _, reason in each if reason), None) if verdict == CANNOT_TELL else None
    parts = [
        f"{task}: r = {fixed.r:.2f}, {p_text(value, 'q')}, n = {plain.n}. "
        f"{beside_plain(plain.pearson, plain.n, 1, own)}"
        for (task, plain, fixed), value, own in zip(usable, q, verdicts, strict=True)
    ]
    said = f"Gains on {english[0]} and, given model and dataset, on {' '.join(parts)} ({study.variant})"
    numbers: dict[str, Number] = {}
    for (task, plain, fixed), value in zip(usable, q, strict=True):
        numbers |= {f"{task}: within": fixed.r, f"{task}: q": float(value), f"{task}: pearson": plain.pearson}
    return Outcome(verdict, said, numbers, why)
