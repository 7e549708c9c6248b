"""Known answers, invariants and degenerate input of the study's tests."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from scipy import stats

from raysft.study.association import pearson, within
from raysft.study.statistics.bootstrap import resampled_coefficients, two_way_interval
from raysft.study.statistics.mantel import mantel
from raysft.study.statistics.mixed import mixed_effects
from raysft.study.statistics.multiplicity import q_values
from raysft.study.statistics.noise import noise_ceiling, seed_variance
from raysft.study.statistics.paired import paired
from raysft.study.statistics.permutation import permutation_test

pytestmark = pytest.mark.unit

Groups = list[np.ndarray]


def cells(models: int, datasets: int) -> Groups:
    return [np.repeat(np.arange(models), datasets), np.tile(np.arange(datasets), models)]


def draw(models: int, datasets: int, slope: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Groups]:
    """x and y with effects of model and dataset; what they leave of x adds `slope` of itself to y."""
    random = np.random.default_rng(seed)
    groups = cells(models, datasets)
    own, noise = random.normal(size=(2, models * datasets))
    x, y = (sum(random.normal(size=group.max() + 1)[group] for group in groups) for _ in range(2))
    return x + own, y + noise + slope * own, groups


def triangle(*below: float) -> np.ndarray:
    size = int((1 + np.sqrt(1 + 8 * len(below))) / 2)
    square = np.zeros((size, size))
    square[np.tril_indices(size, -1)] = below
    return square + square.T


def test_mantel_gives_the_textbook_answer() -> None:
    found = mantel(triangle(1, 2, 4, 3, 5, 6), triangle(2, 1, 3, 4, 6, 5))
    assert (found.n, found.exact, found.permutations) == (4, True, 24)
    assert found.r == pytest.approx(0.8285714, abs=1e-7)
    assert found.p == pytest.approx(5 / 24)


def test_mantel_by_drawn_orders_agrees_with_all_of_them() -> None:
    random = np.random.default_rng(1)
    x = triangle(*random.normal(size=36))  # nine objects: more than are enumerated
    y = 0.5 * x + triangle(*random.normal(size=36))
    drawn, below = mantel(x, y), np.tril_indices(9, -1)
    kept = [0, 1, 2, 3, 4, 5, 6]
    small = mantel(x[np.ix_(kept, kept)], y[np.ix_(kept, kept)])
    assert not drawn.exact
    assert drawn.r == pytest.approx(np.corrcoef(x[below], y[below])[0, 1])
    assert small.exact
    by_hand = [
        stats.pearsonr(x[np.ix_(order, order)][np.tril_indices(7, -1)], y[:7, :7][np.tril_indices(7, -1)]).statistic
        for order in list(permutations(range(7)))[::20]
    ]
    share = np.mean(np.abs(by_hand) >= abs(small.r) - 1e-9)
    assert small.p == pytest.approx(share, abs=4 * np.sqrt(0.25 / len(by_hand)))


def test_mantel_leaves_out_what_is_missing_and_says_what_it_cannot_do() -> None:
    x, y = triangle(*range(1, 11)), triangle(*range(10, 0, -1))
    x[2, 4] = np.nan
    assert mantel(x, y).n == 4
    assert "3 objects" in str(mantel(x[:3, :3], y[:3, :3]).reason)
    assert mantel(np.ones((5, 5)), y).reason == "constant"
    with pytest.raises(ValueError, match="two square ones of one shape"):
        mantel(x, y[:3])


def test_benjamini_hochberg_gives_the_textbook_answer() -> None:
    assert q_values(np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.5])) == pytest.approx([0.06] * 5 + [0.5])


def test_a_test_that_was_not_made_does_not_count_and_families_do_not_mix() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.01])
    assert q_values(p, ["a", "a", "a", "b"]) == pytest.approx([0.02, np.nan, 0.04, 0.01], nan_ok=True)
    assert np.isnan(q_values(np.full(3, np.nan))).all()


@pytest.mark.parametrize("fixed", [False, True])
def test_permutations_are_of_whole_models_and_whole_datasets(fixed: bool) -> None:
    x, y, groups = draw(3, 4, slope=1)
    found = permutation_test(x, y, groups, fixed)
    by_hand = []
    for rows, columns in product(permutations(range(3)), permutations(range(4))):
        moved = y.reshape(3, 4)[np.ix_(rows, columns)].ravel()
        by_hand.append(within(x, moved, groups).r if fixed else pearson(x, moved)[0])
    assert (found.exact, found.permutations) == (True, 144)
    assert found.r[0] == pytest.approx(by_hand[0])
    assert found.p[0] == pytest.approx(np.mean(np.abs(by_hand) >= abs(by_hand[0]) - 1e-9))


def test_a_p_from_drawn_permutations_is_never_zero() -> None:
    x, _, groups = draw(8, 8)
    assert permutation_test(x, x, groups, fixed=True).p[0] == 1 / 5000


def test_a_property_of_datasets_alone_has_as_many_orders_as_datasets_have() -> None:
    _, y, groups = draw(5, 3)
    x = np.array([1.0, 2.0, 4.0])[groups[1]]
    assert permutation_test(x, y, groups, fixed=False).p[0] >= 1 / 6  # 120 x 6 permutations, six different ones
    assert permutation_test(x, y, groups, fixed=True).reason == "the predictor does not vary within models and datasets"


def test_permutations_leave_out_missing_cells() -> None:
    x, y, groups = draw(6, 6, slope=0.8)
    y[[3, 17, 20]] = np.nan
    found = permutation_test(x, y, groups, fixed=True)
    assert found.r[0] == pytest.approx(within(x, y, groups).r)
    assert found.p[0] == pytest.approx(within(x, y, groups).p, abs=0.01)


@pytest.mark.filterwarnings("error")
def test_permutations_in_which_no_cell_has_both_count_as_nothing() -> None:
    """Every model was tuned on a dataset of its own."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 6))
    found = permutation_test(x, y, [np.arange(6), np.arange(6)], fixed=False)
    assert found.r[0] == pytest.approx(pearson(x, y)[0])
    assert 0 < found.p[0] <= 1


