"""How alike the updates of two trials of one base are: cosines and overlaps of leading directions, from sketches.

A sketch (`raysft/probes/weights/sketches.py`) keeps inner products: the cosine of two updates is that of their
sketches, and that of two whole models comes from the sums of inner products and of squares over the layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysft.study.schema import UPDATE_SIMILARITY, UPDATE_SIMILARITY_MEANS
from raysft.study.tables import Reals, aggregate, real_array
from raysft.study.variants import with_final, with_variants

DIRECTIONS = 4  # kept of each side of a tensor
_SUBJECT = ("trial", "dataset", "variant", "seed")
_NO_LAYER = -1  # of everything outside the stack
_NONE = 1e-6  # of the largest singular value: a direction that is not there

Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class _Trials:
    """Trials of one base and their sketches.

    `subjects`: identities. `sketches`: layer -> (trials, width), zero where a trial did not move it. `excess`: layer ->
    (trials,), 2 / stable rank, by which the variance of a cosine exceeds that of updates of high rank.
    """

    model: str
    subjects: list[dict[str, Any]]
    depths: dict[int, float | None]
    sketches: dict[int, Reals]
    excess: dict[int, Reals]
    tensors: pa.Table


def update_similarity(sketches: pa.Table, variants: dict[str, str]) -> pa.Table:
    """Every pair of trials of one base at their last measured epoch, of schema `UPDATE_SIMILARITY`.

    `sketches` is the sweep's table `weight_sketches`. A cosine is null where one of the two did not move.
    """
    final = with_final(with_variants(sketches, variants))
    final = final.filter(pc.and_(final["final"], pc.is_valid(final["trial"])))
    parts = []
    for model in sorted(set(final["model"].to_pylist())):
        trials = _trials(model, final.filter(pc.equal(final["model"], model)))
        if len(trials.subjects) > 1:
            parts += list(_compared(trials))
    return pa.concat_tables([UPDATE_SIMILARITY.empty_table(), *parts])


def update_similarity_means(pairs: pa.Table) -> pa.Table:
    """Means over pairs of whole updates, of schema `UPDATE_SIMILARITY_MEANS`.

    Dataset by dataset over pairs of the same variant, variant by variant over pairs of the same dataset; a pair of
    equal names is of trials that differ in their seed.
    """
    whole = pairs.filter(pc.and_(pc.is_null(pairs["layer"]), pc.is_valid(pairs["cosine"])))
    found = [UPDATE_SIMILARITY_MEANS.empty_table()]
    for kind, other in (("dataset", "variant"), ("variant", "dataset")):
        same = whole.filter(pc.equal(whole[f"{other}_a"], whole[f"{other}_b"]))
        ours, theirs = same[f"{kind}_a"], same[f"{kind}_b"]
        first = pc.if_else(pc.less_equal(ours, theirs), ours, theirs)
        last = pc.if_else(pc.less_equal(ours, theirs), theirs, ours)
        ordered = same.append_column("a", first).append_column("b", last)
        values = ("cosine", "left_overlap", "right_overlap")
        means = aggregate(ordered, ["a", "b"], *((name, "mean") for name in values), ("cosine", "count"))
        columns = {
            "kind": pa.array([kind] * means.num_rows, pa.string()),
            "a": means["a"],
            "b": means["b"],
            **{name: means[f"{name}_mean"] for name in values},
            "pairs": means["cosine_count"],
        }
        found.append(pa.table(columns).cast(UPDATE_SIMILARITY_MEANS))
    return pa.concat_tables(found)


def _trials(model: str, table: pa.Table) -> _Trials:
    """The trials, sorted by dataset, variant and seed."""
    distinct = table.group_by([*_SUBJECT], use_threads=False).aggregate([])
    order = [("dataset", "ascending"), ("variant", "ascending"), ("seed", "ascending"), ("trial", "ascending")]
    subjects = distinct.sort_by(order).to_pylist()
    at = {subject["trial"]: index for index, subject in enumerate(subjects)}
    pooled = table.filter(pc.is_valid(table["sketch"]))
    pooled = pooled.set_column(pooled.column_names.index("layer"), "layer", pc.fill_null(pooled["layer"], _NO_LAYER))
    width = max(pc.list_value_length(pooled["sketch"]).to_pylist(), default=0)
    depths: dict[int, float | None] = {}
    sketches: dict[int, Reals] = {}
    for row in pooled.select(["trial", "layer", "depth", "sketch"]).to_pylist():
        layer = row["layer"]
        depths[layer] = row["depth"]
        if layer not in sketches:
            sketches[layer] = np.zeros((len(subjects), width))
        sketches[layer][at[row["trial"]]] = row["sketch"]
    tensors = table.filter(pc.is_valid(table["left_directions"]))
    layers = sorted(sketches, key=lambda layer: (layer == _NO_LAYER, layer))
    sketches = {layer: sketches[layer] for layer in layers}
    return _Trials(model, subjects, depths, sketches, _excess(tensors, at, sketches), tensors)


def _excess(tensors: pa.Table, at: dict[str, int], sketches: dict[int, Reals]) -> dict[int, Reals]:
    """2 / stable rank of a layer: of its tensors, weighted by the squares of their shares of the layer's energy."""
    found = {layer: np.zeros(len(at)) for layer in sketches}
    for row in tensors.select(["trial", "layer", "change_norm", "stable_rank"]).to_pylist():
        layer = _NO_LAYER if row["layer"] is None else row["layer"]
        place = at[row["trial"]]
        energy = float((sketches[layer][place] ** 2).sum())
        if energy > 0 and row["stable_rank"]:
            found[layer][place] += 2 / row["stable_rank"] * min(1.0, row["change_norm"] ** 2 / energy) ** 2
    return found


