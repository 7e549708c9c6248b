"""Counts that say how far a study can be trusted and what it found: coverage, gains where expected, gains elsewhere."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import norm

from raysft.study.gains import final_gains
from raysft.study.schema import CHECKS
from raysft.study.tables import from_rows, reals, texts

CLEAR = 3.0  # standard errors

Row = dict[str, object]


def check_table(trials: pa.Table, scores: pa.Table, gains: pa.Table, skipped: dict[str, str]) -> pa.Table:
    """Every count, of schema `CHECKS`, then one row for everything that the study had to leave out."""
    rows = [*_trials(trials), *_coverage(trials, scores, gains), *_outcomes(final_gains(gains))]
    rows += [{"check": "left_out", "note": f"{what}: {why}"} for what, why in skipped.items()]
    return from_rows(rows, CHECKS)


def _trials(trials: pa.Table) -> list[Row]:
    tuned = trials.filter(pc.is_valid(trials["trial"]))
    states = Counter(texts(tuned, "state"))
    if set(states) == {""}:  # of scores that someone else measured nothing is known but the scores
        return []
    meaning = {
        "done": "fine-tunings whose every stage is there",
        "diverged": "fine-tunings whose loss went to infinity or was not a number",
        "failed": "fine-tunings of which a stage failed",
        "missing": "fine-tunings not run yet",
    }
    return [_count(f"trials_{state}", states[state], tuned.num_rows, note) for state, note in meaning.items()]


def _coverage(trials: pa.Table, scores: pa.Table, gains: pa.Table) -> list[Row]:
    planned = pc.count_distinct(trials["trial"]).as_py()
    tasks = len(set(texts(scores, "task")))
    final = final_gains(gains)
    tuned = pc.and_kleene(pc.is_valid(scores["trial"]), pc.greater(scores["epoch"], 0))
    checkpoints = scores.filter(tuned).num_rows
    early = pc.sum(pc.and_(pc.less(final["epoch"], final["epochs"]), pc.is_valid(final["epochs"]))).as_py() or 0
    return [
        _count("cells_measured", final.num_rows, planned * tasks, "final gains out of trials x tasks"),
        _count("scores_unused", checkpoints - gains.num_rows, checkpoints, "no base score, or not finite"),
        _count("cells_before_last_epoch", early, final.num_rows, "last measured before the trial's planned last epoch"),
    ]


def _outcomes(final: pa.Table) -> list[Row]:
    z = reals(final, "z")
    matching = np.asarray(final["matching"].to_numpy(), dtype=bool)
    known = np.isfinite(z)
    here, there = int((known & matching).sum()), int((known & ~matching).sum())
    chance = 2 * norm.sf(CLEAR) * (here + there)
    trials = np.asarray(texts(final, "trial"))
    tested, gained = set(trials[known & matching]), set(trials[known & matching & (z > CLEAR)])
    return [
        _count("own_skill_gains", len(gained), len(tested), "fine-tunings with z > 3 on some task of their own skill"),
        _count("matching_gains", int((z[matching] > CLEAR).sum()), here, "task of the dataset's own skill, z > 3"),
        _count("matching_losses", int((z[matching] < -CLEAR).sum()), here, "task of the dataset's own skill, z < -3"),
        _count("synergies", int((z[~matching] > CLEAR).sum()), there, "task of another skill, z > 3"),
        _count("losses", int((z[~matching] < -CLEAR).sum()), there, "task of another skill, z < -3"),
        _count("expected_by_chance", chance, here + there, "cells with |z| > 3 if nothing had changed, at most"),
        _count("cells_without_z", int((~known).sum()), len(z), "final gains without a standard error"),
    ]


def _count(check: str, value: float, of: float, note: str) -> Row:
    return {"check": check, "value": float(value), "of": float(of), "note": note}