def test_the_strongest_of_many_columns_pays_for_the_search() -> None:
    x, y, groups = draw(8, 8, slope=0.5)
    random = np.random.default_rng(3)
    many = np.vstack([x, random.normal(size=(20, 64))])
    alone, searched = (permutation_test(columns, y, groups, fixed=True) for columns in (x, many))
    assert searched.p[0] == pytest.approx(alone.p[0], abs=0.02)
    assert searched.p_max[0] > 3 * searched.p[0]
    assert (searched.p_max >= searched.p).all()
    copies = permutation_test(np.vstack([x, x, x]), y, groups, fixed=True)
    assert copies.p_max == pytest.approx(alone.p[[0, 0, 0]])  # the same test three times is one test


def test_a_column_that_does_not_vary_is_not_tested() -> None:
    x, y, groups = draw(5, 5)
    found = permutation_test(np.vstack([x, np.ones(25)]), y, groups, fixed=False)
    assert np.isnan(found.p[1])
    assert found.p_max[0] == found.p[0]


def test_equal_seeds_give_equal_numbers() -> None:
    x, y, groups = draw(6, 7)
    first, second = (permutation_test(x, y, groups, fixed=True) for _ in range(2))
    assert (first.p, first.p_max) == (second.p, second.p_max)
    assert two_way_interval(x, y, groups, True) == two_way_interval(x, y, groups, True)


