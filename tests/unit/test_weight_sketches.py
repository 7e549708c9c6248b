"""Sketches of updates: linear, equal for a product and its factors, and as near to the truth as they say."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from raysft.probes.weights.dense_update import dense_update
from raysft.probes.weights.low_rank import low_rank_update
from raysft.probes.weights.measures import Measured, weight_change_table
from raysft.probes.weights.rows import Layout, TensorRows
from raysft.probes.weights.sketches import WIDTH, DenseSketch, low_rank_sketch, signed_buckets
from raysft.store.schema import TABLES
from raysft.study.updates import update_similarity, update_similarity_means

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
Row = dict[str, Any]


def drawn(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sketched(name: str, update: torch.Tensor, step: int = 64) -> torch.Tensor:
    sketch = DenseSketch(name, update.shape[0], update.shape[1], CPU)
    for low in range(0, len(update), step):
        sketch.add(low, update[low : low + step].float())
    return sketch.result()


def test_buckets_are_the_same_everywhere() -> None:
    buckets, signs = signed_buckets("layers.0.mlp.up_proj.weight rows", 6, WIDTH)
    assert buckets.tolist() == [415, 86, 838, 171, 8, 200]
    assert signs.tolist() == [-1.0, 1.0, -1.0, 1.0, 1.0, 1.0]


def test_buckets_are_spread_evenly() -> None:
    buckets, signs = signed_buckets("x", 200_000, 16)
    assert torch.bincount(buckets, minlength=16).float().std() < 4 * (200_000 / 16) ** 0.5
    assert abs(float(signs.sum())) < 4 * 200_000**0.5
    assert abs(float(signs[:-1] @ signs[1:])) < 4 * 200_000**0.5


@pytest.mark.parametrize("sizes", [(5, 7), (300, 500), (1500, 90), (2000, 40), (700, 1), (1100, 1100)])
def test_the_sketch_of_a_product_is_that_of_its_factors(sizes: tuple[int, int]) -> None:
    b, a = drawn(sizes[0], 3), drawn(3, sizes[1], seed=1)
    torch.testing.assert_close(low_rank_sketch("x", b, a), sketched("x", b @ a), rtol=1e-4, atol=1e-3)


def test_every_entry_goes_where_its_row_and_column_say() -> None:
    update = drawn(70, 30)
    rows, columns = signed_buckets("x rows", 70, WIDTH), signed_buckets("x columns", 30, WIDTH)
    expected = torch.zeros(WIDTH, dtype=torch.float64)
    for i in range(70):
        for j in range(30):
            bucket = int(rows[0][i] + columns[0][j]) % WIDTH
            expected[bucket] += float(rows[1][i] * columns[1][j]) * update[i, j]
    torch.testing.assert_close(sketched("x", update), expected, rtol=1e-5, atol=1e-5)


def test_sketches_are_linear() -> None:
    x, y = drawn(1200, 50), drawn(1200, 50, seed=1)
    together = sketched("x", 2 * x - 3 * y)
    torch.testing.assert_close(together, 2 * sketched("x", x) - 3 * sketched("x", y), rtol=1e-4, atol=1e-4)


def table_of(trials: dict[str, list[Measured]]) -> pa.Table:
    """A `weight_sketches` table of trials of one base, one dataset each."""
    rows: list[Row] = []
    for name, measured in trials.items():
        subject = {"trial": name, "model": "m", "dataset": f"data-{name}", "method": "full", "epochs": 2, "epoch": 2}
        found = weight_change_table(measured, 2).to_pylist()
        rows += [{**subject, **row} for row in found if row["sketch"] or row["left_directions"]]
    schema = TABLES["weight_sketches"]
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)


NAMES = [f"layers.{layer}.mlp.{kind}.weight" for layer in (0, 1) for kind in ("up_proj", "down_proj")]


def measured(updates: dict[str, torch.Tensor], salt: int = 0) -> list[Measured]:
    """Measures of updates of a base; `salt` goes into the names and with them into every hash."""
    found = []
    for name, update in updates.items():
        base = torch.zeros_like(update)
        named = name.replace("mlp", f"mlp{salt}") if salt else name
        rows = [TensorRows(tensor, Layout(tuple(tensor.shape))) for tensor in (base, update)]
        found.append(dense_update(named, rows[0], rows[1], CPU))
    return found


def cosine_of(x: dict[str, torch.Tensor], y: dict[str, torch.Tensor], layer: int | None) -> float:
    chosen = [name for name in x if layer is None or name.startswith(f"layers.{layer}.")]
    inner, ours, theirs = (
        sum(float((a[name] * b[name]).sum()) for name in chosen) for a, b in ((x, y), (x, x), (y, y))
    )
    return inner / math.sqrt(ours * theirs)


KINDS = ("high rank", "rank two", "same directions", "nearly equal")


def pair(kind: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Updates of a model of two layers whose cosines differ by layer."""
    x, y = {}, {}
    for index, name in enumerate(NAMES):
        share = 0.99 if kind == "nearly equal" else 0.8 * index / len(NAMES)
        sizes = (60, 90) if "up" in name else (90, 60)
        if kind in ("high rank", "nearly equal"):
            first, other = drawn(*sizes, seed=index), drawn(*sizes, seed=50 + index)
        else:
            b, a = drawn(sizes[0], 2, seed=index), drawn(2, sizes[1], seed=20 + index)
            c = b if kind == "same directions" else drawn(sizes[0], 2, seed=40 + index)
            first, other = b @ a, c @ drawn(2, sizes[1], seed=60 + index)
        x[name], y[name] = first, share * first + (1 - share**2) ** 0.5 * other
    return x, y


