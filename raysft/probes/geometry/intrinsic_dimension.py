"""Intrinsic dimension of pooled hidden states, layer by layer: every estimate from one exact neighbour table."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import skdim.id

from raysft.probes.geometry.estimators import deepest_order, estimates_of
from raysft.probes.geometry.half_samples import depth_for_halves, intervals
from raysft.probes.geometry.neighbours import Neighbours, neighbour_table
from raysft.probes.geometry.spectrum import spectrum_estimates
from raysft.spec.probes import IntrinsicDimensionProbe

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Texts:
    """What a layer's points are of: the dataset, how many texts were left out before because they were repeated, what
    is equal wherever the texts are the same, and their places in the dataset (from 0), by which an error names them."""

    dataset: str
    repeated: int = 0
    same: str | None = None
    places: Sequence[int] | None = None


@dataclass(frozen=True)
class LayerGeometry:
    """Rows of the schema `INTRINSIC_DIMENSION` of one layer, and the neighbours they were estimated from, by text."""

    rows: Rows
    neighbours: Neighbours


def layer_estimates(
    points: np.ndarray,
    layer: int,
    layers: int,
    probe: IntrinsicDimensionProbe,
    texts: Texts,
    table_of: Callable[[np.ndarray, int], Neighbours] = neighbour_table,
) -> LayerGeometry:
    """Estimates for hidden state `layer` of a model with `layers` layers; `points` fp32 or fp64 (texts, width).

    `table_of` makes the neighbour table of points, with so many neighbours of each, where and how the caller likes.
    Points that coincide are taken once, and counted with the texts that were left out before: one percent of exact
    duplicates is enough to send scikit-dimension's MLE to zero.

    Raises:
        ValueError: a point is not finite, there are fewer than neighbours + 2 distinct ones, or an estimator of
            scikit-dimension fails; the message starts with the layer.
    """
    distinct = _distinct(points, layer, probe.neighbours, texts)
    chosen = points if len(distinct) == len(points) else points[distinct]
    table = table_of(chosen, min(_depth(probe), len(chosen) - 1))
    common = {
        "texts_of": texts.dataset,
        "same_texts": texts.same,
        "layer": layer,
        "depth": layer / layers if layers else 0.0,
        "n": len(chosen),
        "duplicates": texts.repeated + len(points) - len(chosen),
    }
    rows = [*_from_table(table, probe), *_from_sample(points, distinct, layer, probe)]
    found = table.first(probe.neighbours)
    return LayerGeometry([{**common, **row} for row in rows], Neighbours(found.indices, found.distances, distinct))


def _distinct(points: np.ndarray, layer: int, neighbours: int, texts: Texts) -> np.ndarray:
    """Indices of the first of each set of equal points, ascending."""
    finite = np.fromiter((np.isfinite(point).all() for point in points), bool, len(points))
    if not finite.all():
        first_bad = int(np.argmin(finite))
        number = 1 + (first_bad if texts.places is None else int(texts.places[first_bad]))
        raise ValueError(
            f"layer {layer}: hidden states of {int((~finite).sum())} of {len(points)} texts are not all finite, the "
            f"first of them text {number} of {texts.dataset}"
        )
    # By digests, one row at a time: sorting the rows themselves takes several copies. Adding 0 makes -0 and 0 equal.
    digests = [hashlib.blake2b((point + 0.0).tobytes(), digest_size=16).digest() for point in points]
    _, first = np.unique(np.array(digests, "S16"), return_index=True)
    if len(first) < neighbours + 2:
        raise ValueError(
            f"layer {layer}: {len(first)} distinct states among {len(points)} texts, {neighbours + 2} are needed for "
            f"{neighbours} neighbours"
        )
    return np.sort(first)


def _depth(probe: IntrinsicDimensionProbe) -> int:
    deepest = deepest_order(probe.neighbours, probe.mle_k)
    return max(probe.neighbours, depth_for_halves(deepest) if probe.half_samples else deepest)


def _from_table(table: Neighbours, probe: IntrinsicDimensionProbe) -> Rows:
    estimates = estimates_of(table.distances, probe.neighbours, probe.mle_k)
    spans = {}
    if probe.half_samples:
        spans = intervals(table, estimates, probe.neighbours, probe.mle_k, probe.half_samples, probe.seed)
    rows = []
    for (estimator, scale), value in estimates.items():
        low, high = spans.get((estimator, scale), (math.nan, math.nan))
        numbers = {"value": _number(value), "low": _number(low), "high": _number(high)}
        rows.append({"estimator": estimator, "scale": scale, **numbers})
    return rows


def _from_sample(points: np.ndarray, distinct: np.ndarray, layer: int, probe: IntrinsicDimensionProbe) -> Rows:
    """Spectrum and further estimators, on one random sample of the distinct points, in fp64 and centred: their cost
    grows with the cube of its size, and would be most of a layer's.

    The sample is the first of one random order of all texts, so that a layer in which two of them coincide has the same
    texts in it as others, but for those two.
    """
    size = min(probe.sample, len(distinct))
    order = np.random.default_rng(probe.seed).permutation(len(points))
    chosen = np.sort(order[np.isin(order, distinct)][:size])
    sample = points[chosen].astype(np.float64)
    sample -= sample.mean(axis=0)
    values = spectrum_estimates(sample)
    values |= {name: _fitted(name, sample, layer, probe.seed) for name in probe.estimators}
    return [{"estimator": name, "scale": 0, "value": _number(value), "n": size} for name, value in values.items()]


def _fitted(name: str, sample: np.ndarray, layer: int, seed: int) -> float:
    estimator = getattr(skdim.id, name)()
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=seed)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # scikit-dimension warns of its own defaults
            return float(estimator.fit(sample).dimension_)
    except (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"layer {layer}: scikit-dimension's {name} on {len(sample)} points: {reason}") from error


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