@pytest.mark.parametrize("missing", [[], [2, 13]])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_resample_repeats_whole_models_and_whole_datasets(fixed: bool, missing: list[int]) -> None:
    x, y, groups = draw(4, 5)
    y[missing] = np.nan
    drawn, _ = resampled_coefficients(x, y, groups, fixed, resamples=20, seed=5)
    random = np.random.default_rng(5)
    counts = [random.multinomial(size, np.full(size, 1 / size), size=20) for size in (4, 5)]
    for at in range(20):
        times = counts[0][at][groups[0]] * counts[1][at][groups[1]]
        copies = np.repeat(np.arange(20), times)
        repeated = [group[copies] for group in groups]
        by_hand = within(x[copies], y[copies], repeated).r if fixed else pearson(x[copies], y[copies])[0]
        assert drawn[at, 0] == pytest.approx(by_hand, abs=1e-4, nan_ok=True)


def test_an_interval_holds_a_strong_effect_apart_from_zero() -> None:
    x, y, groups = draw(12, 10, slope=2)
    found = two_way_interval(x, y, groups, fixed=True)
    assert found.low > 0.5
    assert found.low < within(x, y, groups).r < found.high
    assert "3 models or datasets" in str(two_way_interval(*draw(3, 9), fixed=True).reason)


