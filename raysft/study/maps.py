"""A map of models by how they rate the same texts (Oyama et al. 2025, "Mapping 1,000+ Language Models via the
Log-Likelihood Vector").

l_i holds the total log-probability of each of N texts under model i. The bottom 2% of the pooled matrix are clipped,
rows are centred, then columns; ||q_i - q_j||^2 / N is then about twice the KL divergence per text, for models that are
near each other. Half of it, over the mean bytes of a text and ln 2, is an estimate in bits per byte. Where the texts
are cut off at the bottom depends on which models are there; a threshold that is given freezes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.spatial.distance import pdist, squareform

from raysft.store.schema import IDENTITY
from raysft.study.layouts import Layout, layouts
from raysft.study.schema import MAP, MAP_DISTANCES, MAP_LAYOUTS, TRAJECTORIES
from raysft.study.tables import Reals, from_rows, real_array, reals
from raysft.study.trajectories import trajectory_table
from raysft.study.variants import with_variants

_CLIPPED = 0.02
_SEED = 0


@dataclass(frozen=True)
class ModelMap:
    """The map (schema `MAP`), its distances (`MAP_DISTANCES`), every layout of it (`MAP_LAYOUTS`), the trials' ways
    through it (`TRAJECTORIES`), and which models it had to leave out."""

    points: pa.Table
    distances: pa.Table
    layouts: pa.Table
    trajectories: pa.Table
    skipped: dict[str, str]


def model_map(log_likelihood: pa.Table, variants: dict[str, str], clip_below: float | None = None) -> ModelMap:
    """Base models and checkpoints in two dimensions, by their log-likelihood vectors.

    Only models that have every text take part. Ten or more are laid out by t-SNE, fewer by PCA. `clip_below`, nats,
    stands for the 2% quantile of these models, so that distances compare with those of a map that had it.
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
        points, distances = MAP.empty_table(), MAP_DISTANCES.empty_table()
        return ModelMap(points, distances, MAP_LAYOUTS.empty_table(), TRAJECTORIES.empty_table(), skipped)
    threshold = float(np.quantile(raw, _CLIPPED)) if clip_below is None else clip_below
    named = [name for name, whole in zip(names, complete, strict=True) if whole]
    per_byte = bits_per_byte(1.0, _mean_bytes(log_likelihood))
    return _laid_out(subjects, raw, named, threshold, per_byte, skipped)


def _laid_out(
    subjects: pa.Table, raw: Reals, names: list[str], threshold: float, per_byte: float, skipped: dict[str, str]
) -> ModelMap:
    """The map of models that have every text; `per_byte` is what a `two_kl` of 1 is in bits per byte."""
    vectors = centred(raw, threshold)
    two_kl = pdist(vectors, "sqeuclidean") / raw.shape[1]
    placed = list(layouts(vectors, _SEED))
    main = placed[min(1, len(placed) - 1)]  # t-SNE where there is one
    from_base = _from_base(subjects, squareform(two_kl))
    measured = {
        "texts": pa.array([raw.shape[1]] * len(raw), pa.int64()),
        "clipped_below": real_array(np.full(len(raw), threshold)),
        "mean_log_likelihood": real_array(raw.mean(axis=1)),
        "from_base": real_array(from_base),
        "kl_from_base": real_array(from_base * per_byte),
        "perplexity": real_array(np.full(len(raw), main.scale)),
    }
    return ModelMap(
        _with_places(subjects, main, measured).select(MAP.names).cast(MAP),
        _distance_table(names, two_kl, per_byte),
        pa.concat_tables(_layout_table(subjects, layout) for layout in placed),
        trajectory_table(subjects, vectors),
        skipped,
    )


def bits_per_byte(two_kl: float, mean_bytes: float) -> float:
    """The KL divergence that `two_kl`, nats per text, estimates, in bits per byte of texts of so many bytes each."""
    return two_kl / 2 / mean_bytes / np.log(2)


def _mean_bytes(log_likelihood: pa.Table) -> float:
    """Mean UTF-8 length of the texts; NaN where the table does not know all."""
    texts = log_likelihood.group_by("text", use_threads=False).aggregate([("bytes", "max")])
    return float(reals(texts, "bytes_max").mean()) if texts.num_rows else np.nan


def _with_places(subjects: pa.Table, layout: Layout, more: dict[str, pa.Array]) -> pa.Table:
    columns = {
        "x": real_array(layout.places[:, 0]),
        "y": real_array(layout.places[:, 1]),
        "projection": pa.array([layout.projection] * len(subjects), pa.string()),
        **more,
    }
    for name, values in columns.items():
        subjects = subjects.append_column(name, values)
    return subjects


def _layout_table(subjects: pa.Table, layout: Layout) -> pa.Table:
    how = {
        "scale": real_array(np.full(len(subjects), layout.scale)),
        "projection_seed": pa.array([layout.seed] * len(subjects), pa.int64()),
    }
    return _with_places(subjects, layout, how).select(MAP_LAYOUTS.names).cast(MAP_LAYOUTS)


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


def centred(log_likelihoods: Reals, clip_below: float | None = None) -> Reals:
    """Raise what lies below `clip_below`, or the 2% quantile of the pooled matrix, to it; then subtract row means, then
    column means; shape (models, texts)."""
    threshold = np.quantile(log_likelihoods, _CLIPPED) if clip_below is None else clip_below
    clipped = np.maximum(log_likelihoods, threshold)
    rows = clipped - clipped.mean(axis=1, keepdims=True)
    return rows - rows.mean(axis=0, keepdims=True)


def _from_base(subjects: pa.Table, two_kl: Reals) -> Reals:
    rows = subjects.select(["trial", "model"]).to_pylist()
    base_at = {row["model"]: index for index, row in enumerate(rows) if row["trial"] is None}
    return np.array(
        [two_kl[at, base_at[row["model"]]] if row["model"] in base_at else np.nan for at, row in enumerate(rows)]
    )


def _distance_table(names: list[str], two_kl: Reals, per_byte: float) -> pa.Table:
    first, second = np.triu_indices(len(names), k=1)
    pairs = zip(first, second, two_kl, strict=True)
    rows = [
        {"a": names[i], "b": names[j], "two_kl": float(value), "kl": float(value) * per_byte} for i, j, value in pairs
    ]
    return from_rows(rows, MAP_DISTANCES)
