"""Claims about training: LoRA against full fine-tuning, few rows against many, more epochs."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
from scipy import stats

from raysft.study.claims.evidence import Evidence, Row, is_full, is_lora
from raysft.study.claims.verdict import (
    CANNOT_TELL,
    FEWEST_MODELS,
    LEVEL,
    MATTERS_GAIN,
    NOT_SUPPORTED,
    SUPPORTED,
    Estimate,
    Number,
    Outcome,
    cannot,
    counted,
    interval_text,
    larger_than_zero,
    p_text,
)
from raysft.study.statistics.multiplicity import q_values
from raysft.study.statistics.paired import Paired, paired

MATHS = re.compile(r"math|gsm|arithmetic", re.IGNORECASE)
_ALIKE = 0.5  # r of two similarity matrices
_LISTED = 4  # names in a sentence
_MANY_TIMES = 5  # rows: what counts as much more data


def lora_gains_as_much(study: Evidence) -> Outcome:
    """LoRA gains what full fine-tuning gains, on every task, within two points of a hundred."""
    rows = _full_minus_lora(study)
    tested = [row for row in rows if row["p"] is not None]
    if not tested:
        return cannot("no pairs of a full and a LoRA fine-tuning that can be tested")
    inside = [row for row in tested if max(-row["low"], row["high"]) < MATTERS_GAIN]
    beyond = q_values(np.array([_beyond_margin(row) for row in tested]))
    apart = [row for row, q in zip(tested, beyond, strict=True) if q <= LEVEL]
    mean = float(np.mean([row["mean_difference"] for row in tested]))
    plain = [row for row in tested if row["t_p"] is not None and row["t_p"] <= LEVEL]
    said = (
        f"Full minus LoRA, as shares of each scale, is {mean:.3f} on average of {counted(len(tested), 'task')}; within "
        f"{MATTERS_GAIN:g} for certain on {len(inside)}, beyond it at q of at most {LEVEL:g} on {len(apart)}"
        f"{_named(apart)}; n = {max(row['n'] for row in tested)} pairs a task. Paired t tests that take pairs as "
        f"independent find a difference on {len(plain)}."
    )
    numbers: dict[str, Number] = {
        "tasks": len(tested),
        "within_margin": len(inside),
        "beyond_margin": len(apart),
        "mean_difference": mean,
        "plain": len(plain),
    }
    if len(inside) == len(tested):
        return Outcome(SUPPORTED, said, numbers)
    if apart:
        return Outcome(NOT_SUPPORTED, said, numbers)
    wide = max(tested, key=lambda row: max(-row["low"], row["high"]))
    end = max(-wide["low"], wide["high"])
    why = f"intervals are too wide: a difference of {end:.2g} on {wide['task']} is not excluded"
    return Outcome(CANNOT_TELL, said, numbers, why)


def full_ahead_on_maths(study: Evidence) -> Outcome:
    """Full fine-tuning is ahead of LoRA on mathematics."""
    rows = [row for row in _full_minus_lora(study) if MATHS.search(row["task"]) and row["p"] is not None]
    if not rows:
        return cannot("no pairs of a full and a LoRA fine-tuning on a benchmark of mathematics that can be tested")
    ahead = [row for row in rows if row["q"] <= LEVEL and row["mean_difference"] > 0]
    behind = [row for row in rows if row["high"] < MATTERS_GAIN]
    each = [
        f"{row['task']} {row['mean_difference']:.3f}{interval_text(row['low'], row['high'], 3)}, "
        f"{p_text(row['q'], 'q')}, plain {p_text(np.nan if row['t_p'] is None else row['t_p'])}"
        for row in rows
    ]
    pairs = max(row["n"] for row in rows)
    plain = sum(row["t_p"] is not None and row["t_p"] <= LEVEL and row["mean_difference"] > 0 for row in rows)
    said = (
        f"Full minus LoRA, as a share of the scale: {'; '.join(each)}; n = {pairs} pairs a task. Paired t tests alone "
        f"would have put it ahead on {plain} of {counted(len(rows), 'task')}."
    )
    numbers: dict[str, Number] = {
        f"{row['task']}: {name}": row[name] for row in rows for name in ("mean_difference", "q")
    }
    if len(ahead) == len(rows):
        return Outcome(SUPPORTED, said, numbers)
    if behind:
        return Outcome(NOT_SUPPORTED, said, numbers)
    why = (
        f"ahead on {len(ahead)} of {counted(len(rows), 'task')}, and {MATTERS_GAIN:g} is excluded on none of the others"
    )
    return Outcome(CANNOT_TELL, said, numbers, why)


def lora_same_structure(study: Evidence) -> Outcome:
    """Tasks that go together under full fine-tuning go together under LoRA."""
    row = next(
        (
            row
            for row in study.rows("matrix_comparisons", kind="task")
            if row["a"].startswith("task: ") and row["b"].startswith("task: ") and _is_pair(row["a"][6:], row["b"][6:])
        ),
        None,
    )
    if row is None or row["r"] is None:
        reason = row["reason"] if row else "no full and LoRA fine-tunings to compare"
        return cannot(f"similarity of tasks under full and LoRA: {reason}")
    # The entries depend on each other: no more is claimed than as many free ones as there are tasks.
    z, error = np.arctanh(np.clip(row["r"], -0.999999, 0.999999)), 1 / np.sqrt(max(row["n"] - 3, 1))
    high = float(np.tanh(z + stats.norm.ppf(1 - LEVEL) * error))
    verdict = CANNOT_TELL
    why: str | None = f"an r of {_ALIKE} is neither shown nor excluded with {counted(row['n'], 'task')}"
    if row["q"] <= LEVEL and row["r"] >= _ALIKE:
        verdict, why = SUPPORTED, None
    elif high < _ALIKE:
        verdict, why = NOT_SUPPORTED, None
    said = (
        f"Similarities of {counted(row['n'], 'task')} under {row['a'][6:]} and {row['b'][6:]} correlate at "
        f"{row['r']:.2f}, {p_text(row['q'], 'q')} by Mantel's test."
    )
    return Outcome(verdict, said, {name: row[name] for name in ("r", "p", "q", "n")}, why)


def few_rows_suffice(study: Evidence) -> Outcome:
    """1,000 rows gain what many times as many do."""
    found = _few_and_many(study.curves())
    if found is None:
        return cannot(
            f"no model was trained on two sizes of which one is {_MANY_TIMES} times the other, at equal settings"
        )
    few, many, first, second = found
    if _models(first) < FEWEST_MODELS:
        return cannot(f"{many:,} against {few:,} rows: {counted(_models(first), 'model')}, {FEWEST_MODELS} needed")
    test = _compare(first, second)
    if not np.isfinite(test.p):
        return cannot(f"{many:,} against {few:,} rows: {test.reason}")
    difference = Estimate(test.mean, test.stderr, test.df)
    verdict = CANNOT_TELL
    why: str | None = f"a lead of {MATTERS_GAIN:g} of {many:,} rows is neither shown nor excluded"
    if difference.bound(1, 1 - LEVEL) < MATTERS_GAIN:
        verdict, why = SUPPORTED, None
    elif difference.bound(-1, 1 - LEVEL) > MATTERS_GAIN:
        verdict, why = NOT_SUPPORTED, None
    said = (
        f"Gains on {many:,} rows less those on {few:,}, at the last common epoch, are {test.mean:.3f} of the scale"
        f"{interval_text(test.low, test.high, 3)}, {p_text(test.p)}, "
        f"{_over(test, first)}. A plain paired t test has {p_text(test.t_p)}."
    )
    numbers = {**difference.numbers("many_minus_few"), "few": few, "many": many, "n": test.n, "plain_p": test.t_p}
    return Outcome(verdict, said, numbers, why)


def more_epochs_help(study: Evidence) -> Outcome:
    """On few rows gains go on growing after the first epoch."""
    rows = study.curves()
    sizes = [row["size"] for row in rows if row["size"] is not None]
    rows = [row for row in rows if row["size"] == (min(sizes) if sizes else None)]
    epochs: dict[tuple[object, ...], set[int]] = defaultdict(set)
    for row in rows:
        epochs[_setting(row)].add(row["epoch"])
    ends = {setting: (min(at), max(at)) for setting, at in epochs.items() if len(at) > 1}
    first = [row for row in rows if row["epoch"] == ends.get(_setting(row), (None,))[0]]
    last = [row for row in rows if row["epoch"] == ends.get(_setting(row), (None, None))[1]]
    if not first:
        return cannot("no fine-tuning was measured at two epochs or more")
    if _models(first) < FEWEST_MODELS:
        return cannot(f"last epoch against the first: {counted(_models(first), 'model')}, {FEWEST_MODELS} needed")
    test = _compare(first, last)
    if not np.isfinite(test.p):
        return cannot(f"last epoch against the first: {test.reason}")
    difference = Estimate(test.mean, test.stderr, test.df)
    verdict, why = larger_than_zero(difference, MATTERS_GAIN, " of the scale")
    span = " or ".join(sorted({f"{a} to {b}" for a, b in ends.values()}))
    said = (
        f"From epoch {span} gains change by {test.mean:.3f} of the scale{interval_text(test.low, test.high, 3)}, "
        f"{p_text(test.p)}, {_over(test, first)}"
        f"{f' at {min(sizes):,} rows' if sizes else ''}. A plain paired t test has {p_text(test.t_p)}."
    )
    return Outcome(verdict, said, {**difference.numbers("last_minus_first"), "n": test.n, "plain_p": test.t_p}, why)


def _is_pair(first: str, second: str) -> bool:
    return (is_full(first) and is_lora(second)) or (is_lora(first) and is_full(second))


def _full_minus_lora(study: Evidence) -> list[Row]:
    """Rows of `pairs` of one full and one LoRA variant, turned to full minus LoRA and divided by the task's scale."""
    found = []
    rows = [row for row in study.rows("pairs") if _is_pair(row.get("first") or "full", row.get("second") or "lora")]
    chosen = next(((row.get("first"), row.get("second")) for row in rows), None)
    for row in rows:
        if (row.get("first"), row.get("second")) != chosen:
            continue
        sign = 1 if is_full(row.get("first") or "full") else -1
        scale = study.scales.get(row["task"], 1.0)
        ends = [None if row[end] is None else sign * row[end] / scale for end in ("low", "high")]
        mean = None if row["mean_difference"] is None else sign * row["mean_difference"] / scale
        low, high = ends if sign > 0 else ends[::-1]
        q = row["q"] if row["q"] is not None else row["p"]
        stderr = None if row["stderr"] is None else row["stderr"] / scale
        of_scale = {"mean_difference": mean, "stderr": stderr, "low": low, "high": high}
        found.append({**row, **of_scale, "q": q, "t_p": row.get("t_p")})
    return found


