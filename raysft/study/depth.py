"""What happened at each depth of the stack: weight change pooled by layer, intrinsic dimension before and after."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysft.store.schema import IDENTITY
from raysft.study.association import pearson
from raysft.study.cells import Pair
from raysft.study.gains import final_gains, ratio
from raysft.study.schema import INTRINSIC_DIMENSION_BY_DEPTH, LAYER_SIMILARITY, WEIGHT_CHANGE_BY_DEPTH
from raysft.study.tables import Reals, aggregate, from_rows, real_array, reals, texts
from raysft.study.variants import with_final, with_variants

# Models of different heights have no depths in common, so their curves are read off at these.
_SHARED_DEPTHS = np.linspace(0, 1, 11)


@dataclass(frozen=True)
class Profiles:
    """Weight change along the stack: `depths` has shape (d,), every curve of a (variant, pair) too."""

    depths: Reals
    curves: dict[tuple[str, Pair], Reals]


def weight_change_by_depth(weight_change: pa.Table, variants: dict[str, str]) -> pa.Table:
    """Relative change of every layer of every checkpoint, all its tensors pooled, of schema `WEIGHT_CHANGE_BY_DEPTH`.

    Tensors outside the stack (embeddings, final norm, head) have no depth and are left out.
    """
    single = pc.equal(pc.fill_null(weight_change["level"], "tensor"), "tensor")
    placed = pc.and_(pc.is_valid(weight_change["layer"]), pc.is_valid(weight_change["trial"]))
    stack = weight_change.filter(pc.and_(placed, single))
    squared = stack.append_column("change2", real_array(reals(stack, "change_norm") ** 2))
    squared = squared.append_column("base2", real_array(reals(stack, "base_norm") ** 2))
    squared = squared.sort_by([(name, "ascending") for name in [*IDENTITY.names, "layer", "tensor"]])
    keys = [*IDENTITY.names, "layer", "depth"]
    pooled = aggregate(squared, keys, ("change2", "sum"), ("base2", "sum"), ("change2", "count"))
    change, size = np.sqrt(reals(pooled, "change2_sum")), np.sqrt(reals(pooled, "base2_sum"))
    pooled = pooled.append_column("relative_change", real_array(ratio(change, size)))
    pooled = pooled.append_column("tensors", pooled["change2_count"])
    return with_final(with_variants(pooled, variants)).select(WEIGHT_CHANGE_BY_DEPTH.names).cast(WEIGHT_CHANGE_BY_DEPTH)


def at_equal_epochs(gains: pa.Table, by_depth: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Final gains, and weight changes at the same epoch, of those fine-tunings that have both.

    A trial's last probe may have failed where its last scores were taken, or the other way round: the weights of one
    epoch did not make the gain of another.
    """
    final = final_gains(gains)
    known = by_depth.filter(pc.is_valid(by_depth["relative_change"]))
    of_gains, of_changes = _checkpoints(final), _checkpoints(known)
    return (
        final.filter(pc.is_in(of_gains, value_set=pc.unique(of_changes))),
        known.filter(pc.is_in(of_changes, value_set=pc.unique(of_gains))),
    )


def not_at_equal_epochs(gains: pa.Table, by_depth: pa.Table) -> dict[str, str]:
    """What `at_equal_epochs` leaves out of fine-tunings that have gains and weight changes, for people: what -> why."""
    final = final_gains(gains)
    measured = set(texts(final, "trial")) & set(texts(by_depth, "trial"))
    apart = measured - set(texts(at_equal_epochs(gains, by_depth)[0], "trial"))
    what = f"{len(apart)} of {len(measured)} fine-tunings in weight change against gain"
    return {what: "their weights were not measured at the epoch of their last scores"} if apart else {}


