"""Claims about training data: what the base model thinks of it against what it gains from it."""

from __future__ import annotations

import numpy as np
from scipy import stats

from raysft.study.claims.evidence import Evidence, Row
from raysft.study.claims.verdict import (
    CANNOT_TELL,
    LEVEL,
    NOT_SUPPORTED,
    SUPPORTED,
    Number,
    Outcome,
    alone,
    beside_plain,
    cannot,
    correlated,
    counted,
    interval_text,
    p_text,
    pearson_p,
)

# Of these the first that a study has. NLL per token is the logarithm of perplexity, which a line fits better.
PERPLEXITY = tuple(
    f"{part}_{measure}" for part in ("response", "text") for measure in ("nll_per_token", "perplexity", "bits_per_byte")
)
LENGTH = ("response_tokens", "text_tokens", "response_words", "response_bytes")
_FEWEST_HELD_OUT = 5
_MATTERS = 0.1  # of |r|: by how much one predictor must be ahead of another


def perplexity_predicts(study: Evidence) -> Outcome:
    """Lower perplexity, larger gain."""
    row, reason = _row(study, PERPLEXITY)
    if row is None:
        return cannot(reason)
    if row["within"] is None:
        return cannot(f"{row['predictor']} against gain: {row['reason']}")
    verdict, why = correlated(row["within"], row["within_df"], _real(row["within_q"]), -1)
    low, high = _real(row.get("within_low")), _real(row.get("within_high"))
    said = (
        f"{row['predictor']} and mean gain, given model and dataset: r = "
        f"{row['within']:.2f}{interval_text(low, high)}, "
        f"{p_text(_real(row['within_q']), 'q')}, over {_size(row)}. "
        f"{beside_plain(row['pearson'], row['n'], -1, verdict)}"
        f"{_elsewhere(study, row['predictor'])}"
    )
    return Outcome(verdict, said, {**_numbers(row), "within_low": low, "within_high": high}, why)


def perplexity_beats_similarity(study: Evidence) -> Outcome:
    """Perplexity goes with gain more strongly than similarity of the data to the benchmarks does."""
    ours, reason = _row(study, PERPLEXITY)
    if ours is None:
        return cannot(reason)
    theirs, reason = _row(study, ("similarity",))
    if theirs is None:
        return cannot(reason)
    for row in (ours, theirs):
        if row["within"] is None or row["within_df"] < 2:
            return cannot(f"{row['predictor']} against gain: {row['reason'] or 'too few degrees of freedom'}")
    errors = [1 / np.sqrt(row["within_df"] - 1) for row in (ours, theirs)]
    sizes = -np.arctanh(_inside(ours["within"])), abs(np.arctanh(_inside(theirs["within"])))
    verdict, why, p = _ahead(*sizes, *errors)
    plain = [_real(row["pearson"]) for row in (ours, theirs)]
    said = (
        f"Given model and dataset, r with mean gain is {ours['within']:.2f} of {ours['predictor']} and "
        f"{theirs['within']:.2f} of similarity ({p_text(p)} that perplexity is ahead, for whatever correlation of the "
        f"two), over {_size(ours)}. By task, perplexity is ahead in {_tasks_ahead(study, ours['predictor'])}. "
        f"{_plainly(plain, verdict)}"
    )
    numbers: dict[str, Number] = {
        "within_perplexity": ours["within"],
        "within_similarity": theirs["within"],
        "p": p,
        "pearson_perplexity": plain[0],
        "pearson_similarity": plain[1],
        "n": ours["n"],
    }
    return Outcome(verdict, said, numbers, why)


def length_matters_less(study: Evidence) -> Outcome:
    """Length goes with gain less than perplexity does; length is of datasets, so plain r with two-way intervals."""
    ours, reason = _row(study, PERPLEXITY)
    if ours is None:
        return cannot(reason)
    theirs, reason = _row(study, LENGTH)
    if theirs is None:
        return cannot(reason)
    errors = []
    for row in (ours, theirs):
        low, high = _real(row.get("pearson_low")), _real(row.get("pearson_high"))
        if not np.isfinite(low + high):
            return cannot(f"{row['predictor']} against gain: no interval ({row.get('tests_reason') or row['reason']})")
        errors.append((np.arctanh(_inside(high)) - np.arctanh(_inside(low))) / (2 * stats.norm.ppf(1 - LEVEL / 2)))
    sizes = -np.arctanh(_inside(ours["pearson"])), abs(np.arctanh(_inside(theirs["pearson"])))
    verdict, why, p = _ahead(*sizes, *errors)
    plain = [_real(row["pearson"]) for row in (ours, theirs)]
    said = (
        f"r with mean gain is {plain[0]:.2f} of {ours['predictor']} and {plain[1]:.2f} of {theirs['predictor']}; with "
        f"models and datasets resampled {p_text(p)} that perplexity is ahead, over {_size(ours)}. "
        f"Length by itself: permutation {p_text(_real(theirs.get('permutation_q')), 'q')}. {_plainly(plain, verdict)}"
    )
    numbers: dict[str, Number] = {
        "pearson_perplexity": plain[0],
        "pearson_length": plain[1],
        "p": p,
        "length_permutation_q": _real(theirs.get("permutation_q")),
        "n": ours["n"],
    }
    return Outcome(verdict, said, numbers, why)