def test_mixed_effects_are_those_of_balanced_analysis_of_variance() -> None:
    """On a complete grid with all variances above zero, REML equals the mean squares of a two-way layout."""
    _, y, groups = draw(9, 8)
    grid = y.reshape(9, 8)
    rows, columns = 8 * grid.mean(axis=1).var(ddof=1), 9 * grid.mean(axis=0).var(ddof=1)
    left = grid - grid.mean(axis=1, keepdims=True) - grid.mean(axis=0) + grid.mean()
    noise = (left**2).sum() / 56
    x = np.outer([1, -1, 0] * 3, [1, -1] * 4).ravel().astype(float)  # orthogonal to models and to datasets
    found = mixed_effects(x, y, groups)
    slope = (x @ y) / (x @ x)
    unexplained = (noise * 56 - slope**2 * (x @ x)) / 55
    expected = [np.sqrt((rows - unexplained) / 8), np.sqrt((columns - unexplained) / 9), np.sqrt(unexplained)]
    assert found.slope == pytest.approx(slope, rel=1e-6)
    assert found.spreads == pytest.approx(expected, rel=1e-4)
    assert found.stderr == pytest.approx(np.sqrt(unexplained / (x @ x)), rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_mixed_effects_agree_with_statsmodels(seed: int) -> None:
    models = pytest.importorskip("statsmodels.regression.mixed_linear_model", reason="an extra of development")
    x, y, groups = draw(7, 6, slope=1, seed=seed)
    y[[1, 20]] = np.nan
    known = np.isfinite(y)
    dummies = [np.eye(group.max() + 1)[group[known]] for group in groups]
    columns = [[[str(level) for level in range(one.shape[1])]] for one in dummies]
    components = models.VCSpec(["model", "dataset"], columns, [[one] for one in dummies])
    design = np.column_stack([np.ones(40), x[known]])
    fit = models.MixedLM(y[known], design, np.zeros(40), exog_vc=components).fit(method="powell")
    found = mixed_effects(1000 * x, y + 30, groups)  # on other scales: the fit is made on standardised columns
    assert 1000 * found.slope == pytest.approx(fit.fe_params[1], rel=2e-3)
    # Its own standard errors come from a numerical Hessian; these are those of generalised least squares.
    covariance = fit.scale * np.eye(40) + sum(
        share * one @ one.T for share, one in zip(fit.vcomp, dummies, strict=True)
    )
    expected = np.sqrt(np.linalg.inv(design.T @ np.linalg.solve(covariance, design))[1, 1])
    assert 1000 * found.stderr == pytest.approx(expected, rel=1e-2)
    assert found.spreads == pytest.approx(np.sqrt([*fit.vcomp, fit.scale]), rel=0.02, abs=0.01)


def test_a_variance_of_zero_is_no_failure() -> None:
    """Where models do not differ at all the slope is least squares' within datasets' means."""
    random = np.random.default_rng(11)
    groups = cells(9, 8)
    x, noise = random.normal(size=(2, 72))
    noise = (noise.reshape(9, 8) - noise.reshape(9, 8).mean(axis=1, keepdims=True)).ravel()
    noise -= noise.reshape(9, 8).mean(axis=0)[groups[1]]
    found = mixed_effects(x, 5 * x + noise, groups)
    plain = stats.linregress(x, 5 * x + noise)
    assert found.spreads[:2] == pytest.approx((0, 0), abs=1e-2)
    assert found.slope == pytest.approx(plain.slope, rel=1e-3)
    assert found.stderr == pytest.approx(plain.stderr, rel=1e-2)


def test_degrees_of_freedom_are_those_of_where_the_predictor_varies() -> None:
    _, y, groups = draw(7, 6)
    random = np.random.default_rng(6)
    by_model, by_dataset = random.normal(size=7)[groups[0]], random.normal(size=6)[groups[1]]
    assert mixed_effects(by_model, y, groups).df == 5
    assert mixed_effects(by_dataset, y, groups).df == 4
    assert 4 < mixed_effects(by_model + by_dataset, y, groups).df < 9
    # A count of tokens that hardly differs between tokenizers is a property of the dataset.
    nearly = by_dataset + 0.01 * random.normal(size=42)
    assert mixed_effects(nearly, y, groups).df == pytest.approx(4, abs=0.1)
    assert mixed_effects(random.normal(size=42), y, groups).df > 25


def test_a_clustered_pair_is_a_t_test_of_models_where_models_are_all_that_differs() -> None:
    by_model = np.random.default_rng(7).normal(size=9)
    groups = cells(9, 4)
    found = paired(by_model[groups[0]], np.zeros(36), [groups[0]])
    assert found.p == pytest.approx(stats.ttest_1samp(by_model, 0).pvalue)
    assert found.stderr == pytest.approx(by_model.std(ddof=1) / 3)
    assert found.t_p < found.p
    interval = stats.ttest_1samp(by_model, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_the_error_of_a_mean_difference_counts_what_pairs_of_a_model_or_a_dataset_share() -> None:
    difference, _, groups = draw(6, 5, seed=1)
    found = paired(difference, np.zeros(30), groups)
    left = difference - difference.mean()
    by_model, by_dataset = (
        sum(left[i] * left[j] for i, j in product(range(30), repeat=2) if group[i] == group[j]) for group in groups
    )
    alone = (left**2).sum()
    expected = by_model * 6 / 5 + by_dataset * 5 / 4 - alone * 30 / 29
    assert expected > max(by_model * 6 / 5, by_dataset * 5 / 4, alone * 30 / 29)
    assert found.stderr == pytest.approx(np.sqrt(expected) / 30)
    assert found.df == 4


def test_a_clustered_error_is_never_less_than_that_of_single_pairs() -> None:
    """Effects that cancel within every model and dataset would give a variance below zero."""
    balanced = np.outer([1, -1, 1, -1], [1, -1, 1, -1]).ravel() + 0.01
    found = paired(balanced, np.zeros(16), cells(4, 4))
    assert found.stderr == pytest.approx(stats.sem(balanced))


def test_pairs_of_one_model_are_clustered_by_dataset_alone() -> None:
    differences = np.array([1.0, 2.5, -0.5, 3.0, 0.2])
    found = paired(differences, np.zeros(5), [["m"] * 5, list("vwxyz")])
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    alone = paired(differences, np.zeros(5), [["m"] * 5, ["d"] * 5])
    assert alone.reason == "all pairs are of one model and one dataset"
    assert (alone.n, np.isnan(alone.p)) == (5, True)


def test_pairs_are_compared_only_where_both_are_there() -> None:
    first, second = np.array([1.0, 2, 3, np.nan, 7]), np.array([0.5, 1, np.nan, 3, 5])
    found = paired(first, second, [list("abcde")])
    assert (found.n, found.mean) == (3, pytest.approx(3.5 / 3))


def test_the_noise_ceiling_is_the_correlation_that_a_perfect_predictor_has() -> None:
    random = np.random.default_rng(8)
    true, error = random.normal(size=4000), random.normal(scale=0.5, size=4000)
    found = noise_ceiling(true + error, np.full(4000, 0.25))
    assert found.reliability == pytest.approx(0.8, abs=0.02)
    assert found.r == pytest.approx(np.corrcoef(true, true + error)[0, 1], abs=0.01)


def test_the_ceiling_within_models_and_datasets_is_of_what_they_leave() -> None:
    random = np.random.default_rng(9)
    groups = cells(40, 50)
    shared = 10 * (random.normal(size=40)[groups[0]] + random.normal(size=50)[groups[1]])
    gains = shared + random.normal(size=2000) + random.normal(size=2000)
    assert noise_ceiling(gains, np.ones(2000)).reliability > 0.98
    assert noise_ceiling(gains, np.ones(2000), groups).reliability == pytest.approx(0.5, abs=0.05)


def test_seeds_are_compared_within_their_cell() -> None:
    values = np.array([1.0, 3, 10, 14, 7, np.nan])
    found, df = seed_variance(values, list("aabbcc"))
    assert (found, df) == (pytest.approx((2 + 8) / 2), 2)
    assert seed_variance(values[4:], ["c", "d"]) == (pytest.approx(np.nan, nan_ok=True), 0)


NOTHING = np.full(12, np.nan)
RAMP = np.arange(12.0)


@pytest.mark.parametrize(
    ("x", "y", "groups", "reason"),
    [
        (NOTHING, RAMP, cells(3, 4), "0 common points, 3 needed"),
        (np.ones(12), RAMP, cells(3, 4), "constant"),
        (RAMP, np.full(12, 0.1), cells(3, 4), "constant"),
        (RAMP**2, np.sin(RAMP), cells(1, 12), "within models and datasets|one model|1 models|degrees of freedom"),
        (RAMP**2, np.sin(RAMP), cells(12, 1), "within models and datasets|one model|1 models|degrees of freedom"),
    ],
    ids=["missing", "constant predictor", "constant gain", "one model", "one dataset"],
)
@pytest.mark.filterwarnings("error")
def test_what_cannot_be_tested_says_why(x: np.ndarray, y: np.ndarray, groups: Groups, reason: str) -> None:
    found = permutation_test(x, y, groups, fixed=True)
    assert np.isnan(found.p).all()
    for why in (found.reason, mixed_effects(x, y, groups).reason, two_way_interval(x, y, groups, True).reason):
        assert why is not None
        assert any(part in why for part in reason.split("|"))


@pytest.mark.filterwarnings("error")
def test_pairs_and_ceilings_that_cannot_be_told_say_why() -> None:
    groups = cells(3, 4)
    assert paired(NOTHING, RAMP, groups).reason == "0 pairs, 3 needed"
    assert paired(RAMP + 1, RAMP, groups).reason == "every pair differs by the same"
    assert paired(RAMP**2, RAMP, [[0] * 12, [0] * 12]).reason == "all pairs are of one model and one dataset"
    assert "known error" in str(noise_ceiling(RAMP, NOTHING).reason)
    assert noise_ceiling(np.ones(12), RAMP).reason == "the gain does not vary"
    assert noise_ceiling(RAMP, np.full(12, 100.0)).reason == "gains vary no more than their errors do"


def test_two_points_of_one_cell_are_refused() -> None:
    with pytest.raises(ValueError, match="two points have the same labels"):
        permutation_test(RAMP, RAMP**2, [np.zeros(12), np.zeros(12)], fixed=False)
