"""Maps of models: the KL estimate beside exact KL, ways through epochs with known answers, layouts that repeat."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raysft.store.schema import TABLES
from raysft.study.correlate import dataset_properties, task_similarities
from raysft.study.layouts import layouts
from raysft.study.maps import ModelMap, centred, model_map

pytestmark = pytest.mark.unit

SYMBOLS, LENGTH, TEXTS, BYTES = 40, 25, 6000, 100


def _table(vectors: dict[Any, np.ndarray], sizes: int | None = BYTES) -> pa.Table:
    """Log-likelihoods of subjects: a base by its name, a checkpoint as (base, trial, epoch)."""
    rows = []
    for who, values in vectors.items():
        subject: dict[str, Any] = {"model": who, "epoch": 0}
        if isinstance(who, tuple):
            subject = {"model": who[0], "trial": who[1], "epoch": who[2], "dataset": "d", "method": "full", "seed": 0}
        rows += [
            {**subject, "text": text, "log_likelihood": float(value), "bytes": sizes}
            for text, value in enumerate(values)
        ]
    return pa.Table.from_pylist(rows, schema=TABLES["log_likelihood"])


def _categorical(count: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Distributions near each other (models, symbols), and log-likelihoods under them of texts of the first one."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 1, SYMBOLS) + spread * random.normal(0, 1, (count, SYMBOLS))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    drawn = random.multinomial(LENGTH, shares[0], TEXTS)
    return shares, np.log(shares) @ drawn.T


def test_distances_are_twice_the_kl_of_categorical_models() -> None:
    """Exact KL of texts of 25 symbols, drawn from one of the models, to the error of 6,000 texts."""
    shares, vectors = _categorical(4, 0.05)
    names = "abcd"
    found = model_map(_table(dict(zip(names, vectors, strict=True))), {}, clip_below=-np.inf)
    for row in found.distances.to_pylist():
        p, q = shares[names.index(row["a"])], shares[names.index(row["b"])]
        exact = LENGTH * float((p * np.log(p / q)).sum())
        assert row["two_kl"] / 2 == pytest.approx(exact, rel=0.12)
        assert row["kl"] == pytest.approx(row["two_kl"] / 2 / BYTES / np.log(2), rel=1e-12)


def test_the_estimate_closes_in_on_the_exact_kl_as_models_come_nearer() -> None:
    errors = []
    for spread in (0.6, 0.05):
        shares, vectors = _categorical(2, spread)
        [row] = model_map(_table({"a": vectors[0], "b": vectors[1]}), {}, clip_below=-np.inf).distances.to_pylist()
        exact = LENGTH * float((shares[0] * np.log(shares[0] / shares[1])).sum())
        errors.append(abs(row["two_kl"] / 2 / exact - 1))
    assert errors[1] < 0.05 < errors[0]


def test_a_threshold_that_is_given_freezes_distances() -> None:
    """Another model that rates all texts worse moves the 2% quantile, and with it every distance."""
    random = np.random.default_rng(1)
    first = {name: random.normal(-50, 10, 200) for name in "ab"}
    more = {**first, "c": random.normal(-90, 10, 200)}
    alone, together = (model_map(_table(vectors), {}) for vectors in (first, more))
    threshold = alone.points["clipped_below"][0].as_py()
    assert threshold == pytest.approx(np.quantile(np.stack(list(first.values())), 0.02))
    frozen = model_map(_table(more), {}, clip_below=threshold)
    assert _distance(together) != pytest.approx(_distance(alone), rel=1e-3)
    assert _distance(frozen) == pytest.approx(_distance(alone), rel=1e-12)
    assert set(frozen.points["clipped_below"].to_pylist()) == {threshold}


def _distance(found: ModelMap) -> float:
    [value] = [row["two_kl"] for row in found.distances.to_pylist() if (row["a"], row["b"]) == ("a", "b")]
    return float(value)


def test_without_lengths_of_texts_there_are_no_bits_per_byte() -> None:
    random = np.random.default_rng(2)
    found = model_map(_table({name: random.normal(-50, 1, 30) for name in "ab"}, sizes=None), {})
    [row] = found.distances.to_pylist()
    assert row["kl"] is None
    assert row["two_kl"] > 0
    assert found.points["kl_from_base"].to_pylist() == [None, None]


# ways


def _way(*steps: tuple[float, float]) -> ModelMap:
    """A trial that leaves its base by these steps in a plane of texts: two directions of length sqrt(texts)."""
    texts = 8
    plane = np.array([[1, -1] * 4, [1, 1, -1, -1] * 2], dtype=float)
    places = np.vstack([[0, 0], np.cumsum(steps, axis=0)]) @ plane - 50
    epochs = [0, *(2 ** (number + 1) for number in range(len(steps)))]
    vectors: dict[Any, np.ndarray] = {
        ("m", "t", epoch) if epoch else "m": place for epoch, place in zip(epochs, places, strict=True)
    }
    assert places.shape[1] == texts
    return model_map(_table(vectors), {"t": "full"}, clip_below=-np.inf)


def test_steps_of_a_known_way() -> None:
    """One to the right, one up, one back to the left."""
    rows = _way((1, 0), (0, 1), (-1, 0)).trajectories.to_pylist()
    assert [(row["from_epoch"], row["epoch"]) for row in rows] == [(0, 2), (2, 4), (4, 8)]
    assert [row["two_kl"] for row in rows] == pytest.approx([1, 1, 1])
    assert [row["from_start"] for row in rows] == pytest.approx([1, 2, 1])
    assert rows[0]["cosine_to_previous"] is None
    assert [row["cosine_to_previous"] for row in rows[1:]] == pytest.approx([0, 0], abs=1e-12)
    assert [row["cosine_to_total"] for row in rows] == pytest.approx([0, 1, 0], abs=1e-12)
    assert [row["straightness"] for row in rows] == pytest.approx([1, np.sqrt(2) / 2, 1 / 3])
    assert {(row["trial"], row["model"], row["variant"]) for row in rows} == {("t", "m", "full")}


def test_a_straight_way_and_one_that_stands_still() -> None:
    straight = _way((1, 2), (0.5, 1), (2, 4)).trajectories.to_pylist()
    assert [row["straightness"] for row in straight] == pytest.approx([1, 1, 1])
    assert [row["cosine_to_previous"] for row in straight[1:]] == pytest.approx([1, 1])
    still = _way((0, 0), (1, 0)).trajectories.to_pylist()
    assert [row["two_kl"] for row in still] == pytest.approx([0, 1])
    assert (still[0]["cosine_to_total"], still[0]["straightness"], still[1]["cosine_to_previous"]) == (None, None, None)


def test_a_trial_whose_base_is_not_there_starts_at_its_first_epoch() -> None:
    random = np.random.default_rng(3)
    vectors: dict[Any, np.ndarray] = {("m", "t", epoch): random.normal(-50, 1, 30) for epoch in (3, 1, 2)}
    rows = model_map(_table(vectors), {}).trajectories.to_pylist()
    assert [(row["from_epoch"], row["epoch"]) for row in rows] == [(1, 2), (2, 3)]


# layouts


def _clusters() -> np.ndarray:
    """Three groups of eight vectors, far from each other."""
    random = np.random.default_rng(4)
    centres = 20 * random.normal(0, 1, (3, 50))
    return centred(np.repeat(centres, 8, axis=0) + random.normal(0, 1, (24, 50)), -np.inf)


@pytest.mark.parametrize("projection", ["pca", "tsne", "umap"])
def test_layouts_repeat_and_keep_groups_together(projection: str) -> None:
    if projection == "umap":
        pytest.importorskip("umap")
    first, again = (
        next(layout for layout in layouts(_clusters(), seed=5) if layout.projection == projection) for _ in range(2)
    )
    assert np.array_equal(first.places, again.places)
    assert first.seed == (None if projection == "pca" else 5)
    groups = first.places.reshape(3, 8, 2)
    inside = np.linalg.norm(groups - groups.mean(axis=1, keepdims=True), axis=2).max()
    middles = groups.mean(axis=1)
    between = min(np.linalg.norm(middles[i] - middles[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert between > 2 * inside


def test_few_or_equal_vectors_have_principal_components_alone() -> None:
    vectors = _clusters()
    assert [layout.projection for layout in layouts(vectors[:9], 0)] == ["pca"]
    assert [layout.projection for layout in layouts(np.zeros((20, 5)), 0)] == ["pca"]
    found = model_map(_table({f"m{index:02d}": vector for index, vector in enumerate(vectors - 50)}), {})
    by_projection = {row["projection"] for row in found.layouts.to_pylist()}
    assert {"pca", "tsne"} <= by_projection <= {"pca", "tsne", "umap"}
    tsne = [row for row in found.layouts.to_pylist() if row["projection"] == "tsne"]
    assert [(row["x"], row["y"]) for row in tsne] == list(
        zip(found.points["x"].to_pylist(), found.points["y"].to_pylist(), strict=True)
    )


# properties of data


def test_what_no_model_enters_is_every_models_and_spreads_are_no_predictors() -> None:
    rows: list[dict[str, Any]] = [
        {"model": "a", "dataset": "d", "property": "response_tokens", "value": 3.0},
        {"model": "a", "dataset": "d", "property": "response_tokens", "statistic": "q05", "value": 1.0},
        {"model": "b", "dataset": "d", "property": "response_tokens", "value": 4.0},
        {"model": None, "dataset": "d", "property": "response_words", "value": 7.0},
        {"model": None, "dataset": "d", "property": "response_mattr_100", "value": None},
        {"model": "a", "dataset": "d", "property": "similarity", "about": "t", "layer": 2, "value": 0.5},
        {"model": "a", "dataset": "d", "property": "similarity_by_layer", "about": "t", "layer": 0, "value": 0.9},
        {"model": None, "dataset": "d", "property": "sentence_similarity", "about": "t", "value": 0.7},
    ]
    table = pa.Table.from_pylist(rows, schema=TABLES["data_properties"])
    assert dataset_properties(table) == {
        "response_tokens": {("a", "d"): 3.0, ("b", "d"): 4.0},
        "response_words": {("a", "d"): 7.0, ("b", "d"): 7.0},
    }
    assert task_similarities(table) == {("a", "d", "t"): 0.5}