@pytest.mark.parametrize("kind", KINDS)
def test_cosines_are_within_their_standard_errors_over_seeds(kind: str) -> None:
    x, y = pair(kind)
    seeds = range(1, 25)
    errors: dict[int | None, list[float]] = {}
    for salt in seeds:
        for row in update_similarity(table_of({"a": measured(x, salt), "b": measured(y, salt)}), {}).to_pylist():
            errors.setdefault(row["layer"], []).append((row["cosine"] - cosine_of(x, y, row["layer"])) / row["stderr"])
    assert set(errors) == {None, 0, 1}
    for layer, found in errors.items():
        assert max(abs(value) for value in found) < 4, layer
        assert abs(np.mean(found)) < 4 / len(found) ** 0.5, layer
        assert 0.4 < np.std(found) < 1.25, layer  # the stated error is not too small, nor of no use


def test_equal_and_opposite_updates_have_cosines_of_one() -> None:
    x, _ = pair("high rank")
    opposite = {name: -2 * update for name, update in x.items()}
    rows = update_similarity(table_of({"a": measured(x), "b": measured(x), "c": measured(opposite)}), {}).to_pylist()
    found = {(row["trial_a"], row["trial_b"], row["layer"]): row for row in rows}
    assert found["a", "b", None]["cosine"] == pytest.approx(1)
    assert found["a", "c", 1]["cosine"] == pytest.approx(-1)
    assert found["a", "c", None]["stderr"] == pytest.approx(0, abs=1e-6)
    assert found["a", "c", None]["left_overlap"] == pytest.approx(1, abs=1e-4)


def test_overlaps_of_leading_directions_are_near_those_of_the_whole_vectors() -> None:
    name, shared = NAMES[0], 2
    basis = torch.linalg.qr(drawn(400, 6)).Q
    ours, theirs = basis[:, :4], basis[:, [*range(shared), 4, 5]]
    right = torch.linalg.qr(drawn(300, 8, seed=1)).Q
    sizes = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64))
    lefts, rights = [], []
    for salt in range(1, 21):
        x = {name: ours @ sizes @ right[:, :4].T}
        y = {name: theirs @ sizes @ right[:, 4:].T}
        pairs = update_similarity(table_of({"a": measured(x, salt), "b": measured(y, salt)}), {}).to_pylist()
        lefts.append(pairs[0]["left_overlap"])
        rights.append(pairs[0]["right_overlap"])
    assert np.mean(lefts) == pytest.approx(shared / 4, abs=0.04)
    assert np.mean(rights) == pytest.approx(0, abs=0.04)


