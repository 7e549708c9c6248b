"""Lint finds each defect that is planted, and nothing in clean tables."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raysft.store.schema import TABLES
from raysft.study.lint import lint_table
from raysft.study.lint.duplicates import copied_pairs, identical_rows
from raysft.study.lint.scores import scale_of
from raysft.study.run import study_of
from tests.unit.synthetic_tables import Sweep, synthetic_tables

pytestmark = pytest.mark.unit

Row = dict[str, Any]
MODELS, DATASETS, TASKS = "pqrs", "abcdef", ("boolq", "math", "mmlu", "nq", "code")


def clean_rows(seed: int = 0) -> list[Row]:
    """Scores of four base models and of two methods on six datasets, none alike to the last digit."""
    random = np.random.default_rng(seed)
    rows = []
    for model in MODELS:
        subjects: list[Row] = [{"model": model, "epoch": 0}]
        subjects += [
            {
                "model": model,
                "dataset": dataset,
                "method": method,
                "trial": f"{model}{dataset}{method}",
                "size": 1000,
                "schedule": "cosine",
                "epochs": 3,
                "epoch": 3,
            }
            for dataset, method in product(DATASETS, ("full", "lora"))
        ]
        for subject, task in product(subjects, TASKS):
            # "code" has 20 items, so its scores tie all the time.
            value = random.integers(0, 20) * 5.0 if task == "code" else 55 + 40 * random.random()
            rows.append({**subject, "task": task, "metric": "acc", "value": value, "n": 1000, "chance": 25.0})
    return rows


def lint(rows: list[Row], **tables: list[Row]) -> list[Row]:
    every = {"scores": rows, **tables}
    return lint_table(
        {name: pa.Table.from_pylist(found, schema=TABLES[name]) for name, found in every.items()}
    ).to_pylist()


def of(findings: list[Row], check: str) -> list[Row]:
    return [row for row in findings if row["check"] == check and row["severity"] != "note"]


def score(rows: list[Row], model: str, task: str, dataset: str | None = None, method: str | None = None) -> Row:
    place = {"model": model, "task": task, "dataset": dataset, "method": method}
    (row,) = (row for row in rows if all(row.get(name) == value for name, value in place.items()))
    return row


def test_clean_scores_have_only_notes_on_what_could_not_be_checked() -> None:
    findings = lint([row for row in clean_rows() if row["task"] != "code"])
    assert {row["severity"] for row in findings} == {"note"}
    assert {row["check"] for row in findings} == {
        "diverged_trial",
        "low_precision_delta",
        "contaminated_pair",
        "single_seed",
        "changed_version",
    }


def test_two_base_models_with_the_same_scores_are_one_measurement() -> None:
    rows = clean_rows()
    for task in TASKS:
        score(rows, "q", task)["value"] = score(rows, "p", task)["value"]
    (found,) = of(lint(rows), "duplicate_baseline")
    assert (found["severity"], found["subject"]) == ("error", "p (base) = q (base)")
    assert found["detail"].startswith("identical in all 5 scores")


def test_a_row_that_was_copied_in_part_is_found_and_its_columns_are_named() -> None:
    rows = clean_rows()
    for task in ("boolq", "math", "mmlu", "nq"):
        score(rows, "r", task, "b", "full")["value"] = score(rows, "r", task, "e", "lora")["value"]
    (found,) = of(lint(rows), "duplicate_scores")
    assert found["severity"] == "error"
    assert (
        found["subject"] == "r / b / full / 1000 rows / cosine / epoch 3 = r / e / lora / 1000 rows / cosine / epoch 3"
    )
    assert ": boolq, math, mmlu, nq" in found["detail"]


@pytest.mark.parametrize("seed", range(10))
def test_ties_on_benchmarks_of_few_items_are_no_copies(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(0, 17, (200, 25)) / 16
    assert copied_pairs(values, [f"m{at % 8}" for at in range(200)]) == {}


def test_a_value_that_many_rows_share_tells_nothing_in_a_column_that_else_never_ties() -> None:
    random = np.random.default_rng(0)
    values = random.random((300, 6))
    for column in range(6):
        values[random.choice(300, 20, replace=False), column] = 0.6217  # what always saying yes scores
    values[7, :4] = values[9, :4] = 0.6217
    assert copied_pairs(values, ["m"] * 300) == {}
    values[7, :4] = values[9, :4] = random.random(4)
    assert list(copied_pairs(values, ["m"] * 300)) == [(7, 9)]


def test_identical_rows_are_grouped_and_columns_that_never_vary_do_not_count() -> None:
    values = np.array([[1, 2, 3, 9], [1, 2, 3, 9], [1, 2, 4, 9], [1, 2, 3, 9], [5, 6, np.nan, 9], [5, 6, np.nan, 9]])
    assert identical_rows(values) == [[0, 1, 3]]


@pytest.mark.parametrize(
    ("values", "scale"),
    [([0, 0.18], "0 to 1"), ([1, 6.1], "1 to 10"), ([0, 6.1], "0 to 10"), ([0, 10.8], "0 to 100"), ([np.nan], None)],
)
def test_the_scale_of_a_column(values: list[float], scale: str | None) -> None:
    assert scale_of(np.array(values)) == scale


def test_columns_on_another_scale_than_most_are_named_with_theirs() -> None:
    rows = clean_rows()
    for row in rows:
        row["value"] /= {"nq": 100, "mmlu": 15}.get(row["task"], 1)
    found = {row["subject"]: row["detail"].partition(" (")[0] for row in of(lint(rows), "mixed_scales")}
    assert found == {"nq": "on 0 to 1", "mmlu": "on 1 to 10"}


def test_a_column_on_two_scales_is_an_error() -> None:
    rows = clean_rows()
    for row in rows:
        row["value"] /= 100 if row["task"] == "nq" and row["model"] in "ps" else 1
    (found,) = (row for row in of(lint(rows), "mixed_scales") if row["severity"] == "error")
    assert (found["subject"], found["detail"]) == ("nq", "on 0 to 1 for p, s, on 0 to 100 for the other models")


def test_scores_below_chance_are_counted_and_those_far_below_were_not_read() -> None:
    rows = [row for row in clean_rows() if row["task"] != "code"]
    for row in rows:
        if row["task"] == "boolq":
            row |= {"chance": 50.0, "value": 49.0 if row["model"] in "pq" else 20.0 if row["model"] == "r" else 80.0}
    findings = lint(rows)
    details = [row["detail"] for row in of(findings, "at_or_below_chance")]
    assert details == [
        "36 of 48 (75%) of the fine-tuned scores are at or below 50",
        "3 of 4 (75%) of the base scores are at or below 50",
    ]
    # 49 of 100 is a guess (0.6 standard errors of 1,000 items below 50), 20 of 100 is not.
    (found,) = of(findings, "format_failure")
    assert found["detail"].startswith("13 of 52 (25%)")


def test_a_score_below_chance_whose_answers_were_read_is_no_format_failure() -> None:
    rows = [{**row, "value": 5.0, "unextracted": 0.0} for row in clean_rows() if row["task"] == "boolq"]
    assert of(lint(rows), "format_failure") == []
    unread = of(lint([{**row, "unextracted": None} for row in rows]), "format_failure")
    assert unread[0]["detail"].startswith("52 of 52 (100%)")


def test_answers_that_could_not_be_read_or_do_not_end() -> None:
    rows = clean_rows()
    score(rows, "p", "math", "a", "full")["unextracted"] = 0.4
    score(rows, "p", "nq", "a", "full")["degenerate"] = 0.9
    found = {row["subject"]: row["detail"] for row in of(lint(rows), "format_failure") if row["subject"] != "code"}
    assert found["math"].endswith("nothing could be extracted, at worst 40%")
    assert found["nq"].endswith("do not end, at worst 90%")


def test_constant_and_nearly_constant_columns() -> None:
    rows = clean_rows()
    for row in rows:
        if row["task"] in ("nq", "math"):
            row["value"] = 60.0
    score(rows, "p", "math")["value"] = 61.0
    found = {row["subject"]: row["severity"] for row in of(lint(rows), "constant_column")}
    assert found == {"nq": "error", "math": "warning"}


def test_missing_scores_are_described_by_what_their_rows_share() -> None:
    lacking = [
        r for r in clean_rows() if not (r["model"] == "p" and r.get("method") == "lora" and r["task"] in ("nq", "math"))
    ]
    (found,) = of(lint(lacking), "missing_cells")
    assert found["subject"] == "math, nq"
    assert (
        found["detail"]
        == "missing from 6 of 52 (12%) rows, all of model p, method lora, size 1000, schedule cosine, epoch 3"
    )


def test_a_trial_absent_from_a_full_crossing_and_a_model_without_its_base() -> None:
    rows = [r for r in clean_rows() if (r["model"], r.get("dataset"), r.get("method")) != ("q", "c", "full")]
    rows = [r for r in rows if not (r["model"] == "s" and r["epoch"] == 0)]
    found = {row["subject"]: row for row in of(lint(rows), "missing_cells")}
    assert found["full, 1000, cosine"]["detail"].endswith("q / c (epoch 3)")
    assert (found["s"]["severity"], found["s"]["detail"]) == (
        "error",
        "no scores of the base model: 12 rows without a gain",
    )


def test_a_design_that_does_not_cross_is_not_missing_anything() -> None:
    rows = [r for r in clean_rows() if r["epoch"] == 0 or MODELS.index(r["model"]) == DATASETS.index(r["dataset"])]
    assert of(lint(rows), "missing_cells") == []


TRIAL = {"model": "m", "dataset": "d", "method": "full", "size": 64, "schedule": "cosine", "epochs": 2, "epoch": 2}


def trial(key: str, seed: int, state: str = "done", **more: object) -> Row:
    return {**TRIAL, "trial": key, "seed": seed, "state": state, **more}


def test_diverged_failed_and_missing_trials() -> None:
    trials = [trial("a", 0, "diverged", diverged_in_epoch=2), trial("b", 1, "failed"), trial("c", 2, "done")]
    findings = lint(clean_rows(), trials=trials)
    (found,) = of(findings, "diverged_trial")
    assert found["subject"] == "m / d / full / 64 rows / cosine / seed 0"
    assert found["detail"] == "its loss was not finite in epoch 2"
    assert [row["subject"] for row in of(findings, "missing_cells")] == ["failed trials"]


def test_one_seed_is_said_and_two_are_enough() -> None:
    alone = [trial("a", 0), trial("b", 1), trial("c", 0, dataset="e")]
    (found,) = of(lint(clean_rows(), trials=alone), "single_seed")
    assert found["detail"].startswith("1 of 2 (50%) settings")
    assert of(lint(clean_rows(), trials=alone[:2]), "single_seed") == []


def test_weight_changes_between_weights_too_coarse_to_hold_them() -> None:
    subject = {**TRIAL, "trial": "a", "seed": 0, "level": "model", "base_dtype": "bfloat16"}
    coarse = {**subject, "dtype": "bfloat16", "low_precision": True, "zero_fraction": 0.78}
    fine = {**subject, "trial": "b", "dtype": "float32", "low_precision": False, "zero_fraction": 0.0}
    (found,) = of(lint(clean_rows(), weight_change=[coarse, fine]), "low_precision_delta")
    assert found["detail"].startswith(
        "1 of 2 (50%) checkpoints were compared in bfloat16 with a base in bfloat16, up to 78%"
    )
    assert of(lint(clean_rows(), weight_change=[fine]), "low_precision_delta") == []


def test_contaminated_pairs() -> None:
    pair = {"dataset": "d", "task": "gsm8k", "ngram": 13, "items": 1000}
    many = [
        {**pair, "overlap": 0.2},
        {**pair, "task": "nq", "overlap": 0.02},
        {**pair, "task": "boolq", "overlap": 0.0},
    ]
    found = {row["subject"]: row["severity"] for row in of(lint(clean_rows(), contamination=many), "contaminated_pair")}
    assert found == {"d / gsm8k": "error", "d / nq": "warning"}


def test_versions_that_changed_while_the_sweep_ran() -> None:
    costs = pa.Table.from_pylist([{"stage": "train", "key": key} for key in "abc"], schema=TABLES["costs"])
    versions = ["numpy 2.4; torch 2.12", "numpy 2.4; torch 2.13", None]
    costs = costs.drop_columns(["versions"]).append_column("versions", pa.array(versions, pa.string()))
    scores = pa.Table.from_pylist(clean_rows(), schema=TABLES["scores"])
    (found,) = of(lint_table({"scores": scores, "costs": costs}).to_pylist(), "changed_version")
    assert (found["subject"], found["detail"]) == ("torch", "2.12 (1 results), 2.13 (1 results) in train")


def test_nothing_to_check_is_an_error_and_not_a_clean_bill() -> None:
    assert [row["check"] for row in lint([]) if row["severity"] == "error"] == ["scores"]


def test_a_study_of_a_sweep_has_its_lint() -> None:
    found = study_of(synthetic_tables(Sweep(failed=frozenset({("micro-llama", "reverse", "lora")})))).tables["lint"]
    checks = {(row["check"], row["severity"]) for row in found.to_pylist()}
    assert {("single_seed", "warning"), ("contaminated_pair", "warning"), ("missing_cells", "warning")} <= checks
