"""What every fine-tuning changed: checkpoint scores minus their base model's, with standard errors."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysft.store.schema import IDENTITY
from raysft.study.benchmarks import RELEASED, benchmark_of
from raysft.study.matching import matches
from raysft.study.schema import GAIN_MATRIX, GAINS
from raysft.study.tables import Reals, aggregate, from_rows, real_array, reals, texts
from raysft.study.variants import with_final, with_variants

_PREFERRED = ("exact_match", "acc", "acc_norm")
_PROPORTIONS = frozenset({*_PREFERRED, "em", "pass@1", "pass_at_1"})
_ROUNDING = 1e-9  # of a power of ten


def primary_metric(metrics: Iterable[str]) -> str:
    """The one metric of a task that the study uses: exact_match, else acc, else acc_norm, else the first by name.

    `metrics` are lm-eval names with or without a filter (`exact_match,strict-match`); among filters the first by name.

    Raises:
        ValueError: `metrics` is empty.
    """
    names = sorted(set(metrics))
    if not names:
        raise ValueError("metrics: the task has none")
    bare = [name.partition(",")[0] for name in names]
    for preferred in _PREFERRED:
        if preferred in bare:
            return names[bare.index(preferred)]
    return names[0]


def gain_table(scores: pa.Table, variants: dict[str, str]) -> pa.Table:
    """One row for each fine-tuned checkpoint, task and metric that its base model was measured on too.

    Args:
        scores: the `scores` table.
        variants: trial key -> variant, from `trial_variants`.

    Returns:
        A table of schema `GAINS`, sorted by its identity, task and metric. The standard error of a gain takes the two
        scores as independent, although they share items: it is too wide rather than too narrow.

    Raises:
        ValueError: a base model has two scores for one task and metric.
    """
    tuned = scores.filter(pc.and_kleene(pc.is_valid(scores["trial"]), pc.greater(scores["epoch"], 0)))
    joined = tuned.join(_base_scores(scores), keys=["model", "task", "metric"], join_type="inner")
    joined = _measured(joined).sort_by([(name, "ascending") for name in [*IDENTITY.names, "task", "metric"]])
    return _with_differences(with_final(with_variants(joined, variants))).select(GAINS.names).cast(GAINS)


def _base_scores(scores: pa.Table) -> pa.Table:
    rows = scores.filter(pc.is_null(scores["trial"]))
    counts = rows.group_by(["model", "task", "metric"]).aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1))
    if twice.num_rows:
        first = twice.slice(0, 1).to_pylist()[0]
        where = ", ".join(first[key] for key in ("model", "task", "metric"))
        raise ValueError(f"scores: {first['count_all']} base rows for {where}, 1 expected")
    names = {"value": "base", "stderr": "base_stderr", "n": "base_items", "bits_per_byte": "base_bits"}
    return rows.select(["model", "task", "metric", *names]).rename_columns(["model", "task", "metric", *names.values()])


def _measured(joined: pa.Table) -> pa.Table:
    return joined.filter(pa.array(np.isfinite(reals(joined, "value") - reals(joined, "base")), pa.bool_()))


def _with_differences(joined: pa.Table) -> pa.Table:
    metrics, tasks = texts(joined, "metric"), texts(joined, "task")
    score, base = reals(joined, "value"), reals(joined, "base")
    score_error = _floored(reals(joined, "stderr"), score, reals(joined, "n"), metrics)
    base_error = _floored(reals(joined, "base_stderr"), base, reals(joined, "base_items"), metrics)
    error = np.hypot(score_error, base_error)
    # A task that does not say is taken as higher-is-better, as lm-eval does.
    sign = np.where(pc.fill_null(joined["higher_is_better"], True).to_numpy(), 1.0, -1.0)
    gain = sign * (score - base)
    scale = _scales(tasks, metrics, np.maximum(np.abs(score), np.abs(base)))
    fields = {
        "primary": _primary(tasks, metrics),
        "matching": pa.array(map(matches, texts(joined, "dataset"), tasks), pa.bool_()),
        "score": real_array(score),
        "gain": real_array(gain),
        "base_stderr": real_array(base_error),
        "score_stderr": real_array(score_error),
        "stderr": real_array(error),
        "z": real_array(ratio(gain, error)),
        "scale": real_array(scale),
        "scaled_gain": real_array(gain / scale),
        "bits_gain": real_array(reals(joined, "base_bits") - reals(joined, "bits_per_byte")),
    }
    kept = joined.drop_columns([name for name in fields if name in joined.column_names])
    for name, values in fields.items():
        kept = kept.append_column(name, values)
    return kept


def _floored(error: Reals, value: Reals, items: Reals, metrics: list[str]) -> Reals:
    """Standard errors in which none right or all right of n items no longer reads as perfectly certain.

    The sample variance of equal outcomes is zero. There the error of Agresti and Coull (1998) is used:
    sqrt(p (1 - p) / (n + 4)) with p = (right + 2) / (n + 4).
    """
    proportion = np.array([metric.partition(",")[0] in _PROPORTIONS for metric in metrics], dtype=bool)
    certain = proportion & (error == 0) & ((value == 0) | (value == 1)) & (items > 0)
    return np.where(certain, floored_error(value, items), error)


def floored_error(share: Reals, items: Reals | int) -> Reals:
    """Standard error of a share of right items, shape (n,); of none and all that of Agresti and Coull (1998)."""
    p = np.where((share == 0) | (share == 1), (share * items + 2) / (items + 4), share)
    count = np.where((share == 0) | (share == 1), items + 4, items)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(p * (1 - p) / count)


def _scales(tasks: list[str], metrics: list[str], magnitude: Reals) -> Reals:
    """For each row the scale of its task and metric, of all their scores.

    Benchmarks are scored on 0 to 1, 1 to 10 or 0 to 100; without this a mean over tasks is a mean of the last kind.
    """
    largest: dict[tuple[str, str], float] = {}
    places = list(zip(tasks, metrics, strict=True))
    for place, value in zip(places, magnitude, strict=True):
        largest[place] = max(largest.get(place, 0.0), value)
    scales = {place: task_scale(*place, value) for place, value in largest.items()}
    return np.array([scales[place] for place in places])


def task_scale(task: str, metric: str, largest: float) -> float:
    """What scores of a task whose largest is this are shares of.

    Shares of items are given of 1 or of 100, and a weak model's percentages may all be below 10. What is no share, or
    not known to be one, is on the smallest of 1, 10, 100, ... that holds it.
    """
    scale = score_scale(largest)
    share = benchmark_of(task).items if metric == RELEASED else metric.partition(",")[0] in _PROPORTIONS
    return max(scale, 100.0) if share and scale > 1 else scale


def score_scale(largest: float) -> float:
    """The smallest of 1, 10, 100, ... that holds a score as large as this, but for rounding."""
    return float(10.0 ** max(0, np.ceil(np.log10(largest or 1.0) - _ROUNDING)))


def ratio(top: Reals, bottom: Reals) -> Reals:
    """top / bottom, NaN where bottom is zero or either is missing."""
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def _primary(tasks: list[str], metrics: list[str]) -> pa.Array:
    of_task: dict[str, set[str]] = {}
    for task, metric in zip(tasks, metrics, strict=True):
        of_task.setdefault(task, set()).add(metric)
    chosen = {task: primary_metric(names) for task, names in of_task.items()}
    return pa.array([chosen[task] == metric for task, metric in zip(tasks, metrics, strict=True)], pa.bool_())


def final_gains(gains: pa.Table) -> pa.Table:
    """The study's main slice: each trial's last measured epoch, each task's primary metric."""
    return gains.filter(pc.and_(gains["final"], gains["primary"]))


