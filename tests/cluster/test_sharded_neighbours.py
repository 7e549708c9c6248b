"""The neighbour table that Ray tasks make of shards is the one that a single process makes of all points."""

from __future__ import annotations

import numpy as np
import pytest
import ray

from raysft.cluster.neighbours import sharded_neighbour_table
from raysft.probes.geometry.neighbours import neighbour_table

pytestmark = pytest.mark.cluster

CUTS = (400, 431)  # shards of 400, 31 and 669 points: one holds fewer than k


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shards_of_uneven_sizes_give_the_same_bits(local_ray: None, dtype: type[np.floating]) -> None:
    random = np.random.default_rng(0)
    points = (random.normal(size=(1100, 6)) @ random.normal(size=(6, 70)) + 30).astype(dtype)
    points[900:1000] = points[:100] + 1e-6 * random.normal(size=(100, 70))  # near-duplicates, in another shard
    points[1000:1010] = points[400:410]  # and equal ones, whose order is that of their indices
    whole = neighbour_table(points, 40)
    shards = [ray.put(part) for part in np.split(points, CUTS)]
    sharded = sharded_neighbour_table(shards, 40, in_flight=2)
    assert np.array_equal(sharded.indices, whole.indices)
    assert np.array_equal(sharded.distances, whole.distances)


def test_a_shard_that_is_not_finite_is_named(local_ray: None) -> None:
    points = np.ones((30, 4), np.float32)
    points[25, 1] = np.nan
    with pytest.raises(ValueError, match=r"shard 1: 1 of 15 points are not all finite"):
        sharded_neighbour_table([ray.put(part) for part in np.split(points, 2)], 5)


def test_shards_of_two_widths_are_refused(local_ray: None) -> None:
    shards = [ray.put(np.ones((10, width), np.float32)) for width in (3, 4)]
    with pytest.raises(ValueError, match=r"of one shape .* found rows of float32 \(3,\), float32 \(4,\)"):
        sharded_neighbour_table(shards, 5)
