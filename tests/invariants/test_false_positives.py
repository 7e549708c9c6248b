"""Tests of the study keep their 5% where gains share effects of model and dataset, and still see what is planted.

Grids of 12 models x 10 datasets are simulated; `benchmarks/false_positives.py` has the whole table.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import pdist, squareform

from raysft.study.association import within
from raysft.study.statistics.bootstrap import two_way_interval
from raysft.study.statistics.mantel import mantel
from raysft.study.statistics.mixed import mixed_effects
from raysft.study.statistics.multiplicity import q_values
from raysft.study.statistics.paired import paired
from raysft.study.statistics.permutation import permutation_test

pytestmark = pytest.mark.invariants

GRIDS = 200
HELD = 0.1  # of 200 grids at 5%, more than 20 positives have a chance of 0.1%
GROUPS = [np.repeat(np.arange(12), 10), np.tile(np.arange(10), 12)]

Test = Callable[[np.ndarray, np.ndarray], float]


def effects(random: np.random.Generator) -> np.ndarray:
    return random.normal(size=12)[GROUPS[0]] + random.normal(size=10)[GROUPS[1]]


def grid(seed: int, slope: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A predictor and gains that each have effects of model and dataset; `slope` is of what they leave."""
    random = np.random.default_rng(seed)
    own, noise = random.normal(size=(2, 120))
    return effects(random) + own, effects(random) + noise + slope * own


def share(p: Test, slope: float = 0.0, grids: int = GRIDS) -> float:
    """How often `p` is below 5%."""
    return float(np.mean([p(*grid(seed, slope)) < 0.05 for seed in range(grids)]))


def outside_zero(x: np.ndarray, y: np.ndarray, fixed: bool) -> float:
    found = two_way_interval(x, y, GROUPS, fixed=fixed, resamples=199)
    return 0.0 if found.low > 0 or found.high < 0 else 1.0


TESTS: dict[str, Test] = {
    "fixed effects": lambda x, y: within(x, y, GROUPS).p,
    "mixed effects": lambda x, y: mixed_effects(x, y, GROUPS).p,
    "permutation": lambda x, y: permutation_test(x, y, GROUPS, fixed=False, permutations=199).p[0],
    "permutation, fixed": lambda x, y: permutation_test(x, y, GROUPS, fixed=True, permutations=199).p[0],
    "two-way bootstrap": lambda x, y: outside_zero(x, y, fixed=False),
    "two-way bootstrap, fixed": lambda x, y: outside_zero(x, y, fixed=True),
}
# Slopes that a test must see: what effects of models and datasets hide from a plain one, and intervals that are wide.
SLOPES = {"permutation": 2.0, "two-way bootstrap": 2.0, "two-way bootstrap, fixed": 0.7}


def test_a_plain_correlation_finds_what_is_not_there() -> None:
    assert share(lambda x, y: stats.pearsonr(x, y).pvalue) > 0.2


@pytest.mark.parametrize("name", TESTS)
def test_a_test_that_knows_the_clusters_finds_nothing_where_nothing_is(name: str) -> None:
    assert share(TESTS[name]) <= HELD


@pytest.mark.parametrize("name", TESTS)
def test_it_finds_a_planted_slope(name: str) -> None:
    assert share(TESTS[name], slope=SLOPES.get(name, 0.4), grids=50) > 0.85


def test_a_tenth_of_the_trials_missing_changes_neither() -> None:
    def p(x: np.ndarray, y: np.ndarray) -> float:
        failed = np.random.default_rng(abs(int(1e6 * x[0]))).random(120) < 0.1
        found = permutation_test(x, np.where(failed, np.nan, y), GROUPS, fixed=True, permutations=199)
        return float(found.p[0])

    assert share(p) <= HELD
    assert share(p, slope=0.4, grids=50) > 0.8


def by_dataset(seed: int, slope: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=10)[GROUPS[1]]
    return x, effects(random) + random.normal(size=120) + slope * x


