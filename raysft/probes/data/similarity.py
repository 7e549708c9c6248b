"""How near the texts of a dataset are to a benchmark's: the cosine of their centroids."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raysft.probes.data.distributions import Measured, property_table


def similarity(data_centroid: np.ndarray, benchmark_centroid: np.ndarray, origin: np.ndarray) -> float | None:
    """Cosine of two centroids of hidden states (width,) seen from `origin`, the centroid of reference texts.

    Hidden states share one large common direction, so that cosines from zero are all near 1; taking the reference away
    leaves what tells texts apart. None where a centroid is the reference's, which has no direction from there.
    """
    first, second = data_centroid - origin, benchmark_centroid - origin
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / scale if scale > 0 else None


def layer_similarities(
    data: np.ndarray, benchmark: np.ndarray, origin: np.ndarray, about: str, rows: int, left_out: int | None = None
) -> pa.Table:
    """`similarity` in each layer, of centroids (layers + 1, width), and once more that in the middle of the stack.

    A table of `schema.DATA_PROPERTIES`; `about` is the benchmark, `rows` how many of the dataset were measured.
    """
    layers = len(data) - 1
    found = [
        Measured(
            "similarity_by_layer",
            similarity(data[layer], benchmark[layer], origin[layer]),
            "cosine",
            about=about,
            layer=layer,
            depth=layer / layers if layers else 0.0,
        )
        for layer in range(layers + 1)
    ]
    middle = found[(layers + 1) // 2]
    chosen = Measured("similarity", middle.value, "cosine", about=about, layer=middle.layer, depth=middle.depth)
    return property_table([chosen, *found], rows, left_out)


def sentence_similarity(data: np.ndarray, benchmark: np.ndarray, origin: np.ndarray, about: str, rows: int) -> pa.Table:
    """`similarity` of centroids (width,) of a sentence model's vectors, as a table of `schema.DATA_PROPERTIES`."""
    value = similarity(data, benchmark, origin)
    return property_table([Measured("sentence_similarity", value, "cosine", about=about)], rows)