def perplexity_predicts_unseen(study: Evidence) -> Outcome:
    """Perplexity foretells gains of models that no trial has seen better than the mean of the other models does."""
    found = [
        row
        for row in study.rows("prediction", variant=study.variant, target="all")
        if row["form"] == "added" and row["split"].replace("-", "_") == "leave_one_model_out"
    ]
    row = next((row for name in PERPLEXITY for row in found if row["predictors"] == name), None)
    if row is None:
        return cannot("no held-out prediction by perplexity: the study has no perplexities of its datasets")
    if row["skill"] is None or row["skill_low"] is None:
        return cannot(f"prediction by {row['predictors']}: {row['reason'] or 'no interval'}")
    if row["groups"] < _FEWEST_HELD_OUT:
        return cannot(
            f"prediction of {counted(row['groups'], 'held-out model')}, {_FEWEST_HELD_OUT} needed for an interval"
        )
    verdict, why = NOT_SUPPORTED, None
    if row["skill_low"] > 0:
        verdict = SUPPORTED
    elif row["skill_high"] >= _MATTERS / 2:
        verdict, why = CANNOT_TELL, f"its interval holds 0 and more than {_MATTERS / 2:g}"
    said = (
        f"With each model held out in turn, {row['predictors']} added to the mean of the other models takes "
        f"{100 * row['skill']:.0f}% off its squared error{_percent(row)}: R2 {row['r2']:.2f} against "
        f"{row['baseline_r2']:.2f}, over {counted(row['n'], 'pair')} of {counted(row['groups'], 'model')}."
    )
    names = ("skill", "skill_low", "skill_high", "r2", "baseline_r2", "n")
    return Outcome(verdict, said, {name: row[name] for name in names}, why)


def _row(study: Evidence, predictors: tuple[str, ...]) -> tuple[Row | None, str]:
    """The main variant's row over all tasks of the first predictor that the study has, or why there is none."""
    if study.variant is None:
        return None, "the study has no gains"
    found = {row["predictor"]: row for row in study.rows("correlations", variant=study.variant, scope="all")}
    row = next((found[name] for name in predictors if name in found and found[name]["pearson"] is not None), None)
    if row is not None:
        return row, ""
    failed = next((found[name]["reason"] for name in predictors if name in found), None)
    return None, f"{predictors[0]} against gain: {failed or 'not measured in this study (no data_properties)'}"


def _ahead(ours: float, theirs: float, our_error: float, their_error: float) -> tuple[str, str | None, float]:
    """Verdict, reason and p of `ours` > `theirs`, both Fisher's z of sizes of correlations with gain.

    How the predictors go together is not in the tables. The error of a difference is at most the sum of the two
    errors, which is taken.
    """
    difference, error = ours - theirs, our_error + their_error
    p = float(stats.norm.sf(difference / error))
    if p <= LEVEL / 2:
        return SUPPORTED, None, p
    if difference + stats.norm.ppf(1 - LEVEL) * error < _MATTERS:
        return NOT_SUPPORTED, None, p
    least = float(np.tanh((stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(0.8)) * error))
    return CANNOT_TELL, f"a difference below about {least:.2f} in |r| cannot be found in a study like this one", p


def _tasks_ahead(study: Evidence, predictor: str) -> str:
    rows = study.rows("correlations", variant=study.variant, scope="task")
    of = {(row["predictor"], row["task"]): row["within"] for row in rows if row["within"] is not None}
    both = [task for name, task in of if name == predictor and ("similarity", task) in of]
    ahead = sum(-of[predictor, task] > abs(of["similarity", task]) for task in both)
    return f"{ahead} of {len(both)}"


def _elsewhere(study: Evidence, predictor: str) -> str:
    """The same coefficient in the other variants."""
    rows = [row for name in study.others for row in study.rows("correlations", variant=name, scope="all")]
    found = [
        f"{row['variant']} {row['within']:.2f}"
        for row in rows
        if row["predictor"] == predictor and row["within"] is not None
    ]
    return f" Other variants: {', '.join(found)}." if found else ""


def _plainly(plain: list[float], verdict: str) -> str:
    return f"The larger plain coefficient {alone(-plain[0] > abs(plain[1]), verdict)}."


def _numbers(row: Row) -> dict[str, Number]:
    plain = {"plain_p": pearson_p(_real(row["pearson"]), row["n"])}
    names = ("n", "models", "datasets", "within", "within_df", "within_p", "within_q", "pearson", "permutation_p")
    return {**{name: row.get(name) for name in names}, **plain}


def _size(row: Row) -> str:
    return (
        f"{counted(row['models'], 'model')} x {counted(row['datasets'], 'dataset')}, n = {row['n']} ({row['variant']})"
    )


def _percent(row: Row) -> str:
    return f" (95% interval {100 * row['skill_low']:.0f} to {100 * row['skill_high']:.0f}%)"


def _real(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _inside(r: float) -> float:
    return float(np.clip(r, -0.999999, 0.999999))