def _beyond_margin(row: Row) -> float:
    """p of a difference no larger than `MATTERS_GAIN` either way, at its margin (Hodges and Lehmann 1954)."""
    over, margin = abs(row["mean_difference"]) / row["stderr"], MATTERS_GAIN / row["stderr"]
    return float(stats.t.sf(over - margin, row["df"]) + stats.t.sf(over + margin, row["df"]))


def _named(rows: list[Row]) -> str:
    names = [f"{row['task']} {row['mean_difference']:+.2f}" for row in rows]
    return f" ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" if names else ""


def _curve(row: Row) -> tuple[object, ...]:
    """What sizes are compared within."""
    return tuple(row[name] for name in ("model", "method", "learning_rate", "schedule", "epochs"))


def _setting(row: Row) -> tuple[object, ...]:
    return (*_curve(row), row["size"])


def _few_and_many(rows: list[Row]) -> tuple[int, int, list[Row], list[Row]] | None:
    """The size nearest to 1,000 and the largest that is many times it, and their rows at the last common epochs.

    Only curves that are over the same datasets: another size of other data is another thing.
    """
    of: dict[tuple[object, ...], dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["size"] and row["same_datasets"]:
            of[_curve(row)][row["size"]].append(row)
    pairs: dict[tuple[int, int], tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for sizes in of.values():
        few = min(sizes, key=lambda size: (abs(np.log(size / 1000)), size))
        many = max(sizes)
        common = {row["epoch"] for row in sizes[few]} & {row["epoch"] for row in sizes[many]}
        if many >= _MANY_TIMES * few and common:
            for side, size in enumerate((few, many)):
                pairs[few, many][side].extend(row for row in sizes[size] if row["epoch"] == max(common))
    if not pairs:
        return None
    (few, many), (first, second) = max(pairs.items(), key=lambda item: (len(item[1][0]), item[0]))
    return few, many, first, second


def _compare(first: list[Row], second: list[Row]) -> Paired:
    """`second` minus `first` of the same kind of trial and task, scaled gains, clustered by model and by task."""
    sides = [{(*_curve(row), row["task"]): row["scaled_gain"] for row in rows} for rows in (first, second)]
    shared = sorted(set(sides[0]) & set(sides[1]), key=str)
    values = [np.array([side[place] for place in shared], dtype=np.float64) for side in sides]
    return paired(values[1], values[0], [[place[0] for place in shared], [place[-1] for place in shared]])


def _over(test: Paired, rows: list[Row]) -> str:
    """`over 36 pairs of 3 models (a, b, c) and 12 tasks`."""
    models = sorted({row["model"] for row in rows})
    listed = f"{', '.join(models[:_LISTED])}{', ...' if len(models) > _LISTED else ''}"
    tasks = counted(len({row["task"] for row in rows}), "task")
    return f"over {counted(test.n, 'pair')} of {counted(len(models), 'model')} ({listed}) and {tasks}"


def _models(rows: list[Row]) -> int:
    return len({row["model"] for row in rows})