def _compared(trials: _Trials) -> Iterator[pa.Table]:
    """Rows of every pair: of the whole model, then of each layer."""
    first, second = np.triu_indices(len(trials.subjects), k=1)
    pairs = {layer: _Pairs.of(sketch, trials.excess[layer], first, second) for layer, sketch in trials.sketches.items()}
    overlaps = {side: _overlaps(trials, side, first, second) for side in ("left_directions", "right_directions")}
    scopes = [(None, None, list(pairs.values())), *((layer, trials.depths[layer], [pairs[layer]]) for layer in pairs)]
    for layer, depth, members in scopes:
        if layer == _NO_LAYER:
            continue  # it counts for the whole model, and has no place of its own
        cosine, stderr = _cosine(members)
        columns = {
            "model": pa.array([trials.model] * len(first), pa.string()),
            "layer": pa.array([layer] * len(first), pa.int64()),
            "depth": pa.array([depth] * len(first), pa.float64()),
            **_named(trials, "a", first),
            **_named(trials, "b", second),
            "cosine": real_array(cosine),
            "stderr": real_array(stderr),
            "left_overlap": real_array(overlaps["left_directions"].get(layer, np.full(len(first), np.nan))),
            "right_overlap": real_array(overlaps["right_directions"].get(layer, np.full(len(first), np.nan))),
        }
        yield pa.table(columns).select(UPDATE_SIMILARITY.names).cast(UPDATE_SIMILARITY)


def _named(trials: _Trials, which: str, places: Places) -> dict[str, pa.Array]:
    types = {name: UPDATE_SIMILARITY.field(f"{name}_{which}").type for name in _SUBJECT}
    values = {name: pa.array([subject[name] for subject in trials.subjects], types[name]) for name in _SUBJECT}
    return {f"{name}_{which}": values[name].take(pa.array(places)) for name in _SUBJECT}


@dataclass(frozen=True)
class _Pairs:
    """Inner products and squares of the updates of a layer, for every pair; `noise`: variance of a cosine of zero."""

    inner: Reals
    ours: Reals
    theirs: Reals
    noise: Reals

    @classmethod
    def of(cls, sketch: Reals, excess: Reals, first: Places, second: Places) -> _Pairs:
        gram = sketch @ sketch.T
        squares = np.diag(gram)
        noise = (1 + np.maximum(excess[first], excess[second])) / sketch.shape[1]
        return cls(gram[first, second], squares[first], squares[second], noise)


