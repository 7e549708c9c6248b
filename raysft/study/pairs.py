"""Full fine-tuning against LoRA: pairs that agree in all else, with errors that know of models and datasets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import stats

from raysft.study.association import constant
from raysft.study.released_schemas import PAIRS
from raysft.study.tables import Reals, from_rows

CONFIDENCE = 0.95
_SAME = ("task", "model", "dataset", "epoch", "size", "schedule", "seed")


@dataclass(frozen=True)
class Difference:
    """A mean with a two-sided test of zero; NaN with a `reason` where it is undefined."""

    n: int
    mean: float = np.nan
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan
    reason: str | None = None


def pairs_table(gains: pa.Table, first: str = "full", second: str = "lora") -> tuple[pa.Table, dict[str, str]]:
    """Gain under method `first` minus gain under `second` by task, of schema `PAIRS`, and what was left out.

    Args:
        gains: of schema `GAINS`. A pair has the same task, model, dataset, epoch, size, schedule and seed.
    """
    by_task: dict[str, list[tuple[str, str, float]]] = defaultdict(list)
    found: dict[tuple[object, ...], dict[str, float]] = defaultdict(dict)
    for row in gains.select([*_SAME, "method", "gain"]).to_pylist():
        by_task[row["task"]]
        if row["gain"] is not None:
            found[tuple(row[name] for name in _SAME)][row["method"]] = row["gain"]
    for (task, model, dataset, *_), gain in found.items():
        if first in gain and second in gain:
            by_task[str(task)].append((str(model), str(dataset), gain[first] - gain[second]))
    tests = {
        task: mean_difference(*map(list, zip(*pairs, strict=True))) if pairs else Difference(0, reason="no pair")
        for task, pairs in sorted(by_task.items())
    }
    q = _adjusted([test.p for test in tests.values()])
    rows = [
        {
            "task": task,
            "n": test.n,
            "mean_difference": test.mean,
            "low": test.low,
            "high": test.high,
            "p": test.p,
            "q": adjusted,
        }
        for (task, test), adjusted in zip(tests.items(), q, strict=True)
    ]
    skipped = {f"{task} in {first} against {second}": test.reason for task, test in tests.items() if test.reason}
    return from_rows(rows, PAIRS), skipped


def mean_difference(models: Sequence[str], datasets: Sequence[str], differences: Sequence[float]) -> Difference:
    """Mean of paired differences, its 95% interval and p, with errors clustered two ways.

    The variance is that clustered by model, plus that by dataset, less that by both (Cameron, Gelbach and Miller 2011);
    each with its clusters / (clusters - 1), and Student's t with one less than the fewer clusters. Pairs that share a
    model are not independent: a plain paired t test takes 110 pairs of 11 models for 110 models.
    """
    values = np.asarray(differences, dtype=np.float64)
    n, mean = len(values), float(values.mean())
    clusters = [list(models), list(datasets)]
    fewest = min(len(set(labels)) for labels in clusters)
    if fewest < 2:
        # One model, or one dataset: only the other way is left to cluster.
        clusters = [labels for labels in clusters if len(set(labels)) > 1]
        if not clusters:
            return Difference(n, mean, reason=f"{n} pair: no error can be estimated")
        fewest = len(set(clusters[0]))
    if constant(values):
        return Difference(n, mean, reason="the differences are all the same")
    variance = _clustered_variance(values - mean, clusters)
    if not variance > 0:
        return Difference(n, mean, reason="the clustered variance is not positive")
    error = float(np.sqrt(variance))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, fewest - 1)) * error
    return Difference(n, mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, fewest - 1)))


def _clustered_variance(residuals: Reals, clusters: list[list[str]]) -> float:
    """Variance of the mean; with two groupings never less than by the larger of the two alone."""
    single = [_variance(residuals, labels) for labels in clusters]
    if len(clusters) == 1:
        return single[0]
    both = [" / ".join(labels) for labels in zip(*clusters, strict=True)]
    return max(sum(single) - _variance(residuals, both), *single)


def _variance(residuals: Reals, labels: list[str]) -> float:
    names, at = np.unique(labels, return_inverse=True)
    sums = np.bincount(at, weights=residuals)
    return float(len(names) / (len(names) - 1) * (sums**2).sum() / len(residuals) ** 2)


def _adjusted(p: list[float]) -> Reals:
    """Benjamini-Hochberg q of the values that are there."""
    values = np.array(p, dtype=np.float64)
    known = np.isfinite(values)
    q = np.full(len(values), np.nan)
    if known.any():
        q[known] = stats.false_discovery_control(values[known])
    return q
