"""Estimates of intrinsic dimension from the distances in a neighbour table; none looks at the points again."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq

Distances = np.ndarray  # fp64 (n, k): of each point to its nearest neighbours, nearest first
Estimates = dict[tuple[str, int], float]  # by (estimator, scale), NaN where there is none

_DISCARDED = 0.1  # of the largest ratios; TwoNN
_OUTLIERS = 20.0  # medians' distances to the 95% quantile; Gride


def scales_of_gride(neighbours: int) -> list[int]:
    """Orders n1 = 1, 2, 4, ... of the nearer neighbour; the farther is n2 = 2 n1, at most `neighbours`."""
    return [1 << power for power in range(max(0, neighbours.bit_length() - 1))]


def deepest_order(neighbours: int, mle_neighbours: int) -> int:
    """The number of neighbours that `estimates_of` looks at, the farthest of them."""
    return max(2, mle_neighbours, 2 * scales_of_gride(neighbours)[-1])


def estimates_of(distances: Distances, neighbours: int, mle_neighbours: int) -> Estimates:
    """TwoNN, the MLE with `mle_neighbours` and Gride up to `neighbours`, each keyed with its scale.

    Rows with a NaN, of which fewer neighbours are known than an estimate looks at, are left out of that estimate.
    """
    estimates = {
        ("twonn", 2): twonn(_known(distances, 2)),
        ("mle", mle_neighbours): mle(_known(distances, mle_neighbours)),
    }
    for order in scales_of_gride(neighbours):
        estimates["gride", 2 * order] = gride(_known(distances, 2 * order), order)
    return estimates


def _known(distances: Distances, k: int) -> Distances:
    known = np.isfinite(distances[:, k - 1])
    return distances[:, :k] if known.all() else distances[known, :k]


def twonn(distances: Distances) -> float:
    """TwoNN of Facco, d'Errico, Rodriguez and Laio 2017 (Scientific Reports 7).

    With mu = r2 / r1 and F its empirical distribution, the slope of -log(1 - F) on log mu through the origin, without
    the tenth of the points that has the largest mu. As scikit-dimension's `TwoNN()`; NaN for fewer than two points.
    """
    ratios = _ratios(distances[:, 1], distances[:, 0])
    kept = int(len(ratios) * (1 - _DISCARDED))
    if kept < 2:
        return float("nan")
    x = np.log(np.sort(ratios)[:kept])
    y = -np.log1p(-np.arange(1, kept + 1) / len(ratios))
    with np.errstate(divide="ignore", invalid="ignore"):  # all ratios 1: no slope
        return float(x @ y / (x @ x))


def mle(distances: Distances) -> float:
    """The maximum likelihood estimate of Levina and Bickel 2004 (NIPS), pooled as MacKay and Ghahramani 2005 advise.

    1 / d is the mean over points, and over their k - 1 nearer neighbours j, of log(r_k / r_j). As scikit-dimension's
    `MLE().fit(X, n_neighbors=k, comb="mle")`; NaN if k < 2 or no two distances differ.
    """
    if distances.shape[1] < 2 or not len(distances):
        return float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = float(np.mean(np.log(distances[:, -1:] / distances[:, :-1])))
    return 1 / mean if mean > 0 else float("nan")


def gride(distances: Distances, order: int) -> float:
    """Gride of Denti, Doimo, Laio and Mira 2022 (Scientific Reports 12) at n1 = `order`, n2 = 2 n1.

    The root of the score of the likelihood of mu = r_n2 / r_n1, with N - 1 for N, so that it is unbiased at n1 = 1, and
    without ratios that lie 20 times as far above the median as the 95% quantile does. As scikit-dimension's `GRIDE`;
    NaN for fewer than two points.
    """
    far = 2 * order
    ratios = _ratios(distances[:, far - 1], distances[:, order - 1])
    ratios = ratios[ratios > 1]
    if len(ratios) < 2:
        return float("nan")
    upper, middle = np.percentile(ratios, [95, 50])
    logs = np.log(ratios[ratios < middle + _OUTLIERS * (upper - middle)])
    if len(logs) < 2:
        return float("nan")
    total, points = float(logs.sum()), len(logs) - 1
    if order == 1:
        return points / total

    def score(dimension: float) -> float:
        inner = float((logs / -np.expm1(-dimension * logs)).sum())
        return points / dimension + (far - order - 1) * inner - (far - 1) * total

    # The score falls from +inf to below zero. To first order log mu has the mean log 2 / d.
    low = high = float(np.log(2) / logs.mean())
    while score(low) < 0:
        low /= 1.5
    while score(high) > 0:
        high *= 1.5
    return float(brentq(score, low, high, xtol=1e-12, rtol=1e-12)) if low < high else low


def _ratios(far: np.ndarray, near: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):  # two points in one place
        ratios = far / near
    return ratios[np.isfinite(ratios)]
