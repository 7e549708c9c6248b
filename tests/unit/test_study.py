"""The study on tables whose answers are planted."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from raysft.store.schema import TABLES
from raysft.study.association import associate, within
from raysft.study.benchmarks import RELEASED
from raysft.study.depth import intrinsic_dimension_by_depth
from raysft.study.gains import gain_matrix, gain_table, primary_metric, score_scale, task_scale
from raysft.study.maps import centred, model_map
from raysft.study.matching import matches
from raysft.study.matrix import pivot
from raysft.study.run import Study, run_study, study_of
from raysft.study.schema import STUDY_TABLES
from raysft.study.similarity import cluster, correlation_matrix, linkage_table, similarity_table
from raysft.study.variants import trial_variants
from tests.unit.synthetic_tables import ITEMS, LOSS, OWN, SYNERGY, Sweep, score_row, synthetic_tables, write_tables

pytestmark = pytest.mark.unit

SWEEP = Sweep(
    failed=frozenset({("micro-gemma2", "reverse", "lora")}),
    missing=frozenset({("micro-qwen3", "counting", "full")}),
)


@pytest.fixture(scope="module")
def study() -> Study:
    return study_of(synthetic_tables(SWEEP))


def rows_of(table: pa.Table, **equal: object) -> list[dict[str, object]]:
    return [row for row in table.to_pylist() if all(row[name] == value for name, value in equal.items())]


def the_row(table: pa.Table, **equal: object) -> dict[str, object]:
    (row,) = rows_of(table, **equal)
    return row


def scores(*rows: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=TABLES["scores"])


def one_gain(base: dict[str, object], tuned: dict[str, object]) -> dict[str, object]:
    subject = {"task": "t", "metric": "acc", "model": "m"}
    trial = {"trial": "x", "dataset": "d", "method": "full", "epoch": 1}
    (row,) = gain_table(scores({**subject, "epoch": 0, **base}, {**subject, **trial, **tuned}), {}).to_pylist()
    return row


def test_gain_and_its_error_are_the_difference_and_the_root_of_summed_squares() -> None:
    row = one_gain(
        {"value": 0.4, "stderr": 0.03, "bits_per_byte": 2.5}, {"value": 0.9, "stderr": 0.04, "bits_per_byte": 1.0}
    )
    assert row["gain"] == pytest.approx(0.5)
    assert row["stderr"] == pytest.approx(0.05)
    assert row["z"] == pytest.approx(10)
    assert row["bits_gain"] == pytest.approx(1.5)


def test_where_lower_is_better_a_fall_is_a_gain() -> None:
    row = one_gain({"value": 9.0, "higher_is_better": False}, {"value": 7.0, "higher_is_better": False})
    assert row["gain"] == pytest.approx(2)
    assert row["stderr"] is None
    assert row["z"] is None


def test_none_right_then_all_right_is_clear_although_both_samples_have_no_variance() -> None:
    row = one_gain({"value": 0.0, "stderr": 0.0, "n": 96}, {"value": 1.0, "stderr": 0.0, "n": 96})
    one_side = np.sqrt(0.02 * 0.98 / 100)  # Agresti-Coull at 0 of 96: p = 2 / 100
    assert row["z"] == pytest.approx(1 / np.hypot(one_side, one_side))


def test_an_error_of_zero_gives_no_z_where_the_score_is_no_proportion() -> None:
    bleu = {"metric": "bleu", "stderr": 0.0, "n": 9}
    assert one_gain({**bleu, "value": 0.0}, {**bleu, "value": 0.5})["z"] is None


def test_two_base_scores_for_one_cell_are_refused_by_name() -> None:
    twice = {"model": "m", "epoch": 0, "task": "t", "metric": "acc", "value": 0.1}
    with pytest.raises(ValueError, match="2 base rows for m, t, acc"):
        gain_table(scores(twice, twice), {})


@pytest.mark.parametrize(
    ("largest", "scale"),
    [(0.0, 1), (1.0, 1), (1.0000000000000002, 1), (1.001, 10), (10.000000000000002, 10), (11, 100)],
)
def test_a_scale_is_not_changed_by_rounding(largest: float, scale: float) -> None:
    assert score_scale(largest) == scale


@pytest.mark.parametrize(
    ("task", "metric", "largest", "scale"),
    [
        ("capitals", "exact_match,strip", 8.0, 100),  # a weak model's percentages
        ("capitals", "exact_match,strip", 0.8, 1),
        ("humaneval-0shot", RELEASED, 8.0, 100),
        ("mtbench-total", RELEASED, 8.0, 10),
        ("mtbench", "turn_score", 8.0, 10),
        ("humaneval", "seconds", 8.0, 10),  # the name of a benchmark says nothing of its other metrics
    ],
)
def test_shares_of_items_are_of_one_or_a_hundred(task: str, metric: str, largest: float, scale: float) -> None:
    assert task_scale(task, metric, largest) == scale
    base = {"model": "m", "epoch": 0, "task": task, "metric": metric, "value": largest / 2}
    table = gain_table(scores(base, {**base, "trial": "x", "epoch": 1, "value": largest}), {})
    assert table["scaled_gain"].to_pylist() == pytest.approx([largest / 2 / scale])


def test_tasks_on_different_scales_count_alike_once_averaged() -> None:
    tenth, hundredth = ({"task": "t", "metric": "acc", "model": "m", "value": value} for value in (0.2, 20.0))
    trial = {"trial": "x", "dataset": "d", "method": "full", "epoch": 1}
    rows = [{**tenth, "epoch": 0}, {**tenth, **trial, "value": 0.5}]
    rows += [{**hundredth, "task": "u", "epoch": 0}, {**hundredth, **trial, "task": "u", "value": 50.0}]
    table = gain_table(scores(*rows), {})
    assert table["scale"].to_pylist() == [1, 100]
    assert table["gain"].to_pylist() == pytest.approx([0.3, 30])
    assert table["scaled_gain"].to_pylist() == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize(
    ("metrics", "primary"),
    [
        (["acc,none", "exact_match,strict", "acc_norm,none"], "exact_match,strict"),
        (["acc_norm,none", "acc,none"], "acc,none"),
        (["bleu", "acc_norm,none"], "acc_norm,none"),
        (["rouge", "bleu"], "bleu"),
        (["exact_match,strict", "exact_match,flexible"], "exact_match,flexible"),
    ],
)
def test_primary_metric(metrics: list[str], primary: str) -> None:
    assert primary_metric(metrics) == primary


@pytest.mark.parametrize(
    ("dataset", "task", "expected"),
    [
        ("capitals", "micro_capitals_exact", True),
        ("gsm8k_train", "gsm8k", True),
        ("copy_words", "micro_reverse_words_choice", False),
        ("capitals", "micro_addition_exact", False),
        ("micro_exact", "micro_addition_exact", False),
        ("code_20k", "Code-eval", True),
    ],
)
def test_matching_goes_by_the_telling_words(dataset: str, task: str, expected: bool) -> None:
    assert matches(dataset, task) is expected


def test_the_matrix_holds_what_was_planted(study: Study) -> None:
    matrix = study.tables["gain_matrix"]
    full = {(row["dataset"], row["task"]): row["gain"] for row in rows_of(matrix, variant="full")}
    assert full["capitals", "micro_capitals_exact"] == pytest.approx(OWN)
    assert full["reverse", "micro_uppercase_choice"] == pytest.approx(SYNERGY)
    assert full["capitals", "micro_addition_exact"] == pytest.approx(LOSS)
    assert full["counting", "micro_reverse_exact"] == pytest.approx(0)
    lora = the_row(matrix, variant="lora", dataset="reverse", task="micro_reverse_exact")
    assert lora["gain"] == pytest.approx(0.8 * OWN)
    assert (lora["models"], lora["cells"]) == (2, 2)


def test_seeds_do_not_shrink_the_error_that_they_share_with_their_base() -> None:
    base = {"model": "m", "epoch": 0, "task": "t", "metric": "acc", "value": 0.2, "stderr": 0.03}
    seeds = [
        {
            **base,
            "trial": f"x{seed}",
            "dataset": "d",
            "method": "full",
            "seed": seed,
            "epoch": 1,
            "value": 0.4,
            "stderr": 0.04,
        }
        for seed in range(4)
    ]
    (cell,) = gain_matrix(gain_table(scores(base, *seeds), {f"x{seed}": "full" for seed in range(4)})).to_pylist()
    assert cell["stderr"] == pytest.approx(np.sqrt(0.03**2 + 0.04**2 / 4))
    assert (cell["models"], cell["cells"]) == (1, 4)


def test_only_the_last_measured_epoch_is_final(study: Study) -> None:
    gains = study.tables["gains"]
    assert set(gains.filter(gains["final"])["epoch"].to_pylist()) == {3}
    assert set(gains["epoch"].to_pylist()) == {1, 2, 3}


def test_variants_name_what_differs_within_a_method() -> None:
    rows = [
        {"trial": "a", "method": "full", "size": 1000, "learning_rate": 1e-5, "schedule": "cosine", "epochs": 10},
        {"trial": "b", "method": "full", "size": None, "learning_rate": 1e-5, "schedule": "cosine", "epochs": 10},
        {"trial": "c", "method": "lora", "size": 1000, "learning_rate": 2e-6, "schedule": "cosine", "epochs": 10},
    ]
    table = pa.Table.from_pylist(rows, schema=TABLES["trials"])
    assert trial_variants(table) == {"a": "full, 1,000 rows", "b": "full, all rows", "c": "lora"}


def test_checks_count_what_was_planted(study: Study) -> None:
    checks = study.summary["checks"]
    assert (checks["trials_done"]["value"], checks["trials_done"]["of"]) == (28, 30)
    assert checks["trials_failed"]["value"] == checks["trials_missing"]["value"] == 1
    assert checks["own_skill_gains"]["value"] == checks["own_skill_gains"]["of"] == 28
    assert checks["matching_gains"]["value"] == checks["matching_gains"]["of"] == 2 * 28
    # Each planted pair has two tasks; reverse lacks one lora trial, capitals has all six.
    assert checks["synergies"]["value"] == 2 * 5
    assert checks["losses"]["value"] == 2 * 6
    assert checks["scores_unused"]["value"] == 0


def test_tasks_that_always_gain_together_correlate_fully(study: Study) -> None:
    pair = the_row(study.tables["similarity"], kind="task", a="micro_reverse_exact", b="micro_reverse_choice")
    assert pair["r"] == pytest.approx(1)
    assert pair["n"] == 28


def planted_similarity(vectors: dict[str, list[float]]) -> pa.Table:
    """Similarities of tasks with the given gains, one trial an entry."""
    rows = [{"model": "m", "epoch": 0, "task": task, "metric": "acc", "value": 0.0} for task in vectors]
    for task, values in vectors.items():
        for trial, value in enumerate(values):
            place = {"trial": f"x{trial}", "dataset": f"d{trial}", "method": "full", "epoch": 1}
            rows.append({"model": "m", "task": task, "metric": "acc", "value": value, **place})
    return similarity_table(gain_table(scores(*rows), {}))


def test_linkage_joins_the_nearest_first_and_leaves_out_what_is_constant() -> None:
    similarity = planted_similarity(
        {"a": [1, 2, 3, 4], "b": [2, 1, 4, 3], "c": [1.1, 2.0, 3.1, 4.2], "flat": [1, 1, 1, 1]}
    )
    found = cluster(correlation_matrix(similarity, "task"))
    assert list(found.skipped) == ["flat"]
    first, second = linkage_table({"task": found}).to_pylist()
    assert {first["left_name"], first["right_name"]} == {"a", "c"}
    assert {second["left_name"], second["right_name"]} == {"b", None}
    ab, cb = (the_row(similarity, kind="task", a=name, b="b")["r"] for name in "ac")
    assert second["distance"] == pytest.approx(1 - (ab + cb) / 2)
    assert second["count"] == 3
    assert the_row(similarity, kind="task", a="flat", b="a")["reason"] == "constant"


def test_too_few_common_entries_leave_a_reason_and_no_number() -> None:
    pair = the_row(planted_similarity({"a": [1, 2], "b": [2, 1]}), kind="task", a="a", b="b")
    assert (pair["r"], pair["n"], pair["reason"]) == (None, 2, "2 common points, 3 needed")


def grid_effects(slope: float, confounding: float) -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
    """x and y on a 12 x 10 grid that share model and dataset effects, and a slope within them."""
    random = np.random.default_rng(0)
    cells = list(product(range(12), range(10)))
    model, dataset = random.normal(size=12), random.normal(size=10)
    shared = np.array([model[i] + dataset[j] for i, j in cells])
    x = confounding * shared + random.normal(size=len(cells))
    y = confounding * shared + slope * x + random.normal(scale=0.1, size=len(cells))
    return x, y, [[f"m{i}" for i, _ in cells], [f"d{j}" for _, j in cells]]


def test_fixed_effects_recover_a_planted_slope_from_an_unbalanced_grid() -> None:
    x, y, groups = grid_effects(slope=0.7, confounding=3)
    y[::7] = np.nan
    found = within(x, y, groups)
    assert found.slope == pytest.approx(0.7, abs=0.03)
    assert found.df == np.isfinite(y).sum() - (12 + 10 - 1) - 1
    assert found.p < 1e-10


def test_fixed_effects_see_nothing_where_all_is_confounding() -> None:
    x, y, groups = grid_effects(slope=0, confounding=3)
    assert associate(x, y).pearson > 0.9
    assert abs(within(x, y, groups).r) < 0.2


def test_fixed_effects_say_why_there_is_no_coefficient() -> None:
    groups = [["a", "a", "b", "b"], ["c", "d", "c", "d"]]
    additive = within(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 0.0, 2.0]), [groups[0]])
    assert additive.r == pytest.approx(3 / np.sqrt(10))
    assert "degrees of freedom" in str(within(np.arange(4.0), np.array([0.0, 1, 0, 2]), [*groups, list("wxyz")]).reason)
    longer = [[*"aabbcc"], [*"dededefg"][:6]]
    flat = within(np.array([1.0, 2, 1, 2, 1, 2]), np.array([1.0, 4, 2, 6, 3, 1]), longer)
    assert flat.reason == "the predictor does not vary within models and datasets"


def test_similarity_of_texts_goes_with_gain_where_it_is_planted(study: Study) -> None:
    cells = the_row(study.tables["correlations"], predictor="similarity", variant="full", scope="cells")
    assert cells["within"] > 0.9
    assert cells["n"] == 140


def test_weight_change_is_pooled_over_the_tensors_of_a_layer() -> None:
    tables = synthetic_tables(Sweep(models=["m"], datasets=["a"], methods=["full"], epochs=1))
    change = [3.0 if module == "q_proj" else 4.0 for module in tables["weight_change"]["module"].to_pylist()]
    at = tables["weight_change"].column_names.index("change_norm")
    tables["weight_change"] = tables["weight_change"].set_column(at, "change_norm", pa.array(change, pa.float64()))
    pooled = study_of(tables).tables["weight_change_by_depth"]
    assert pooled["relative_change"].to_pylist() == pytest.approx([5 / np.sqrt(200)] * 4)
    assert pooled["tensors"].to_pylist() == [2] * 4


def test_pooled_rows_of_weight_change_are_not_pooled_again() -> None:
    tables = synthetic_tables(Sweep(models=["m"], datasets=["a"], methods=["full"], epochs=1))
    alone = study_of(tables).tables["weight_change_by_depth"]
    change = tables["weight_change"]
    at = change.column_names.index("level")
    levels = {
        level: change.set_column(at, "level", pa.array([level] * change.num_rows))
        for level in ("tensor", "layer", "module")
    }
    tables["weight_change"] = pa.concat_tables([levels["tensor"], levels["layer"], levels["module"]])
    assert study_of(tables).tables["weight_change_by_depth"].equals(alone)


def test_models_of_different_heights_are_compared_at_shared_depths() -> None:
    tall = synthetic_tables(Sweep(models=["tall"], layers=6, epochs=1))
    low = synthetic_tables(Sweep(models=["low"], layers=4, epochs=1))
    both = {name: pa.concat_tables([tall[name], low[name]]) for name in tall}
    rows = rows_of(study_of(both).tables["correlations"], predictor="weight_change", variant="full", scope="all")
    assert [row["depth"] for row in rows] == pytest.approx(np.linspace(0, 1, 11))
    assert {row["n"] for row in rows} == {10}


def test_intrinsic_dimension_is_set_beside_that_of_the_base_on_the_same_texts(study: Study) -> None:
    rows = study.tables["intrinsic_dimension_by_depth"].to_pylist()
    assert len(rows) == 28 * 5 * 5
    assert [row["change"] for row in rows] == pytest.approx([-1.5 * row["depth"] for row in rows])
    assert all(row["texts_of"] == row["dataset"] for row in rows)


def test_a_checkpoint_is_set_beside_its_base_on_the_same_texts_and_no_others() -> None:
    """Two sizes of one dataset, two text sets of its base; and no change where they hold other numbers of texts."""
    place = {"model": "m", "texts_of": "d", "layer": 1, "depth": 0.5, "estimator": "twonn", "scale": 2}
    bases = [
        {**place, "same_texts": texts, "value": value, "n": n} for texts, value, n in [("a", 5.0, 9), ("b", 7.0, 99)]
    ]
    trials = [
        {**place, "trial": trial, "dataset": "d", "method": "full", "epoch": 1, "epochs": 1, "value": 6.0}
        | {"same_texts": texts, "n": n}
        for trial, texts, n in [("x", "a", 9), ("y", "b", 99), ("z", "b", 98)]
    ]
    table = pa.Table.from_pylist([*bases, *trials], schema=TABLES["intrinsic_dimension"])
    rows = intrinsic_dimension_by_depth(table, dict.fromkeys("xyz", "full")).to_pylist()
    found = {row["trial"]: (row["before"], row["after"], row["change"]) for row in rows}
    assert len(rows) == 3
    assert found == {"x": (5.0, 6.0, 1.0), "y": (7.0, 6.0, -1.0), "z": (7.0, 6.0, None)}


def likelihoods(vectors: dict[str, np.ndarray]) -> pa.Table:
    rows = [
        {"model": model, "epoch": 0, "text": text, "log_likelihood": float(value)}
        for model, values in vectors.items()
        for text, value in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, schema=TABLES["log_likelihood"])


def test_equal_models_lie_at_distance_zero_and_others_at_their_mean_square() -> None:
    random = np.random.default_rng(0)
    a, c = random.normal(-50, 1, (2, 30))
    found = model_map(likelihoods({"a": a, "b": a, "c": c}), {})
    distance = {(row["a"], row["b"]): row["two_kl"] for row in found.distances.to_pylist()}
    assert distance["a", "b"] == pytest.approx(0, abs=1e-20)
    vectors = centred(np.stack([a, a, c]))
    assert distance["a", "c"] == pytest.approx(((vectors[0] - vectors[2]) ** 2).mean())
    a_at, b_at, _ = zip(found.points["x"].to_pylist(), found.points["y"].to_pylist(), strict=True)
    assert a_at == pytest.approx(b_at)


def test_clipping_replaces_the_bottom_of_the_pooled_matrix_only() -> None:
    matrix = np.linspace(-100, -1, 100).reshape(2, 50)
    clipped = np.maximum(matrix, np.quantile(matrix, 0.02))
    expected = clipped - clipped.mean(axis=1, keepdims=True)
    assert centred(matrix) == pytest.approx(expected - expected.mean(axis=0))
    assert (clipped != matrix).sum() == 2


def test_a_model_without_all_texts_is_left_out_by_name() -> None:
    found = model_map(likelihoods({"a": np.arange(5.0), "b": np.arange(4.0), "c": np.arange(5.0) ** 2}), {})
    assert found.skipped == {"b": "4 of 5 texts"}
    assert found.points["model"].to_pylist() == ["a", "c"]


def test_the_map_is_a_tsne_of_every_checkpoint_and_each_is_nearest_its_own_base(study: Study) -> None:
    points = study.tables["map"]
    assert points.num_rows == 3 + 3 * 28
    assert set(points["projection"].to_pylist()) == {"tsne"}
    assert pc.min(points["from_base"]).as_py() == 0
    assert points["from_base"].null_count == 0


def test_equal_tables_give_equal_files_whatever_their_row_order(tmp_path: Path) -> None:
    tables = synthetic_tables(Sweep(models=["m", "n"], datasets=["a", "b", "c"], epochs=2, noise=0.05))
    random = np.random.default_rng(0)
    shuffled = {name: table.take(random.permutation(table.num_rows)) for name, table in tables.items()}
    run_study(write_tables(tables, tmp_path / "in"), tmp_path / "a")
    run_study(write_tables(shuffled, tmp_path / "shuffled"), tmp_path / "b")
    for name, schema in STUDY_TABLES.items():
        a, b = (pq.read_table(tmp_path / side / "tables" / f"{name}.parquet") for side in "ab")
        assert a.schema.equals(schema), name
        assert a.equals(b), name
    assert (tmp_path / "a" / "summary.json").read_bytes() == (tmp_path / "b" / "summary.json").read_bytes()
    assert not list(tmp_path.rglob(".*"))


STUDIED = {"trials", "scores", "data_properties", "weight_change", "intrinsic_dimension", "log_likelihood"}
DEGENERATE = {
    "one of everything": Sweep(models=["m"], datasets=["d"], methods=["full"], epochs=1),
    "one model": Sweep(models=["m"], epochs=2),
    "one dataset": Sweep(datasets=["d"], epochs=2),
    "one layer": Sweep(layers=1, models=["m"], epochs=1),
    "nothing done": Sweep(models=["m"], datasets=["d"], methods=["full"], missing=frozenset({("m", "d", "full")})),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_sweeps_are_studied_without_numbers_that_mean_nothing(name: str) -> None:
    found = study_of(synthetic_tables(DEGENERATE[name]))
    for row in found.tables["correlations"].to_pylist():
        assert (row["within"] is not None) or row["reason"]
    json.dumps(found.summary, allow_nan=False)


@pytest.mark.parametrize("emptied", [*sorted(STUDIED), "all"])
def test_missing_tables_leave_the_rest(tmp_path: Path, emptied: str) -> None:
    tables = synthetic_tables(Sweep(models=["m", "n"], datasets=["a", "b"], epochs=2))
    kept = {name: table for name, table in tables.items() if emptied not in (name, "all")}
    found = run_study(write_tables(kept, tmp_path / "in"), tmp_path / "out")
    assert found.tables["gains"].num_rows == (0 if emptied in ("scores", "all") else 8 * 2 * 4)


def test_a_missing_cell_is_missing_and_no_zero() -> None:
    tables = synthetic_tables(Sweep(epochs=1, layers=1, texts=5))
    gone = pc.and_(
        pc.equal(tables["scores"]["task"], "micro_reverse_exact"), pc.equal(tables["scores"]["model"], "micro-llama")
    )
    tables["scores"] = tables["scores"].filter(pc.invert(gone))
    found = study_of(tables)
    cell = the_row(found.tables["gain_matrix"], variant="full", dataset="reverse", task="micro_reverse_exact")
    assert (cell["models"], cell["gain"]) == (2, pytest.approx(OWN))
    pair = the_row(found.tables["similarity"], kind="task", a="micro_reverse_exact", b="micro_reverse_choice")
    assert pair["n"] == 20


def test_scores_that_are_not_finite_are_counted_and_left_out() -> None:
    subject = {"model": "m", "dataset": "d", "method": "full", "trial": "x", "epoch": 1}
    bad = score_row(subject, "t_exact", float("nan"), 1.0)
    base = {**score_row({"model": "m", "epoch": 0}, "t_exact", 0.5, 1.0), "n": ITEMS}
    sweep = {name: schema.empty_table() for name, schema in TABLES.items()}
    found = study_of({**sweep, "scores": scores({**base}, {**bad, "stderr": None})})
    assert found.tables["gains"].num_rows == 0
    assert found.summary["checks"]["scores_unused"]["value"] == 1


def test_tables_must_lie_in_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        run_study(tmp_path / "nowhere", tmp_path / "out")


def test_pivot_averages_repeats_and_keeps_gaps() -> None:
    table = pa.table({"r": ["b", "a", "a"], "c": ["x", "x", "x"], "v": [1.0, 2.0, 4.0]})
    wide = pivot(pa.concat_tables([table, pa.table({"r": ["a"], "c": ["y"], "v": [7.0]})]), ["r"], "c", "v")
    assert (wide.rows, wide.columns) == (("a", "b"), ("x", "y"))
    np.testing.assert_array_equal(wide.values, [[3, 7], [1, np.nan]])