def test_a_property_of_datasets_is_tested_with_as_many_points_as_there_are_datasets() -> None:
    null, real = ([by_dataset(seed, slope) for seed in range(100)] for slope in (0.0, 2.0))
    plain = np.mean([stats.pearsonr(*pair).pvalue < 0.05 for pair in null])
    permuted = np.mean([permutation_test(*pair, GROUPS, False, permutations=199).p[0] < 0.05 for pair in null])
    mixed = np.mean([mixed_effects(*pair, GROUPS).p < 0.05 for pair in null])
    assert plain > 0.4
    assert permuted <= 0.13
    assert mixed <= 0.13
    assert np.mean([mixed_effects(*pair, GROUPS).p < 0.05 for pair in real[:40]]) > 0.9
    found = [permutation_test(*pair, GROUPS, False, permutations=199).p[0] < 0.05 for pair in real[:40]]
    assert np.mean(found) > 0.85


def strongest(seed: int, slope: float) -> tuple[float, float]:
    """p of the strongest of 24 layers that go with each other, naive and by the maximum over them."""
    random = np.random.default_rng(seed)
    own = random.normal(size=(24, 120))
    for layer in range(1, 24):
        own[layer] = 0.9 * own[layer - 1] + np.sqrt(1 - 0.9**2) * own[layer]
    layers = own + effects(random)
    y = effects(random) + random.normal(size=120) + slope * own[14]
    test = permutation_test(layers, y, GROUPS, fixed=True, permutations=199)
    return float(test.p.min()), float(test.p_max.min())


def test_the_strongest_layer_is_tested_as_the_strongest() -> None:
    naive, honest = np.array([strongest(seed, 0.0) for seed in range(100)]).T
    assert (naive < 0.05).mean() > 0.15
    assert (honest < 0.05).mean() <= 0.13
    assert np.mean([strongest(seed, 0.5)[1] < 0.05 for seed in range(30)]) > 0.8


def test_q_values_keep_a_family_of_ten() -> None:
    random = np.random.default_rng(0)
    any_p, any_q, planted = [], [], []
    for seed in range(100):
        _, y = grid(seed)
        p = np.array([within(effects(random) + random.normal(size=120), y, GROUPS).p for _ in range(10)])
        any_p.append(p.min() < 0.05)
        any_q.append(q_values(p).min() < 0.05)
        real = within(*grid(seed, slope=0.5), GROUPS).p
        planted.append(q_values(np.array([*p[:9], real]))[-1] < 0.05)
    assert np.mean(any_p) > 0.25
    assert np.mean(any_q) <= 0.13
    assert np.mean(planted) > 0.85


def test_pairs_of_trials_are_not_independent() -> None:
    plain, clustered, power = [], [], []
    for seed in range(GRIDS):
        random = np.random.default_rng(seed)
        first, second = 0.7 * effects(random) + random.normal(size=120), random.normal(size=120)
        found = paired(first, second, GROUPS)
        plain.append(found.t_p < 0.05)
        clustered.append(found.p < 0.05)
        power.append(paired(first + 1.5, second, GROUPS).p < 0.05)
    assert np.mean(plain) > 0.3
    assert np.mean(clustered) <= HELD
    assert np.mean(power) > 0.9


def apart(seed: int, common: float) -> tuple[np.ndarray, np.ndarray]:
    """Distances of 12 objects in two planes: an outlier is far from all others, so entries of a row go together."""
    random = np.random.default_rng(seed)
    shared, *own = random.normal(size=(3, 12, 2))
    first, second = (squareform(pdist(np.sqrt(common) * shared + np.sqrt(1 - common) * place)) for place in own)
    return first, second


def test_mantel_keeps_what_triangles_taken_as_points_do_not() -> None:
    below = np.tril_indices(12, -1)
    null = [apart(seed, 0.0) for seed in range(GRIDS)]
    assert np.mean([mantel(*pair, permutations=199).p < 0.05 for pair in null]) <= HELD
    assert np.mean([mantel(*apart(seed, 0.8), permutations=199).p < 0.05 for seed in range(40)]) > 0.8
    plain = np.mean([stats.pearsonr(a[below], b[below]).pvalue < 0.05 for a, b in null])
    assert plain > HELD
