"""Vectors laid out in two dimensions: principal components, t-SNE and, where umap-learn is installed, UMAP."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from threadpoolctl import threadpool_limits

from raysft.study.tables import Reals

FEWEST = 10
"""Vectors below which neighbourhoods say nothing: only principal components are laid out."""
_PERPLEXITY = 30.0
_NEIGHBOURS = 15


@dataclass(frozen=True)
class Layout:
    """Places (vectors, 2) by a projection; `scale` is t-SNE's perplexity or UMAP's neighbours, NaN for PCA, whose
    `seed` is None."""

    projection: str
    places: Reals
    scale: float = np.nan
    seed: int | None = None


def layouts(vectors: Reals, seed: int) -> Iterator[Layout]:
    """Every layout that there can be of vectors (n, dimensions); equal vectors and seeds give equal ones."""
    yield principal(vectors)
    if len(vectors) < FEWEST or np.allclose(vectors, vectors[0]):
        return
    # Sums over several threads depend on their number; a report must not.
    with threadpool_limits(1):
        yield _tsne(vectors, seed)
        if find_spec("umap") is not None:
            yield _umap(vectors, seed)


def principal(vectors: Reals) -> Layout:
    """The first two principal components."""
    left, sizes, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    # An axis may point either way; the largest entry is made positive so that equal tables give equal maps.
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
    places = np.zeros((len(vectors), 2))
    kept = min(2, len(sizes))
    places[:, :kept] = (left * np.where(signs == 0, 1, signs) * sizes)[:, :kept]
    return Layout("pca", places)


def _tsne(vectors: Reals, seed: int) -> Layout:
    # Imported here: scikit-learn takes a second to load, and a sweep without a map need not wait for it.
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
    found = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)
    return Layout("tsne", np.asarray(found, dtype=np.float64), perplexity, seed)


def _umap(vectors: Reals, seed: int) -> Layout:
    # Imported here: it compiles for seconds, and is an extra (`raysft[umap]`).
    from umap import UMAP

    neighbours = min(_NEIGHBOURS, len(vectors) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that a seed takes its threads away, which is what is wanted
        found = UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(vectors)
    return Layout("umap", np.asarray(found, dtype=np.float64), float(neighbours), seed)
