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
Singles = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Trials:
    """Trials of one base and their sketches.

    `subjects`: identities. `sketches`: layer -> (trials, width), zero where a trial did not move it. `excess`: layer ->
    (trials,), 2 / stable rank, by which the variance of a cosine exceeds that of updates of high rank.
    """

    model: str
    subjects: list[dict[str, Any]]
    depths: dict[int, float | None]
    sketches: dict[int, Singles]
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
    values = _rows(pooled["sketch"])
    depths: dict[int, float | None] = {}
    sketches: dict[int, Singles] = {}
    for index, row in enumerate(pooled.select(["trial", "layer", "depth"]).to_pylist()):
        layer = row["layer"]
        depths[layer] = row["depth"]
        if layer not in sketches:
            sketches[layer] = np.zeros((len(subjects), values.shape[1]), np.float32)
        sketches[layer][at[row["trial"]]] = values[index]
    tensors = table.filter(pc.is_valid(table["left_directions"]))
    layers = sorted(sketches, key=lambda layer: (layer == _NO_LAYER, layer))
    sketches = {layer: sketches[layer] for layer in layers}
    return _Trials(model, subjects, depths, sketches, _excess(tensors, at, sketches), tensors)


def _rows(lists: pa.ChunkedArray) -> Singles:
    """Lists of equal length, none of them null, as the rows of a matrix."""
    return np.asarray(lists.combine_chunks().flatten(), dtype=np.float32).reshape(len(lists), -1 if len(lists) else 0)


def _excess(tensors: pa.Table, at: dict[str, int], sketches: dict[int, Singles]) -> dict[int, Reals]:
    """2 / stable rank of a layer: of its tensors, weighted by the squares of their shares of the layer's energy."""
    found = {layer: np.zeros(len(at)) for layer in sketches}
    energies = {layer: (sketch.astype(np.float64) ** 2).sum(axis=1) for layer, sketch in sketches.items()}
    for row in tensors.select(["trial", "layer", "change_norm", "stable_rank"]).to_pylist():
        layer = _NO_LAYER if row["layer"] is None else row["layer"]
        place = at[row["trial"]]
        energy = energies[layer][place]
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
    def of(cls, sketch: Singles, excess: Reals, first: Places, second: Places) -> _Pairs:
        wide = sketch.astype(np.float64)
        gram = wide @ wide.T
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
    """Mean over the tensors of each layer, and of the model under None, of the overlap of leading directions.

    They are added up as they come: all at once would be pairs x tensors.
    """
    values = _rows(trials.tensors[side])
    at = {subject["trial"]: index for index, subject in enumerate(trials.subjects)}
    by_tensor: dict[tuple[int | None, str], list[tuple[int, int]]] = {}
    for index, row in enumerate(trials.tensors.select(["trial", "tensor", "layer"]).to_pylist()):
        by_tensor.setdefault((row["layer"], row["tensor"]), []).append((at[row["trial"]], index))
    found: dict[int | None, _Mean] = {}
    for (layer, _), entries in sorted(by_tensor.items(), key=lambda item: str(item[0])):
        places, indices = np.array(entries).T
        overlap = _overlap(values[indices], places, len(at))[first, second]
        for scope in {None, layer}:
            found.setdefault(scope, _Mean(len(first))).add(overlap)
    return {scope: mean.result() for scope, mean in found.items()}


def _overlap(directions: Singles, places: Places, count: int) -> Reals:
    """||Q_a^T Q_b||_F^2 / k of a tensor's directions for all trials, (count, count), NaN where one has none.

    `directions` are those of the trials at `places`, a row for each.

    Q are orthonormal bases of the sketched directions, k the smaller number of directions. Subspaces without relation
    overlap by K / width in a sketch, K the larger number: that much is taken out, so that they have a mean of about 0,
    and equal ones have 1 (subspace similarity as in Hu et al. 2021, section 7.2).
    """
    values = directions.astype(np.float64).reshape(len(places), -1, DIRECTIONS)
    left, sizes, _ = np.linalg.svd(values, full_matrices=False)
    there = sizes > _NONE * sizes.max(axis=1, keepdims=True)
    bases = left * there[:, None, :]
    projections = (bases @ bases.transpose(0, 2, 1)).reshape(len(places), -1)
    shared = projections @ projections.T  # ||Q_a^T Q_b||_F^2 = tr (Q_a Q_a^T Q_b Q_b^T)
    ranks = there.sum(axis=1)
    chance = np.maximum.outer(ranks, ranks) / values.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        overlap = (shared / np.minimum.outer(ranks, ranks) - chance) / (1 - chance)
    found = np.full((count, count), np.nan)
    found[np.ix_(places, places)] = overlap
    return found


class _Mean:
    """Running mean, entry by entry, of what is not NaN."""

    def __init__(self, size: int) -> None:
        self._total = np.zeros(size)
        self._count = np.zeros(size)

    def add(self, values: Reals) -> None:
        known = np.isfinite(values)
        self._total += np.where(known, values, 0)
        self._count += known

    def result(self) -> Reals:
        """The means; NaN where nothing was known."""
        return self._total / np.where(self._count > 0, self._count, np.nan)
