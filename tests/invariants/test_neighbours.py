"""The exact neighbour table against plain fp64 arithmetic, on data that single precision cannot tell apart too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysft.probes.geometry import neighbour_kernels
from raysft.probes.geometry.neighbours import Neighbours, neighbour_table, neighbourhood_overlap
from raysft.probes.geometry.neighbours_on_device import table_on_device

pytestmark = pytest.mark.invariants


def _plain(points: np.ndarray, k: int) -> Neighbours:
    """The table by its definition: all differences in fp64, a stable sort."""
    wide = points.astype(np.float64)
    squares = np.stack([((wide - point) ** 2).sum(axis=1) for point in wide])
    np.fill_diagonal(squares, np.inf)
    indices = np.argsort(squares, axis=1, kind="stable")[:, :k].astype(np.int32)
    return Neighbours(indices, np.sqrt(np.take_along_axis(squares, indices, axis=1)))


def _manifold(points: int, dimension: int, width: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(points, dimension)) @ random.normal(size=(dimension, width))


def _hard(name: str) -> np.ndarray:
    """Points (n, width) fp32, of one kind that makes products in single precision useless, or nearly."""
    random = np.random.default_rng(1)
    if name == "a huge offset":
        return (_manifold(700, 5, 40) + 1e5).astype(np.float32)
    if name == "tight clusters far apart":
        centres = 1e4 * random.normal(size=(3, 40))
        return (centres[np.arange(700) % 3] + 1e-2 * random.normal(size=(700, 40))).astype(np.float32)
    if name == "one entry that dwarfs all others":
        points = _manifold(700, 5, 40)
        points[:, 7] = 1e5 * random.normal(size=700).round(1)
        return points.astype(np.float32)
    if name == "one point far from all":
        points = _manifold(700, 5, 40)
        points[350] = 1e12
        return points.astype(np.float32)
    assert name == "very small numbers"
    return (1e-30 * _manifold(700, 5, 40)).astype(np.float32)


HARD = (
    "a huge offset",
    "tight clusters far apart",
    "one entry that dwarfs all others",
    "one point far from all",
    "very small numbers",
)


def _assert_same(found: Neighbours, expected: Neighbours) -> None:
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-13)
    differ = found.indices != expected.indices
    if differ.any():  # only where two distances are so near that the order of their sums decides
        rows = np.nonzero(differ.any(axis=1))[0]
        gaps = np.diff(expected.distances[rows], axis=1) / expected.distances[rows, 1:]
        assert (gaps.min(axis=1) < 1e-13).all()


@given(
    points=st.integers(2, 90).flatmap(
        lambda rows: st.tuples(st.just(rows), st.integers(1, 9)).flatmap(
            lambda shape: st.lists(st.integers(-4, 4), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
                lambda entries: np.array(entries, np.float32).reshape(shape)
            )
        )
    ),
    share=st.floats(0, 1),
    block=st.sampled_from([1, 7, 64, 1024]),
)
@settings(max_examples=60, deadline=None)
def test_integers_give_the_table_of_the_definition_ties_and_all(points: np.ndarray, share: float, block: int) -> None:
    k = 1 + round(share * (len(points) - 2))
    found, expected = neighbour_table(points, k, block=block), _plain(points, k)
    assert np.array_equal(found.indices, expected.indices)
    assert np.array_equal(found.distances, expected.distances)


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("block", [97, 1024])
def test_what_fp32_cannot_tell_apart_is_told_apart(name: str, block: int) -> None:
    points = _hard(name)
    _assert_same(neighbour_table(points, 20, block=block), _plain(points, 20))


@pytest.mark.parametrize("name", HARD)
def test_the_table_of_a_device_is_the_same(name: str) -> None:
    points = _hard(name)
    _assert_same(Neighbours(*table_on_device(points, 20, "cpu")), _plain(points, 20))


def test_the_block_changes_no_bit() -> None:
    points = np.concatenate([_hard("tight clusters far apart"), _manifold(500, 8, 40).astype(np.float32)])
    tables = [neighbour_table(points, 30, block=block) for block in (64, 333, 4096)]
    for table in tables[1:]:
        assert np.array_equal(table.indices, tables[0].indices)
        assert np.array_equal(table.distances, tables[0].distances)


def test_fp64_points_are_compared_in_fp64() -> None:
    points = 1 + 1e-12 * _manifold(200, 3, 20)  # all of them one point in fp32
    _assert_same(neighbour_table(points, 10), _plain(points, 10))


@pytest.mark.parametrize("width", [1, 63, 1000, 4096])
def test_the_bound_holds_for_products_in_any_order(width: int) -> None:
    """The worst of products summed forwards in fp32, one by one, which is the worst order there is."""
    random = np.random.default_rng(width)
    x, y = random.random((2, 200, width)).astype(np.float32)  # positive entries: every rounding adds up
    one_by_one = np.cumsum(x * y, axis=1, dtype=np.float32)[:, -1]
    exact = np.einsum("ij,ij->i", x.astype(np.float64), y.astype(np.float64))
    norms = np.linalg.norm(x.astype(np.float64), axis=1) * np.linalg.norm(y.astype(np.float64), axis=1)
    slack = neighbour_kernels.relative_slack(width)
    assert (np.abs(one_by_one - exact) <= slack * norms).all()
    assert slack < 2 * (width + 64) * 2**-24  # and it is not wide enough to let everything through


def test_a_table_with_itself_overlaps_whole_and_with_another_by_chance() -> None:
    first, second = (neighbour_table(_manifold(1500, 4, 10, seed), 40) for seed in (0, 1))
    assert neighbourhood_overlap(first, first, 30) == 1.0
    chance = neighbourhood_overlap(first, second, 30)
    assert chance == pytest.approx(30 / 1499, rel=0.1)


def test_overlap_counts_by_text_and_leaves_out_what_one_side_lacks() -> None:
    before = Neighbours(np.array([[1, 2], [0, 2], [1, 0]], np.int32), np.ones((3, 2)), np.array([4, 7, 9]))
    after = Neighbours(np.array([[1, 2], [2, 3], [1, 3], [1, 2]], np.int32), np.ones((4, 2)), np.array([2, 4, 7, 9]))
    # by text, before: 4 -> 7 9, 7 -> 4 9, 9 -> 7 4; after: 4 -> 7 9, 7 -> 4 9, 9 -> 4 7
    assert neighbourhood_overlap(before, after, 2) == 1.0
    # nearest alone: 4 -> 7, 7 -> 4, 9 -> 7 before; 4 -> 7, 7 -> 4, 9 -> 4 after
    assert neighbourhood_overlap(before, after, 1) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("points", "k", "said"),
    [
        (np.ones((5, 3), np.float32), 5, r"k must be in 1 \.\.\. 4 for 5 points, found 5"),
        (np.ones((5, 3), np.float16), 2, r"fp32 or fp64 of shape \(n, width\), found float16 \(5, 3\)"),
        (np.full((5, 3), np.nan), 2, r"5 of 5 points are not all finite"),
    ],
)
def test_what_makes_no_table_is_said(points: np.ndarray, k: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        neighbour_table(points, k)


def test_overlap_of_tables_that_are_too_short_is_refused() -> None:
    table = neighbour_table(_manifold(50, 3, 5), 5)
    with pytest.raises(ValueError, match="the table holds 5 neighbours of each point, found k = 6"):
        neighbourhood_overlap(table, table, 6)
