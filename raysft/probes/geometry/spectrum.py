"""How many directions points spread in: participation ratio and effective rank of their covariance."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits


def spectrum_estimates(points: np.ndarray) -> dict[str, float]:
    """`participation_ratio` and `effective_rank` of finite `points` (n, width); NaN if all are one point."""
    values = covariance_eigenvalues(points)
    return {"participation_ratio": participation_ratio(values), "effective_rank": effective_rank(values)}


def covariance_eigenvalues(points: np.ndarray) -> np.ndarray:
    """Eigenvalues, ascending, of the points' covariance times n: fp64 (min(n, width),), the others are zero."""
    centred = points - points.mean(axis=0, dtype=np.float64)
    gram = centred @ centred.T if len(points) <= points.shape[1] else centred.T @ centred
    with threadpool_limits(1, "blas"):  # more threads wait for each other in it: three times slower on two cores
        return np.maximum(np.linalg.eigvalsh(gram), 0.0)


def participation_ratio(values: np.ndarray) -> float:
    """(sum l)^2 / sum l^2 of eigenvalues l: d for d equal ones (Gao et al. 2017, bioRxiv 214262)."""
    squares = float(values @ values)
    return float(values.sum()) ** 2 / squares if squares else float("nan")


def effective_rank(values: np.ndarray) -> float:
    """exp of the entropy of eigenvalues over their sum: d for d equal ones (Roy and Vetterli 2007, EUSIPCO)."""
    positive = values[values > 0]
    shares = positive / positive.sum()
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else float("nan")
