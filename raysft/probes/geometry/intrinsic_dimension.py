"""Intrinsic dimension of pooled hidden states: TwoNN, MLE and Gride by scikit-dimension, layer by layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import skdim.id

from raysft.store.probe_schemas import INTRINSIC_DIMENSION


def intrinsic_dimension(states: np.ndarray, neighbours: int, texts_of: str, repeated: int = 0) -> pa.Table:
    """Estimates for each layer of `states`, fp32 (texts, layers + 1, width).

    States of a layer that coincide are taken once, and counted with the `repeated` texts that were left out before: one
    percent of exact duplicates is enough to send the MLE to zero. ValueError if a state is not finite or fewer than
    neighbours + 2 distinct ones are left. A table of `schema.INTRINSIC_DIMENSION`.
    """
    if not np.isfinite(states).all():
        raise ValueError("hidden states are not all finite")
    layers = states.shape[1] - 1
    rows = []
    for layer in range(layers + 1):
        points = np.unique(states[:, layer].astype(np.float64), axis=0)
        if len(points) < neighbours + 2:
            raise ValueError(
                f"layer {layer}: {len(points)} distinct states among {len(states)} texts, {neighbours + 2} are needed "
                f"for {neighbours} neighbours"
            )
        points -= points.mean(axis=0)
        for estimator, scale, value in _estimates(points, neighbours):
            rows.append(
                {
                    "texts_of": texts_of,
                    "layer": layer,
                    "depth": layer / layers if layers else 0.0,
                    "estimator": estimator,
                    "scale": scale,
                    "value": value if math.isfinite(value) else None,
                    "n": len(points),
                    "duplicates": repeated + len(states) - len(points),
                }
            )
    return pa.Table.from_pylist(rows, schema=INTRINSIC_DIMENSION)


def _estimates(points: np.ndarray, neighbours: int) -> Iterator[tuple[str, int, float]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-dimension warns of its own defaults
        yield "twonn", 2, float(skdim.id.TwoNN().fit(points).dimension_)
        yield "mle", neighbours, float(skdim.id.MLE().fit(points, n_neighbors=neighbours, comb="mle").dimension_)
        gride = skdim.id.GRIDE(multiscale=True, range_max=neighbours).fit(points)
    for order, value in zip(gride.scales_, gride.dimension_scales_, strict=True):
        yield "gride", 2 * int(order), float(value)
