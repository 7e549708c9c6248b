"""A map of models by how they rate the same texts (Oyama et al. 2025, "Mapping 1,000+ Language Models via the
Log-Likelihood Vector").

l_i holds the total log-probability of each of N texts under model i. The bottom 2% of the pooled matrix are clipped,
rows are centred, then columns; ||q_i - q_j||^2 / N is then about twice the KL divergence per text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.spatial.distance import pdist, squareform
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from raysft.store.schema import IDENTITY
from raysft.study.schema import MAP, MAP_DISTANCES
from raysft.study.tables import Reals, from_rows, real_array
from raysft.study.variants import with_variants

_CLIPPED = 0.02
_FEWEST_FOR_TSNE = 10
_PERPLEXITY = 30.0
_SEED = 0


@dataclass(frozen=True)
class ModelMap:
    """The map (schema `MAP`), its distances (schema `MAP_DISTANCES`), and how many models it had to leave out."""

    points: pa.Table
    distances: pa.Table
    skipped: dict[str, str]


def model_map(log_likelihood: pa.Table, variants: dict[str, str]) -> ModelMap:
    """Base models and checkpoints in two dimensions, by their log-likelihood vectors.

    Only models that have every text take part. Ten or more are laid out by t-SNE, fewer by PCA.
    """
    subjects, raw = _vectors(log_likelihood)
    complete = np.asarray(np.isfinite(raw).all(axis=1))
    names = [subject_name(row) for row in with_variants(subjects, variants).to_pylist()]
    skipped = {
        name: f"{int(np.isfinite(row).sum())} of {raw.shape[1]} texts"
        for name, row, whole in zip(names, raw, complete, strict=True)
        if not whole
    }
    subjects, raw = with_variants(subjects, variants).filter(pa.array(complete, pa.bool_())), raw[complete]
    if not len(raw):
        return ModelMap(MAP.empty_table(), MAP_DISTANCES.empty_table(), skipped)
    return _laid_out(subjects, raw, [name for name, whole in zip(names, complete, strict=True) if whole], skipped)


def _laid_out(subjects: pa.Table, raw: Reals, names: list[str], skipped: dict[str, str]) -> ModelMap:
    vectors = centred(raw)
    two_kl = pdist(vectors, "sqeuclidean") / raw.shape[1]
    place, projection, perplexity = project(vectors)
    columns = {
        "x": real_array(place[:, 0]),
        "y": real_array(place[:, 1]),
        "projection": pa.array([projection] * len(raw), pa.string()),
        "perplexity": real_array(np.full(len(raw), perplexity)),
        "texts": pa.array([raw.shape[1]] * len(raw), pa.int64()),
        "mean_log_likelihood": real_array(raw.mean(axis=1)),
        "from_base": real_array(_from_base(subjects, squareform(two_kl))),
    }
    for name, values in columns.items():
        subjects = subjects.append_column(name, values)
    return ModelMap(subjects.select(MAP.names).cast(MAP), _distance_table(names, two_kl), skipped)


def _vectors(log_likelihood: pa.Table) -> tuple[pa.Table, Reals]:
    """The models, sorted, and their log-likelihoods, shape (models, texts), NaN where a text is missing."""
    keys = [*IDENTITY.names]
    grouped = log_likelihood.group_by(keys, use_threads=False).aggregate([("text", "list"), ("log_likelihood", "list")])
    grouped = grouped.sort_by([(key, "ascending") for key in keys])
    texts = np.asarray(pc.unique(log_likelihood["text"]).sort().to_numpy())
    matrix = np.full((grouped.num_rows, len(texts)), np.nan)
    for row, (ids, values) in enumerate(
        zip(grouped["text_list"].combine_chunks(), grouped["log_likelihood_list"].combine_chunks(), strict=True)
    ):
        at = np.searchsorted(texts, np.asarray(ids.values))
        matrix[row, at] = np.asarray(values.values.fill_null(np.nan))
    return grouped.select(keys).cast(IDENTITY), matrix


def subject_name(row: dict[str, object]) -> str:
    """A base model's name, or `model / dataset / variant / seed 0 / epoch 3`."""
    if row["trial"] is None:
        return str(row["model"])
    return f"{row['model']} / {row['dataset']} / {row['variant']} / seed {row['seed']} / epoch {row['epoch']}"


def centred(log_likelihoods: Reals) -> Reals:
    """Clip the bottom 2% of the pooled matrix, then subtract row means, then column means; shape (models, texts)."""
    clipped = np.maximum(log_likelihoods, np.quantile(log_likelihoods, _CLIPPED))
    rows = clipped - clipped.mean(axis=1, keepdims=True)
    return rows - rows.mean(axis=0, keepdims=True)


def project(vectors: Reals) -> tuple[Reals, str, float]:
    """Two coordinates for each vector, shape (models, 2), the projection's name, and t-SNE's perplexity or NaN."""
    if len(vectors) < _FEWEST_FOR_TSNE or np.allclose(vectors, vectors[0]):
        return _principal(vectors), "pca", np.nan
    # Imported here: scikit-learn takes a second to load, and a sweep without a map need not wait for it.
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
    layout = TSNE(2, perplexity=perplexity, init="pca", random_state=_SEED)
    # Sums over several threads depend on their number; a report must not.
    with threadpool_limits(1):
        return np.asarray(layout.fit_transform(vectors), dtype=np.float64), "tsne", perplexity


def _principal(vectors: Reals) -> Reals:
    left, sizes, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    # An axis may point either way; the largest entry is made positive so that equal tables give equal maps.
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
    place = np.zeros((len(vectors), 2))
    kept = min(2, len(sizes))
    place[:, :kept] = (left * np.where(signs == 0, 1, signs) * sizes)[:, :kept]
    return place


def _from_base(subjects: pa.Table, two_kl: Reals) -> Reals:
    rows = subjects.select(["trial", "model"]).to_pylist()
    base_at = {row["model"]: index for index, row in enumerate(rows) if row["trial"] is None}
    return np.array(
        [two_kl[at, base_at[row["model"]]] if row["model"] in base_at else np.nan for at, row in enumerate(rows)]
    )


def _distance_table(names: list[str], two_kl: Reals) -> pa.Table:
    first, second = np.triu_indices(len(names), k=1)
    pairs = zip(first, second, two_kl, strict=True)
    rows = [{"a": names[i], "b": names[j], "two_kl": float(value)} for i, j, value in pairs]
    return from_rows(rows, MAP_DISTANCES)