def _cosine(layers: list[_Pairs]) -> tuple[Reals, Reals]:
    """Cosines of updates that consist of layers, and their standard errors by the delta method; NaN where undefined.

    With shares w, a, b of a layer in |X||Y|, |X|^2, |Y|^2 and its own cosine c_l, the layer adds to the variance
    noise (w^2 (1 + c_l^2) + c^2 / 2 (a^2 + b^2 + 2 a b c_l^2) - 2 c c_l w (a + b)): for one layer (1 - c^2)^2 noise.
    """
    ours, theirs = sum(layer.ours for layer in layers), sum(layer.theirs for layer in layers)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.sqrt(ours * theirs)
        cosine = np.clip(sum(layer.inner for layer in layers) / size, -1, 1)
        variance = np.zeros_like(cosine)
        for layer in layers:
            a, b, w = layer.ours / ours, layer.theirs / theirs, np.sqrt(layer.ours * layer.theirs) / size
            own = np.nan_to_num(layer.inner / np.sqrt(layer.ours * layer.theirs))
            spread = w**2 * (1 + own**2) + cosine**2 / 2 * (a**2 + b**2 + 2 * a * b * own**2)
            variance += layer.noise * np.maximum(spread - 2 * cosine * own * w * (a + b), 0)
    return np.asarray(cosine), np.sqrt(variance)


def _overlaps(trials: _Trials, side: str, first: Places, second: Places) -> dict[int | None, Reals]:
    """Mean over the tensors of each layer, and of the model under None, of the overlap of leading directions."""
    by_tensor: dict[tuple[int | None, str], list[tuple[int, list[float]]]] = {}
    rows = trials.tensors.select(["trial", "tensor", "layer", side]).to_pylist()
    at = {subject["trial"]: index for index, subject in enumerate(trials.subjects)}
    for row in rows:
        by_tensor.setdefault((row["layer"], row["tensor"]), []).append((at[row["trial"]], row[side]))
    found: dict[int | None, list[Reals]] = {}
    for (layer, _), entries in sorted(by_tensor.items(), key=lambda item: str(item[0])):
        overlap = _overlap(entries, len(at))[first, second]
        found.setdefault(None, []).append(overlap)
        if layer is not None:
            found.setdefault(layer, []).append(overlap)
    return {layer: _mean(np.array(parts)) for layer, parts in found.items()}


def _overlap(entries: list[tuple[int, list[float]]], count: int) -> Reals:
    """||Q_a^T Q_b||_F^2 / k of a tensor's directions for all trials, (count, count), NaN where one has none.

    Q are orthonormal bases of the sketched directions, k the smaller number of directions. Subspaces without relation
    overlap by K / width in a sketch, K the larger number: that much is taken out, so that they have a mean of about 0,
    and equal ones have 1 (subspace similarity as in Hu et al. 2021, section 7.2).
    """
    values = np.array([value for _, value in entries]).reshape(len(entries), -1, DIRECTIONS)
    left, sizes, _ = np.linalg.svd(values, full_matrices=False)
    there = sizes > _NONE * sizes.max(axis=1, keepdims=True)
    bases = (left * there[:, None, :]).transpose(0, 2, 1).reshape(-1, values.shape[1])
    shared = ((bases @ bases.T) ** 2).reshape(len(entries), DIRECTIONS, len(entries), DIRECTIONS).sum(axis=(1, 3))
    ranks = there.sum(axis=1)
    chance = np.maximum.outer(ranks, ranks) / values.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        overlap = (shared / np.minimum.outer(ranks, ranks) - chance) / (1 - chance)
    places = np.array([place for place, _ in entries])
    found = np.full((count, count), np.nan)
    found[np.ix_(places, places)] = overlap
    return found


def _mean(parts: Reals) -> Reals:
    """Mean over the first axis of what is not NaN."""
    known = np.isfinite(parts)
    count = known.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, parts, 0).sum(axis=0) / np.where(count, count, np.nan))
