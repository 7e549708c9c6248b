"""Estimates of intrinsic dimension: closed forms, known manifolds, scikit-dimension's own numbers, and what may not
change them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import skdim.datasets
import skdim.id

from raysft.probes.geometry.estimators import estimates_of, gride, mle, scales_of_gride, twonn
from raysft.probes.geometry.half_samples import depth_for_halves, intervals, split_tables
from raysft.probes.geometry.intrinsic_dimension import Texts, layer_estimates
from raysft.probes.geometry.neighbours import neighbour_table
from raysft.probes.geometry.spectrum import spectrum_estimates
from raysft.spec.probes import IntrinsicDimensionProbe
from raysft.store.probe_schemas import INTRINSIC_DIMENSION

pytestmark = pytest.mark.invariants

Values = dict[tuple[str, int], float]


def _manifold(points: int = 600, dimension: int = 5, width: int = 48, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    curved = np.tanh(random.normal(size=(points, dimension)) @ random.normal(size=(dimension, width)) / 2)
    return (curved + 3).astype(np.float32)


def _probe(**options: Any) -> IntrinsicDimensionProbe:
    return IntrinsicDimensionProbe(**{"texts": 5000, "neighbours": 40, "half_samples": 0, **options})


def _values(points: np.ndarray, **options: Any) -> Values:
    rows = layer_estimates(points, 0, 4, _probe(**options), Texts("data")).rows
    return {(row["estimator"], row["scale"]): row["value"] for row in rows}


@pytest.mark.parametrize("dimension", [1.0, 3.7, 20.0])
def test_twonn_of_its_own_distribution_is_the_dimension(dimension: float) -> None:
    count = 500
    ratios = (1 - np.arange(1, count) / count) ** (-1 / dimension)
    ratios = np.append(ratios, 1e9)  # the last is infinite, and among the tenth that is left out
    distances = np.stack([np.full(count, 0.3), 0.3 * ratios], axis=1)
    assert twonn(distances[np.random.default_rng(0).permutation(count)]) == pytest.approx(dimension, rel=1e-12)


@pytest.mark.parametrize("dimension", [1.0, 3.7, 20.0])
@pytest.mark.parametrize("k", [2, 20, 100])
def test_mle_of_a_growing_ball_is_its_closed_form(dimension: float, k: int) -> None:
    distances = np.tile((np.arange(1, k + 1) / k) ** (1 / dimension), (7, 1)) * np.arange(1, 8)[:, None]
    expected = dimension * (k - 1) / np.log(k / np.arange(1, k)).sum()
    assert mle(distances) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 8, 32])
def test_gride_finds_the_dimension_of_a_poisson_process(order: int) -> None:
    random = np.random.default_rng(order)
    volumes = np.cumsum(random.exponential(size=(20000, 2 * order)), axis=1)  # of balls that reach the neighbours
    estimate = gride(volumes ** (1 / 6.5), order)
    assert estimate == pytest.approx(6.5, abs=5 * 6.5 / np.sqrt(20000))


@pytest.mark.parametrize(("dimension", "expected"), [(2, 2.04), (5, 4.72), (10, 9.41), (20, 16.59)])
def test_twonn_of_balls_is_what_it_is_known_to_be(dimension: int, expected: float) -> None:
    ball = skdim.datasets.hyperBall(5000, dimension, random_state=0)
    assert twonn(neighbour_table(ball, 2).distances) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("neighbours", [5, 40, 64])
def test_the_numbers_are_scikit_dimensions(neighbours: int, dtype: type[np.floating]) -> None:
    points = _manifold().astype(dtype)
    wide = points.astype(np.float64)
    values = _values(points, neighbours=neighbours, mle_neighbours=neighbours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert values["twonn", 2] == pytest.approx(skdim.id.TwoNN().fit(wide).dimension_, rel=1e-6)
        own = skdim.id.MLE().fit(wide, n_neighbors=neighbours, comb="mle").dimension_
        assert values["mle", neighbours] == pytest.approx(own, rel=1e-6)
        curve = skdim.id.GRIDE(multiscale=True, range_max=neighbours).fit(wide)
    assert [2 * order for order in scales_of_gride(neighbours)] == (2 * curve.scales_).tolist()
    for order, expected in zip(curve.scales_, curve.dimension_scales_, strict=True):
        assert values["gride", 2 * int(order)] == pytest.approx(expected, rel=1e-6)


def test_scikit_dimension_reads_the_table_to_the_same_numbers() -> None:
    points = _manifold()
    table = neighbour_table(points, 30)
    local = skdim.id.MLE().fit(points, precomputed_knn_arrays=(table.distances, table.indices), comb="mle")
    assert mle(table.distances) == pytest.approx(local.dimension_, rel=1e-12)
    two = skdim.id.TwoNN(dist=True).fit(table.distances[:, :2])
    assert twonn(table.distances) == pytest.approx(two.dimension_, rel=1e-12)


def _rotated(points: np.ndarray) -> np.ndarray:
    random = np.random.default_rng(5)
    rotation, _ = np.linalg.qr(random.normal(size=(points.shape[1], points.shape[1])))
    return points @ rotation


CHANGES = {
    "rotation": _rotated,
    "scale": lambda points: points * 1e-7,
    "shift": lambda points: points - 50.0,
    "order of texts": lambda points: points[np.random.default_rng(6).permutation(len(points))],
}


@pytest.mark.parametrize("change", CHANGES)
def test_estimates_do_not_depend_on(change: str) -> None:
    points = _manifold().astype(np.float64)
    before, after = _values(points), _values(CHANGES[change](points))
    assert before.keys() == after.keys()
    for place, value in before.items():
        assert after[place] == pytest.approx(value, rel=1e-8), place


def test_equal_directions_count_as_many_and_uneven_ones_as_fewer() -> None:
    cross = np.concatenate([np.eye(7), -np.eye(7)])  # covariance: 7 equal eigenvalues
    for points in (cross, np.pad(cross, ((0, 0), (0, 30)))):  # the second has more entries than points
        estimates = spectrum_estimates(points)
        assert estimates["participation_ratio"] == pytest.approx(7)
        assert estimates["effective_rank"] == pytest.approx(7)
    uneven = spectrum_estimates(cross * np.sqrt([3, 1, 0, 0, 0, 0, 0]))
    assert uneven["participation_ratio"] == pytest.approx(16 / 10)
    assert uneven["effective_rank"] == pytest.approx(4 / 3**0.75)  # exp of the entropy of (3/4, 1/4)


def test_repeated_states_are_taken_once_and_counted() -> None:
    points = _manifold()
    repeated = np.concatenate([points, points[:50], points[:10]])
    repeated[605, 3] *= 1  # still the same
    plain = layer_estimates(points, 2, 4, _probe(), Texts("data"))
    counted = layer_estimates(repeated, 2, 4, _probe(), Texts("data", repeated=7))
    assert [row["value"] for row in counted.rows] == [row["value"] for row in plain.rows]
    assert {row["duplicates"] for row in counted.rows} == {67}
    assert {(row["n"], row["layer"], row["depth"], row["texts_of"]) for row in counted.rows} == {(600, 2, 0.5, "data")}


def test_zero_and_minus_zero_are_one_state() -> None:
    points = _manifold()
    points[:, 0] = 0.0
    twin = points[:1].copy()
    twin[0, 0] = -0.0
    rows = layer_estimates(np.concatenate([points, twin]), 0, 4, _probe(), Texts("data")).rows
    assert {row["duplicates"] for row in rows} == {1}


def test_neighbours_are_told_by_text() -> None:
    points = _manifold()
    repeated = np.concatenate([points[:3], points[:3], points[3:]])
    found = layer_estimates(repeated, 0, 4, _probe(), Texts("data")).neighbours
    texts, nearest = found.by_text()
    assert texts.tolist() == [0, 1, 2, *range(6, 603)]
    plain = neighbour_table(points, 40).indices
    assert np.array_equal(nearest, np.where(plain < 3, plain, plain + 3))


@pytest.mark.parametrize("order", [1, 4])
def test_the_tables_of_halves_are_those_of_their_points(order: int) -> None:
    points = _manifold(401)
    table = neighbour_table(points, depth_for_halves(2 * order))
    random = np.random.default_rng(3)
    for first, second in split_tables(table, 4, 3, 2 * order):
        chosen = random.permutation(401)
        for read, rows in ((first, np.sort(chosen[:200])), (second, np.sort(chosen[200:]))):
            assert np.array_equal(read, neighbour_table(points[rows], 2 * order).distances)


def test_rows_that_the_table_does_not_tell_are_left_out() -> None:
    points = _manifold(400)
    shallow, deep = neighbour_table(points, 18), neighbour_table(points, 399)
    pairs = zip(split_tables(shallow, 3, 0, 8), split_tables(deep, 3, 0, 8), strict=True)
    for read, whole in (halves for split in pairs for halves in zip(*split, strict=True)):
        known = np.isfinite(read[:, 7])
        assert 0 < known.sum() < 200  # or the test tests nothing
        assert np.array_equal(read[known], whole[known])
        assert estimates_of(read, 8, 8)["gride", 8] == gride(whole[known], 4)


def test_intervals_are_as_wide_as_estimates_spread_on_other_points() -> None:
    """Standard errors from halves of one sample, beside the spread over samples drawn anew, for every estimator."""
    values: dict[tuple[str, int], list[float]] = {}
    errors: dict[tuple[str, int], list[float]] = {}
    for seed in range(40):
        points = np.random.default_rng(seed).normal(size=(600, 5))
        table = neighbour_table(points, depth_for_halves(32))
        estimates = estimates_of(table.distances, 32, 20)
        for place, (low, high) in intervals(table, estimates, 32, 20, 20, seed).items():
            values.setdefault(place, []).append(estimates[place])
            errors.setdefault(place, []).append((high - low) / (2 * 1.959964))
            assert low < estimates[place] < high
    for place, found in values.items():
        assert 0.7 < np.mean(errors[place]) / np.std(found, ddof=1) < 1.4, place


def test_an_interval_that_the_halves_do_not_tell_is_none() -> None:
    """Halves of 55 points have no neighbour number 64: Gride at that scale has a value and no interval."""
    rows = layer_estimates(_manifold(110), 0, 4, _probe(neighbours=100, half_samples=4), Texts("data")).rows
    (row,) = (row for row in rows if (row["estimator"], row["scale"]) == ("gride", 64))
    assert row["value"] is not None
    assert row["low"] is row["high"] is None


def test_no_distances_and_equal_ones_have_no_mle() -> None:
    assert np.isnan(mle(np.ones((5, 4))))
    assert np.isnan(mle(np.empty((0, 4))))


def test_intervals_come_with_the_estimates_that_have_them() -> None:
    rows = layer_estimates(_manifold(), 0, 4, _probe(half_samples=8), Texts("data")).rows
    again = layer_estimates(_manifold(), 0, 4, _probe(half_samples=8), Texts("data")).rows
    other = layer_estimates(_manifold(), 0, 4, _probe(half_samples=8, seed=1), Texts("data")).rows
    assert rows == again
    assert rows != other
    for row in rows:
        if row["scale"]:
            assert row["low"] < row["value"] < row["high"]
        else:
            assert "low" not in row
    assert [row["value"] for row in rows] == [row["value"] for row in other]


def test_further_estimators_see_the_same_sample() -> None:
    points = _manifold()
    options = {"estimators": ("lPCA", "CorrInt"), "sample": 200, "seed": 4}
    rows = {row["estimator"]: row for row in layer_estimates(points, 0, 4, _probe(**options), Texts("data")).rows}
    chosen = np.sort(np.random.default_rng(4).permutation(len(points))[:200])
    sample = points[chosen].astype(np.float64)
    sample -= sample.mean(axis=0)
    assert rows["lPCA"]["value"] == pytest.approx(skdim.id.lPCA().fit(sample).dimension_)
    assert rows["CorrInt"]["value"] == pytest.approx(skdim.id.CorrInt().fit(sample).dimension_, rel=1e-9)
    assert rows["participation_ratio"]["value"] == spectrum_estimates(sample)["participation_ratio"]
    assert [rows[name]["n"] for name in ("lPCA", "effective_rank", "twonn")] == [200, 200, 600]


def test_further_estimators_by_name_give_numbers() -> None:
    valid = ("lPCA", "CorrInt", "MOM", "TLE", "MADA", "KNN", "MiND_ML")
    rows = layer_estimates(_manifold(300, 3, 12), 0, 4, _probe(estimators=valid, sample=150), Texts("data")).rows
    found = {row["estimator"]: row["value"] for row in rows}
    assert all(0 < found[name] < 12 for name in valid), found


def test_an_estimator_that_fails_is_named_with_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, points: np.ndarray) -> None:
        raise np.linalg.LinAlgError("SVD did not\n converge")

    monkeypatch.setattr(skdim.id.lPCA, "fit", refuse)
    with pytest.raises(ValueError, match=r"^layer 3: scikit-dimension's lPCA on 20 points: SVD did not converge$"):
        layer_estimates(_manifold(), 3, 4, _probe(estimators=("lPCA",), sample=20), Texts("data"))


def _with(place: tuple[int, int], value: float) -> np.ndarray:
    points = _manifold()
    points[place] = value
    return points


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (
            _with((5, 0), np.nan),
            "layer 3: hidden states of 1 of 600 texts are not all finite, the first of them text 6 of data",
        ),
        (
            _with((9, 1), np.inf),
            "layer 3: hidden states of 1 of 600 texts are not all finite, the first of them text 10 of data",
        ),
        (np.ones((600, 4), np.float32), "layer 3: 1 distinct states among 600 texts, 42 are needed for 40 neighbours"),
        (_manifold(41), "layer 3: 41 distinct states among 41 texts, 42 are needed for 40 neighbours"),
    ],
)
def test_a_layer_that_has_no_estimate_is_one_line(points: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        layer_estimates(points, 3, 4, _probe(), Texts("data"))


def test_an_error_names_the_text_by_its_place_in_the_data() -> None:
    texts = Texts("data", places=range(100, 700))
    with pytest.raises(ValueError, match=r"the first of them text 106 of data$"):
        layer_estimates(_with((5, 0), np.nan), 3, 4, _probe(), texts)


def test_two_texts_that_coincide_in_one_layer_leave_the_others_of_the_sample() -> None:
    """The spectrum is of a sample, before and after; an order of the distinct points alone would draw another one."""
    points = _manifold()
    twins = points.copy()
    twins[7] = twins[3]
    options = {"sample": 200, "neighbours": 5}
    order = np.random.default_rng(_probe(**options).seed).permutation(len(points))
    assert 7 not in order[:200]
    names = ("participation_ratio", "effective_rank")
    before, after = _values(points, **options), _values(twins, **options)
    assert [after[name, 0] for name in names] == [before[name, 0] for name in names]


def test_rows_fill_the_schema() -> None:
    rows = layer_estimates(_manifold(), 3, 4, _probe(half_samples=2, estimators=("KNN",)), Texts("data", same="x")).rows
    assert set().union(*rows) == set(INTRINSIC_DIMENSION.names)
    table = pa.Table.from_pylist(rows, schema=INTRINSIC_DIMENSION)
    assert {name for name in table.column_names if table[name].null_count} == {"low", "high"}
    places = list(zip(table["estimator"].to_pylist(), table["scale"].to_pylist(), strict=True))
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"estimators": ["lpca"]}, r"no further estimator 'lpca' in scikit-dimension; valid: CorrInt, DANCo, .*lPCA"),
        ({"estimators": ["TwoNN"]}, r"no further estimator 'TwoNN'"),
        ({"estimators": ["KNN", "KNN"]}, "named twice"),
        ({"mle_neighbours": 41}, "mle_neighbours must be at most neighbours, found 41 and 40"),
        ({"overlap_neighbours": 41}, "overlap_neighbours must be at most neighbours, found 41 and 40"),
    ],
)
def test_a_probe_that_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _probe(**options)


def test_the_identity_holds_what_changes_numbers() -> None:
    base = _probe(half_samples=4)
    assert _probe(half_samples=4, mle_neighbours=20, batch_size=3).estimates_identity == base.estimates_identity
    changes: list[dict[str, Any]] = [{"neighbours": 50}, {"mle_neighbours": 7}, {"half_samples": 6}, {"seed": 1}]
    changes += [{"estimators": ("KNN",)}, {"sample": 30}]
    found = [_probe(**{"half_samples": 4, **change}).estimates_identity for change in changes]
    assert all(identity != base.estimates_identity for identity in found)