def _checkpoints(table: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(table["trial"], pc.cast(table["epoch"], pa.string()), " ")


def depth_profiles(by_depth: pa.Table) -> Profiles:
    """Relative change of each (variant, model, dataset) at depths that all models have, averaged over seeds.

    `by_depth` are rows of `weight_change_by_depth`, of one epoch of each trial. Where the models' layers lie at
    different depths, every curve is interpolated linearly onto eleven equal steps.
    """
    known = pc.is_valid(by_depth["relative_change"])
    keys = ["variant", "model", "dataset", "depth"]
    rows = aggregate(by_depth.filter(known), keys, ("relative_change", "mean")).to_pylist()
    points: dict[tuple[str, Pair], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        points[row["variant"], (row["model"], row["dataset"])].append((row["depth"], row["relative_change_mean"]))
    grids = {tuple(depth for depth, _ in curve) for curve in points.values()}
    depths = np.array(grids.pop()) if len(grids) == 1 else _SHARED_DEPTHS
    curves = {key: _read_off(depths, np.array(curve)) for key, curve in points.items()}
    # A curve that some layers are missing from says nothing of the depths beyond them: the whole of it is left out.
    return Profiles(depths, {key: curve for key, curve in curves.items() if np.isfinite(curve).all()})


def _read_off(depths: Reals, curve: Reals) -> Reals:
    """A curve of shape (layers, 2) at `depths`, NaN beyond its ends."""
    values: Reals = np.interp(depths, curve[:, 0], curve[:, 1], left=np.nan, right=np.nan)
    return values


def layer_similarity_table(by_depth: pa.Table) -> pa.Table:
    """Whether two models move the same layers for the same data, of schema `LAYER_SIMILARITY`.

    At each depth the two models' changes are correlated over the datasets of one variant; with no depth, the models'
    mean curves over depths. `by_depth` is the study's `weight_change_by_depth`.
    """
    profiles = depth_profiles(by_depth.filter(by_depth["final"]))
    rows: list[dict[str, object]] = []
    for variant in sorted({variant for variant, _ in profiles.curves}):
        of: dict[str, dict[str, Reals]] = defaultdict(dict)
        for (which, (model, dataset)), curve in profiles.curves.items():
            if which == variant:
                of[model][dataset] = curve
        for a, b in combinations(sorted(of), 2):
            shared = sorted(set(of[a]) & set(of[b]))
            place = {"variant": variant, "a": a, "b": b}
            if not shared:
                rows.append({**place, "n": 0, "reason": "no dataset that both have"})
                continue
            x, y = (np.array([of[name][dataset] for dataset in shared]) for name in (a, b))
            rows.append({**place, **_correlated(x.mean(axis=0), y.mean(axis=0))})
            rows += [
                {**place, "depth": float(depth), **_correlated(x[:, at], y[:, at])}
                for at, depth in enumerate(profiles.depths)
            ]
    return from_rows(rows, LAYER_SIMILARITY)


def _correlated(x: Reals, y: Reals) -> dict[str, object]:
    r, n, reason = pearson(x, y)
    return {"r": r, "n": n, "reason": reason}


def intrinsic_dimension_by_depth(estimates: pa.Table, variants: dict[str, str]) -> pa.Table:
    """Intrinsic dimension of the same texts in the base model and in the checkpoint, side by side.

    Returns:
        A table of schema `INTRINSIC_DIMENSION_BY_DEPTH`: one row for each checkpoint, texts, estimator, scale and
        layer that the base model has an estimate for too.
    """
    place = ["model", "texts_of", "same_texts", "estimator", "scale", "layer"]
    known = pc.fill_null(estimates["same_texts"], "")  # a join drops nulls
    estimates = estimates.set_column(estimates.column_names.index("same_texts"), "same_texts", known)
    before = estimates.filter(pc.is_null(estimates["trial"])).select([*place, "value", "n"])
    before = before.rename_columns([*place, "before", "base_n"])
    tuned = estimates.filter(pc.is_valid(estimates["trial"]))
    joined = tuned.join(before, keys=place, join_type="inner")
    joined = joined.sort_by([(name, "ascending") for name in [*IDENTITY.names, *place[1:]]])
    joined = joined.append_column("after", joined["value"])
    change = reals(joined, "value") - reals(joined, "before")
    comparable = pc.equal(joined["n"], joined["base_n"]).to_numpy()
    joined = joined.append_column("change", real_array(np.where(comparable, change, np.nan)))
    named = with_final(with_variants(joined, variants))
    return named.select(INTRINSIC_DIMENSION_BY_DEPTH.names).cast(INTRINSIC_DIMENSION_BY_DEPTH)
