"""Tables of tests that the study makes: layers, ceilings, matrices, prediction and what stands beside correlations."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy import stats

from raysft.report.findings import Findings
from raysft.report.plot import Plot
from raysft.report.weight_figures import mid_layer
from raysft.store.schema import TABLES
from raysft.study.ceilings import noise_ceiling_table
from raysft.study.cells import Cell, not_comparable, slices
from raysft.study.comparisons import comparison_table
from raysft.study.correlate import correlation_table
from raysft.study.depth import not_at_equal_epochs
from raysft.study.epochs import epoch_gains_table
from raysft.study.layer_tests import layer_test_table
from raysft.study.run import SWEEP_TABLES, study_of
from raysft.study.schema import GAINS, MAP_DISTANCES, STUDY_TABLES, WEIGHT_CHANGE_BY_DEPTH
from raysft.study.similarity import similarity_table
from raysft.study.tables import select
from tests.unit.synthetic_tables import Sweep, synthetic_tables

pytestmark = pytest.mark.unit

MODELS, DATASETS = 6, 5
NAMES = ("layer_tests", "matrix_comparisons", "noise_ceilings", "prediction")


@pytest.fixture(scope="module")
def tables() -> Mapping[str, pa.Table]:
    """The study of a sweep with some noise in its scores."""
    return study_of(synthetic_tables(Sweep(epochs=1, methods=("full",), layers=2, texts=9, noise=0.02))).tables


def gain_rows(
    gains: np.ndarray, task: str = "t", variant: str = "full", error: float = 0.1, seeds: int = 1
) -> list[dict[str, object]]:
    """Rows of `gains` (models, datasets, seeds) with everything the tests read."""
    return [
        {"model": f"m{i}", "dataset": f"d{j}", "seed": k, "trial": f"{variant} {i} {j} {k}", "epoch": 1, "task": task}
        | {"variant": variant, "final": True, "primary": True, "matching": False, "metric": "acc", "scale": 1.0}
        | {"gain": gains[i, j, k], "scaled_gain": gains[i, j, k], "base_stderr": error, "score_stderr": error}
        for i in range(gains.shape[0])
        for j in range(gains.shape[1])
        for k in range(seeds)
    ]


def gain_table_of(*rows: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist([row for part in rows for row in part], schema=GAINS)


def changes(curves: np.ndarray, epoch: int = 1, final: bool = True) -> pa.Table:
    """Weight changes (models, datasets, layers)."""
    layers = curves.shape[2]
    rows = [
        {"model": f"m{i}", "dataset": f"d{j}", "trial": f"full {i} {j} 0", "variant": "full", "final": final}
        | {"layer": at, "depth": at / (layers - 1), "relative_change": curves[i, j, at], "epoch": epoch}
        for i, j, at in np.ndindex(*curves.shape)
    ]
    return pa.Table.from_pylist(rows, schema=WEIGHT_CHANGE_BY_DEPTH)


def test_the_layer_that_moves_the_gain_is_found_and_its_p_pays_for_the_search() -> None:
    random = np.random.default_rng(0)
    curves = random.normal(size=(MODELS, DATASETS, 8))
    gains = curves[:, :, 5:6] + 0.3 * random.normal(size=(MODELS, DATASETS, 1))
    found = layer_test_table(gain_table_of(gain_rows(gains)), changes(curves))
    for effects in ("none", "fixed"):
        rows = select(found, scope="all", effects=effects).to_pylist()
        (strongest,) = [row for row in rows if row["strongest"]]
        assert strongest["depth"] == pytest.approx(5 / 7)
        assert strongest["p_max"] < 0.01
        assert strongest["chosen"] > 0.9
        assert sum(row["chosen"] for row in rows) == pytest.approx(1)
        assert all(row["p_max"] >= row["p"] for row in rows)
        assert {row["layers"] for row in rows} == {8}


def test_the_strongest_layers_of_many_tasks_have_a_q_over_all_of_them() -> None:
    random = np.random.default_rng(3)
    curves = random.normal(size=(MODELS, DATASETS, 4))
    by_task = [gain_rows(random.normal(size=(MODELS, DATASETS, 1)), task) for task in "abcd"]
    by_task.append(gain_rows(curves[..., :1] + 0.3 * random.normal(size=(MODELS, DATASETS, 1)), "e"))
    found = layer_test_table(gain_table_of(*by_task), changes(curves))
    for effects in ("none", "fixed"):
        rows = select(found, effects=effects).to_pylist()
        strongest = [row for row in rows if row["strongest"]]
        assert len(strongest) == 5 + 2  # tasks, and all and other ones: none is of the dataset's own skill
        expected = stats.false_discovery_control([row["p_max"] for row in strongest])
        assert [row["q"] for row in strongest] == pytest.approx(expected.tolist())
        assert all(row["q"] is None for row in rows if not row["strongest"])


def test_weights_and_gains_are_paired_at_equal_epochs() -> None:
    random = np.random.default_rng(5)
    curves, earlier = random.normal(size=(2, MODELS, DATASETS, 3))
    gains = gain_table_of(gain_rows(curves[..., 1:2] + 0.3 * random.normal(size=(MODELS, DATASETS, 1))))
    whole = changes(curves)
    # The first model's last probe failed, and what it has is of the epoch before; of the second the last scores did.
    lost = pc.equal(whole["model"], "m0")
    apart = pa.concat_tables([whole.filter(pc.invert(lost)), changes(earlier, epoch=0).filter(lost)])
    later = changes(earlier, epoch=2).filter(pc.equal(whole["model"], "m1"))
    final = pa.array([model != "m1" for model in apart["model"].to_pylist()])
    apart = apart.set_column(apart.column_names.index("final"), "final", final)
    found = pa.concat_tables([apart, later])
    kept = pc.invert(pc.equal(gains["model"], "m0"))
    assert layer_test_table(gains, found).equals(layer_test_table(gains.filter(kept), whole))
    nothing = TABLES["data_properties"].empty_table()
    assert correlation_table(gains, nothing, found).equals(correlation_table(gains.filter(kept), nothing, whole))
    assert set(layer_test_table(gains, found)["n"].to_pylist()) == {(MODELS - 1) * DATASETS}
    assert not_at_equal_epochs(gains, whole) == {}
    (why,) = not_at_equal_epochs(gains, found)
    assert why == f"{DATASETS} of {MODELS * DATASETS} fine-tunings in weight change against gain"
    study = {**{name: schema.empty_table() for name, schema in STUDY_TABLES.items()}, "gains": gains}
    sweep = {name: schema.empty_table() for name, schema in SWEEP_TABLES.items()}
    drawn = mid_layer(Findings(sweep, {**study, "weight_change_by_depth": found}))
    assert isinstance(drawn, Plot)
    assert drawn.data.num_rows == (MODELS - 1) * DATASETS


def test_a_layer_of_one_dataset_has_no_test_and_a_reason() -> None:
    random = np.random.default_rng(0)
    found = layer_test_table(
        gain_table_of(gain_rows(random.normal(size=(MODELS, 1, 1)))), changes(random.normal(size=(MODELS, 1, 3)))
    )
    rows = select(found, effects="fixed").to_pylist()
    assert rows
    assert all(row["p"] is None and row["reason"] for row in rows)


def test_noise_is_that_of_scores_or_that_of_seeds_whichever_is_larger() -> None:
    random = np.random.default_rng(1)
    true = random.normal(size=(MODELS, DATASETS, 1))
    seeds = true + random.normal(scale=0.8, size=(MODELS, DATASETS, 4))
    small = select(
        noise_ceiling_table(gain_table_of(gain_rows(seeds, error=0.01, seeds=4))), scope="all", effects="none"
    )
    large = select(
        noise_ceiling_table(gain_table_of(gain_rows(seeds, error=0.7, seeds=4))), scope="all", effects="none"
    )
    (by_seeds,), (by_items,) = small.to_pylist(), large.to_pylist()
    assert by_seeds["seed_noise"] == pytest.approx(seeds.var(axis=2, ddof=1).mean() / 4)
    assert by_seeds["seed_df"] == MODELS * DATASETS * 3
    assert by_seeds["reliability"] == pytest.approx(1 - by_seeds["seed_noise"] / by_seeds["variance"])
    assert by_items["item_noise"] == pytest.approx(0.49 + 0.49 / 4)
    assert by_items["reliability"] == pytest.approx(1 - by_items["item_noise"] / by_items["variance"])
    assert by_items["ceiling"] == pytest.approx(np.sqrt(by_items["reliability"]))


def test_the_error_of_the_base_score_goes_with_the_effect_of_the_model() -> None:
    gains = np.random.default_rng(1).normal(size=(MODELS, DATASETS, 1))
    rows = select(noise_ceiling_table(gain_table_of(gain_rows(gains))), scope="all").to_pylist()
    assert {row["effects"]: row["item_noise"] for row in rows} == pytest.approx({"none": 0.02, "fixed": 0.01})
    assert all(row["seed_noise"] is None for row in rows)


def test_a_mean_over_tasks_has_less_noise_than_one_task() -> None:
    gains = np.random.default_rng(1).normal(size=(MODELS, DATASETS, 1))
    both = gain_table_of(gain_rows(gains, "s"), gain_rows(gains, "t"))
    found = noise_ceiling_table(both)
    alone, mean = (select(found, scope=scope, effects="none").to_pylist()[0] for scope in ("task", "all"))
    assert mean["item_noise"] == pytest.approx(alone["item_noise"] / 2)


def test_two_variants_that_gain_alike_have_matrices_that_agree() -> None:
    random = np.random.default_rng(2)
    rows = []
    for task in "stuvw":
        gains = random.normal(size=(MODELS, DATASETS, 1))
        near = gains + 0.2 * random.normal(size=gains.shape)
        rows += [gain_rows(gains, task), gain_rows(near, task, "lora")]
    distances = pa.Table.from_pylist(
        [{"a": f"m{i}", "b": f"m{j}", "two_kl": random.random()} for i in range(6) for j in range(i)], MAP_DISTANCES
    )
    table = gain_table_of(*rows)
    found = comparison_table(table, similarity_table(table), distances).to_pylist()
    of_models = next(row for row in found if (row["a"], row["b"]) == ("model: full", "model: lora"))
    assert of_models["r"] > 0.8
    assert (of_models["exact"], of_models["permutations"], of_models["n"]) == (True, 720, 6)
    assert of_models["p"] <= of_models["q"] < 0.05
    assert {row["b"] for row in found if row["a"] == "model: full"} == {"model: lora", "minus KL of base models"}
    assert any((row["a"], row["b"]) == ("model_by_task", "model_by_dataset") for row in found)


def test_correlations_have_tests_that_know_the_clusters_beside_them(tables: Mapping[str, pa.Table]) -> None:
    rows = tables["correlations"].to_pylist()
    similar = next(row for row in rows if row["predictor"] == "similarity" and row["scope"] == "cells")
    assert similar["permutation_p"] < 0.01
    assert similar["mixed_slope"] == pytest.approx(similar["within_slope"], rel=0.1)
    assert "3 models or datasets" in similar["tests_reason"]  # too few to resample
    for p, q in (("permutation_p", "permutation_q"), ("within_p", "within_q"), ("mixed_p", "mixed_q")):
        tested = [row for row in rows if row[p] is not None]
        assert tested
        assert all(row[p] <= row[q] for row in tested)
        assert all(row[q] is None for row in rows if row[p] is None)


def test_every_table_of_tests_has_rows_and_the_columns_it_promises(tables: Mapping[str, pa.Table]) -> None:
    for name in NAMES:
        assert tables[name].num_rows, name
        assert tables[name].schema == STUDY_TABLES[name]
    assert {"target", "predictors", "split", "r2", "baseline_r2"} <= set(tables["prediction"].column_names)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    "sweep",
    [None, Sweep(models=["m"], epochs=1), Sweep(datasets=["addition"], epochs=1), Sweep(models=["m"], datasets=["a"])],
    ids=["empty", "one model", "one dataset", "one of each"],
)
def test_a_sweep_too_small_for_a_test_gives_its_reason(sweep: Sweep | None) -> None:
    empty = {name: TABLES[name].empty_table() for name in SWEEP_TABLES}
    found = study_of(empty if sweep is None else synthetic_tables(sweep)).tables
    for name in NAMES:
        assert found[name].schema == STUDY_TABLES[name]
    assert all(row["reason"] for row in found["prediction"].to_pylist() if row["r2"] is None)
    assert all(row["reason"] for row in found["layer_tests"].to_pylist() if row["p"] is None)
    assert all(row["reason"] for row in found["matrix_comparisons"].to_pylist() if row["p"] is None)
    assert all(row["reason"] for row in found["noise_ceilings"].to_pylist() if row["ceiling"] is None)


def test_a_common_error_of_base_scores_makes_no_matrices_agree() -> None:
    """Two methods whose gains are noise, less one base score that both are measured from."""
    random = np.random.default_rng(5)
    positive = {"task": 0, "model": 0}
    for _ in range(20):
        rows = []
        for task in "stuvw":
            base = random.normal(size=(MODELS, 1, 1))
            rows += [
                gain_rows(random.normal(size=(MODELS, DATASETS, 1)) - base, task, method) for method in ("full", "lora")
            ]
        table = gain_table_of(*rows)
        found = comparison_table(table, similarity_table(table), MAP_DISTANCES.empty_table()).to_pylist()
        for kind in positive:
            positive[kind] += next(row["p"] for row in found if row["a"] == f"{kind}: full") < 0.05
    assert max(positive.values()) <= 4  # 0.3% by chance; without centring about 18


def test_means_over_tasks_are_of_pairs_that_have_them_all() -> None:
    cells = [
        Cell("full", model, dataset, task, False, 1.0, 0.0)
        for model, dataset, task in product("ab", "xy", "stu")
        if (model, dataset, task) != ("a", "x", "s") and (task != "u" or (model, dataset) == ("b", "y"))
    ]
    (whole,) = (part for part in slices(cells) if part.scope == "all")
    assert set(whole.gains()) == {("a", "y"), ("b", "x"), ("b", "y")}
    assert {cell.task for cell in whole.cells} == {"s", "t"}
    assert not_comparable(cells) == {
        "u in means over tasks of full": "fewer than half of the pairs have it",
        "1 of 4 pairs in means over tasks of full": "some task is missing",
    }


def test_a_seed_that_moves_all_tasks_is_noise_that_no_mean_over_tasks_takes_away() -> None:
    random = np.random.default_rng(3)
    noise = random.normal(size=(MODELS, DATASETS, 2))
    rows = [gain_rows(noise, task, seeds=2) for task in "stuvw"]
    row = next(
        r
        for r in noise_ceiling_table(gain_table_of(*rows)).to_pylist()
        if (r["scope"], r["effects"]) == ("all", "none")
    )
    expected = noise.var(axis=2, ddof=1).mean() / 2
    assert row["seed_noise"] == pytest.approx(expected)
    assert row["seed_df"] == MODELS * DATASETS


def test_curves_are_of_datasets_that_have_every_epoch() -> None:
    subject: dict[str, object] = {
        "model": "m",
        "method": "full",
        "schedule": "constant",
        "task": "t",
        "primary": True,
        "seed": 0,
    }
    at = [("a", 1000, 1, 0.1), ("a", 1000, 2, 0.2), ("b", 1000, 1, 0.3), ("b", 1000, 2, 0.6), ("c", 1000, 2, 9.0)]
    at += [("a", 20000, 1, 0.5), ("a", 20000, 2, 0.7)]
    rows = [
        {**subject, "dataset": d, "size": s, "epoch": e, "gain": g, "scaled_gain": g, "learning_rate": 1e-5}
        for d, s, e, g in at
    ]
    rows.append({**rows[0], "learning_rate": 1e-3, "gain": 5.0, "scaled_gain": 5.0})
    found = epoch_gains_table(pa.Table.from_pylist(rows, GAINS)).to_pylist()
    curve = {(row["learning_rate"], row["size"], row["epoch"]): (row["gain"], row["datasets"]) for row in found}
    assert curve == {  # b has no 20,000 rows, c no first epoch
        (1e-5, 1000, 1): (0.1, 1),
        (1e-5, 1000, 2): (0.2, 1),
        (1e-5, 20000, 1): (0.5, 1),
        (1e-5, 20000, 2): (0.7, 1),
        (1e-3, 1000, 1): (5.0, 1),
    }
    alone = epoch_gains_table(pa.Table.from_pylist([row for row in rows if row["size"] == 1000], GAINS)).to_pylist()
    of_both = next(row for row in alone if row["epoch"] == 2)
    assert (of_both["gain"], of_both["datasets"]) == (pytest.approx(0.4), 2)