def test_overlaps_are_means_over_tensors_whichever_trials_have_them() -> None:
    """Tensor by tensor the overlaps are 1 where two trials have the same update, and two trials lack one tensor."""
    x, _ = pair("same directions")
    few = {name: update for name, update in x.items() if name != NAMES[0]}
    table = table_of({"a": measured(x), "b": measured(few), "c": measured(x)})
    alone = table_of({"a": measured({NAMES[1]: x[NAMES[1]]}), "b": measured({NAMES[2]: x[NAMES[2]]})})
    rows = update_similarity(table, {}).to_pylist()
    assert len(rows) == 9
    for row in rows:
        assert (row["left_overlap"], row["right_overlap"]) == pytest.approx((1, 1), abs=1e-4)
    assert {row["left_overlap"] for row in update_similarity(alone, {}).to_pylist()} == {None}


def peak_of(trials: int, tensors: int) -> int:
    """Most bytes that numpy and Python held while so many trials of one base were compared."""
    generator = np.random.default_rng(0)
    common: Row = {"model": "m", "method": "full", "epochs": 1, "epoch": 1, "layer": 0, "change_norm": 1.0}
    rows: list[Row] = []
    for trial in range(trials):
        subject = {**common, "trial": f"{trial}", "dataset": f"{trial}"}
        rows.append({**subject, "level": "layer", "sketch": generator.normal(size=WIDTH)})
        for tensor in range(tensors):
            sides = dict(zip(("left_directions", "right_directions"), generator.normal(size=(2, 128)), strict=True))
            rows.append({**subject, "level": "tensor", "tensor": f"layers.0.{tensor}", **sides})
    schema = TABLES["weight_sketches"]
    table = pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)
    tracemalloc.start()
    try:
        update_similarity(table, {})
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_pairs_times_tensors() -> None:
    trials = 200
    pairs = trials * (trials - 1) // 2
    assert peak_of(trials, 24) - peak_of(trials, 4) < 20 * pairs * 8


def test_lora_and_full_are_compared_where_both_moved() -> None:
    b, a = drawn(60, 4), drawn(4, 90, seed=1)
    lora = [low_rank_update(NAMES[0], a, b, 0.5, 1.0)]
    full = measured({NAMES[0]: 0.5 * b @ a, NAMES[1]: torch.zeros(90, 60, dtype=torch.float64)})
    rows = {row["layer"]: row for row in update_similarity(table_of({"a": lora, "b": full}), {}).to_pylist()}
    assert rows[None]["cosine"] == pytest.approx(1, abs=1e-5)
    assert rows[0]["left_overlap"] == pytest.approx(1, abs=1e-4)
    assert rows[0]["right_overlap"] == pytest.approx(1, abs=1e-4)


def test_what_did_not_move_has_no_cosine() -> None:
    x, _ = pair("high rank")
    still = {name: torch.zeros_like(update) for name, update in x.items()}
    rows = update_similarity(table_of({"a": measured(x), "b": measured(still)}), {}).to_pylist()
    assert [row["cosine"] for row in rows] == [None] * 3


def test_means_are_of_datasets_within_a_variant_and_of_variants_within_a_dataset() -> None:
    x, y = pair("high rank")
    table = table_of({"a": measured(x), "b": measured(y), "c": measured(x)})
    datasets = ["data-a" if name == "data-c" else name for name in table["dataset"].to_pylist()]
    table = table.set_column(table.column_names.index("dataset"), "dataset", pa.array(datasets))
    pairs = update_similarity(table, {"a": "full", "b": "full", "c": "lora"})
    whole = {(row["trial_a"], row["trial_b"]): row["cosine"] for row in pairs.to_pylist() if row["layer"] is None}
    means = {(row["kind"], row["a"], row["b"]): row for row in update_similarity_means(pairs).to_pylist()}
    assert means.keys() == {("dataset", "data-a", "data-b"), ("variant", "full", "lora")}
    assert means["dataset", "data-a", "data-b"]["cosine"] == pytest.approx(whole["a", "b"])
    assert means["variant", "full", "lora"]["cosine"] == pytest.approx(1)


def test_one_trial_or_none_is_compared_with_nothing() -> None:
    x, _ = pair("high rank")
    assert update_similarity(table_of({"a": measured(x)}), {}).num_rows == 0
    assert update_similarity(TABLES["weight_sketches"].empty_table(), {}).num_rows == 0
    assert update_similarity_means(update_similarity(table_of({"a": measured(x)}), {})).num_rows == 0
