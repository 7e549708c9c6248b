"""Exact nearest neighbours of points in one table, on which every estimate of their geometry is made.

The k nearest of each point by Euclidean distance, itself excluded by index. Distances are in fp64, from the points as
they were given; equal ones are in the order of their index.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raysft.probes.geometry.neighbours_on_cpu import BLOCK, table_on_cpu


@dataclass(frozen=True)
class Neighbours:
    """The k nearest neighbours of n points, nearest first.

    indices: int32 (n, k); distances: fp64 (n, k). `texts`: int64 (n,), which text each point is of, where points are
    those of distinct texts only; None if point i is of text i.
    """

    indices: np.ndarray
    distances: np.ndarray
    texts: np.ndarray | None = None

    def first(self, k: int) -> Neighbours:
        """The table of the `k` nearest; ValueError if it does not hold as many."""
        held = self.indices.shape[1]
        if not 1 <= k <= held:
            raise ValueError(f"the table holds {held} neighbours of each point, found k = {k}")
        return Neighbours(self.indices[:, :k], self.distances[:, :k], self.texts)

    def by_text(self) -> tuple[np.ndarray, np.ndarray]:
        """(texts (n,), nearest texts (n, k)): the table by texts instead of points."""
        texts = np.arange(len(self.indices)) if self.texts is None else self.texts
        return texts, texts[self.indices]


def neighbour_table(points: np.ndarray, k: int, device: str | None = None, block: int = BLOCK) -> Neighbours:
    """The `k` nearest neighbours of each of `points`, fp32 or fp64 (n, width).

    `device`: None or "cpu" for this machine's cores, as many as its BLAS is set to use; else a torch device, whose
    distances may differ in their last bits. `block`: rows of a tile on a CPU, which changes no number.

    Raises:
        ValueError: not two dimensions, another dtype, an entry that is not finite, or k not in 1 ... n - 1.
    """
    if points.ndim != 2 or points.dtype not in (np.float32, np.float64):
        raise ValueError(f"points must be fp32 or fp64 of shape (n, width), found {points.dtype} {points.shape}")
    if not 1 <= k < len(points):
        raise ValueError(f"k must be in 1 ... {len(points) - 1} for {len(points)} points, found {k}")
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        raise ValueError(f"{int((~finite).sum())} of {len(points)} points are not all finite")
    if device is None or device == "cpu":
        return Neighbours(*table_on_cpu(points, k, block))
    from raysft.probes.geometry.neighbours_on_device import table_on_device  # torch, which a CPU does without

    return Neighbours(*table_on_device(points, k, device))


def neighbourhood_overlap(before: Neighbours, after: Neighbours, k: int) -> float:
    """`overlap_of_texts` of the `k` nearest in two tables of the same texts; ValueError if one holds fewer."""
    return overlap_of_texts(*before.first(k).by_text(), *after.first(k).by_text())


def overlap_of_texts(
    texts_before: np.ndarray, nearest_before: np.ndarray, texts_after: np.ndarray, nearest_after: np.ndarray
) -> float:
    """Mean share of their k nearest texts that texts have in common before and after: 1 for the same neighbourhoods,
    about k / n for unrelated ones.

    chi of Doimo, Glielmo, Ansuini and Laio 2020 (NeurIPS), section 2. `texts_...`: distinct indices (n,);
    `nearest_...`: indices of texts (n, k). A text that is in one of the two only, since it is a duplicate in the other,
    is not averaged over.

    Raises:
        ValueError: the two have no text in common, or another k.
    """
    shared, rows, others = np.intersect1d(texts_before, texts_after, assume_unique=True, return_indices=True)
    k = nearest_before.shape[1]
    if not len(shared) or nearest_after.shape[1] != k:
        found = f"{k} and {nearest_after.shape[1]} neighbours of {len(shared)} texts in common"
        raise ValueError(f"neighbourhoods before and after must be of the same texts and of one k, found {found}")
    both = np.sort(np.concatenate([nearest_before[rows], nearest_after[others]], axis=1), axis=1)
    return float((both[:, 1:] == both[:, :-1]).sum() / (len(shared) * k))  # in one list a text is once at most