def gain_matrix(gains: pa.Table) -> pa.Table:
    """Final gains averaged over seeds, then over models: one row for each (variant, dataset, task).

    Returns:
        A table of schema `GAIN_MATRIX`. Seeds of one model share its base score, so that part of the error does not
        shrink with seeds; models are taken as independent.
    """
    by_model = _mean_over_seeds(final_gains(gains))
    keys = ["variant", "dataset", "task", "matching"]
    means = ("gain", "mean"), ("scaled_gain", "mean"), ("bits_gain", "mean")
    cells = aggregate(by_model, keys, *means, ("gain", "count"), ("cells", "sum"), ("variance", "list"))
    rows = [_matrix_row(cell) for cell in cells.to_pylist()]
    return from_rows(rows, GAIN_MATRIX)


def _mean_over_seeds(final: pa.Table) -> pa.Table:
    squared = final.append_column("base_variance", real_array(reals(final, "base_stderr") ** 2))
    squared = squared.append_column("score_variance", real_array(reals(final, "score_stderr") ** 2))
    keys = ["variant", "dataset", "task", "matching", "model"]
    strict = pc.ScalarAggregateOptions(skip_nulls=False)
    grouped = squared.group_by(keys, use_threads=False).aggregate(
        [
            ("gain", "mean"),
            ("gain", "count"),
            ("scaled_gain", "mean"),
            ("bits_gain", "mean"),
            ("base_variance", "mean", strict),
            ("score_variance", "mean", strict),
        ]
    )
    shared, own = reals(grouped, "base_variance_mean"), reals(grouped, "score_variance_mean")
    return pa.table(
        {
            **{key: grouped[key] for key in keys},
            "gain": grouped["gain_mean"],
            "scaled_gain": grouped["scaled_gain_mean"],
            "bits_gain": grouped["bits_gain_mean"],
            "cells": grouped["gain_count"],
            "variance": real_array(shared + own / reals(grouped, "gain_count")),
        }
    ).sort_by([(key, "ascending") for key in keys])


def _matrix_row(cell: dict[str, object]) -> dict[str, object]:
    variances = np.array(cell["variance_list"], dtype=np.float64)  # None becomes NaN, so an unknown error stays unknown
    error = float(np.sqrt(variances.sum()) / len(variances))
    gain = cell["gain_mean"]
    assert isinstance(gain, float)
    return {
        **{key: cell[key] for key in ("variant", "dataset", "task", "matching")},
        "gain": gain,
        "stderr": error,
        "z": gain / error if error > 0 else np.nan,
        "scaled_gain": cell["scaled_gain_mean"],
        "bits_gain": cell["bits_gain_mean"],
        "models": cell["gain_count"],
        "cells": cell["cells_sum"],
    }
