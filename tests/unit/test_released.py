"""Released scores: a made CSV of the form of the paper's, files of other shapes, and the paper's own if it is there."""

from __future__ import annotations

import csv
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from raysft.cli import app
from raysft.store.schema import TABLES
from raysft.study.benchmarks import benchmark_of
from raysft.study.components import cumulative_variance, scaled
from raysft.study.released import Choice, ReleasedStudy, study_released
from raysft.study.released.reading import ReleasedError, read_released
from raysft.study.schema import STUDY_TABLES

pytestmark = pytest.mark.unit

PAPER = Path(__file__).parents[3] / "shared/data/massive-sft/evaluation_result.csv"
Row = dict[str, Any]

MODELS = ("ant", "bee", "cow", "dog")
DATASETS = ("alpaca", "code", "flan", "math")
TASKS = ("math-0shot", "gsm8k-0shot", "BoolQ-0shot", "Truthful_QA-0shot", "mtbench-total", "nq-5shot")
FROM_SCORES = {
    *("gains", "gain_matrix", "epoch_gains", "similarity", "linkage", "pca", "pairs"),
    *("matrix_comparisons", "noise_ceilings", "prediction", "checks", "lint", "claims"),
}
SCALE = {"Truthful_QA-0shot": 0.01, "mtbench-total": 0.1}


def made_rows(models: tuple[str, ...] = MODELS, datasets: tuple[str, ...] = DATASETS) -> list[Row]:
    """A grid with a gain for each dataset and task, the same in every model, and noise; LoRA reaches 80% of it."""
    random = np.random.default_rng(1)
    effect = random.normal(0, 15, (len(datasets), len(TASKS)))
    rows: list[Row] = []
    for model in models:
        base = {task: 50 + 5 * random.normal() for task in TASKS}
        blank = {"model_name": model, "data_name": "pretrain", "lora": None, "epoch": 0, "data_size": 0.0}
        rows.append({**blank, "lr_strategy": None, **{task: base[task] * SCALE.get(task, 1) for task in TASKS}})
        for (at, dataset), lora in product(enumerate(datasets), (False, True)):
            scores = [
                base[task] + effect[at, place] * (0.8 if lora else 1) + 2 * random.normal()
                for place, task in enumerate(TASKS)
            ]
            subject = {"model_name": model, "data_name": dataset, "lora": lora, "data_size": 1000.0}
            values = {task: value * SCALE.get(task, 1) for task, value in zip(TASKS, scores, strict=True)}
            rows.append({**subject, "epoch": 10, "lr_strategy": "cosine", **values})
    return rows


def write(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["", *rows[0]])
        writer.writeheader()
        writer.writerows({"": at, **row} for at, row in enumerate(rows))
    return path


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write(tmp_path / "made.csv", made_rows())


def studied(tmp_path: Path, rows: list[Row], choice: Choice | None = None) -> ReleasedStudy:
    return study_released(write(tmp_path / "made.csv", rows), tmp_path / "out", choice)


def test_tables_have_the_columns_that_are_promised_and_equal_files_give_equal_bytes(made: Path, tmp_path: Path) -> None:
    study_released(made, tmp_path / "a")
    study_released(made, tmp_path / "b")
    for name, schema in STUDY_TABLES.items():
        path = Path("tables") / f"{name}.parquet"
        assert pq.read_schema(tmp_path / "a" / path).equals(schema, check_metadata=True), name
        assert (pq.read_table(tmp_path / "a" / path).num_rows > 0) == (name in FROM_SCORES), name
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    assert (tmp_path / "a/summary.json").read_bytes() == (tmp_path / "b/summary.json").read_bytes()


def test_the_file_lies_there_as_tables_of_a_sweep(made: Path, tmp_path: Path) -> None:
    study_released(made, tmp_path / "out")
    scores = pq.read_table(tmp_path / "out/sweep/scores.parquet")
    assert scores.schema.equals(TABLES["scores"])
    assert scores.num_rows == len(made_rows()) * len(TASKS)
    assert pq.read_table(tmp_path / "out/sweep/trials.parquet").num_rows == len(made_rows())


def test_a_gain_is_the_score_less_that_of_the_models_own_base(made: Path, tmp_path: Path) -> None:
    gains = study_released(made, tmp_path / "out").tables["gains"].to_pylist()
    assert len(gains) == 4 * 4 * 2 * 5  # nq-5shot is in no zero-shot slice
    rows = made_rows()
    (base,) = (row for row in rows if row["model_name"] == "bee" and row["epoch"] == 0)
    (tuned,) = (row for row in rows if (row["model_name"], row["data_name"], row["lora"]) == ("bee", "code", True))
    (found,) = (
        row
        for row in gains
        if (row["model"], row["dataset"], row["method"], row["task"]) == ("bee", "code", "lora", "mtbench-total")
    )
    assert found["base"] == base["mtbench-total"]
    assert found["gain"] == pytest.approx(tuned["mtbench-total"] - base["mtbench-total"], abs=1e-12)
    assert (found["epoch"], found["size"], found["schedule"]) == (10, 1000, "cosine")


def test_planted_effects_are_found(made: Path, tmp_path: Path) -> None:
    tables = {name: table.to_pylist() for name, table in study_released(made, tmp_path / "out").tables.items()}
    # Every model has the same effects of datasets, so models agree on which tasks and which datasets are alike.
    for kind in ("model_by_task", "model_by_dataset"):
        others = [row for row in tables["similarity"] if row["kind"] == kind and row["a"] != row["b"]]
        assert len(others) == 4 * 3
        assert min(row["r"] for row in others) > 0.5
    assert {row["n"] for row in tables["similarity"] if row["kind"] == "model_by_task"} == {5 * 4 // 2}
    assert {row["n"] for row in tables["similarity"] if row["kind"] == "task"} == {4 * 4 * 2}
    # LoRA has 80% of each dataset's effect; a mean of 16 differences of two scores has a standard error of 0.7.
    effect = np.random.default_rng(1).normal(0, 15, (len(DATASETS), len(TASKS))).mean(axis=0)
    for row in tables["pairs"]:
        planted = 0.2 * effect[TASKS.index(row["task"])]
        assert row["n"] == 16
        assert row["mean_difference"] / SCALE.get(row["task"], 1) == pytest.approx(planted, abs=2.2)
    # The mean of the other models foretells a model whose effects are the same, another dataset's does not.
    rows = [row for row in tables["prediction"] if (row["variant"], row["form"]) == ("full", "baseline")]
    r2 = {(row["split"], row["target"]): row["baseline_r2"] for row in rows}
    assert r2["leave_one_model_out", "all"] > 0.8
    assert r2["leave_one_dataset_out", "all"] < 0.5


def test_the_slice_is_chosen_and_said(made: Path, tmp_path: Path) -> None:
    choice = Choice(models=("ant", "bee"), datasets=("math",), tasks=("every",), methods=("full",), epochs=("10",))
    study = study_released(made, tmp_path / "out", choice)
    assert study.tables["gains"].num_rows == 2 * len(TASKS)
    assert study.summary["chosen"]["models"] == "ant, bee"
    assert study.summary["chosen"]["tasks"].startswith("all 6: ")
    assert study.summary["chosen"]["sizes"] == "all 1: 1000"


def test_the_main_slice_leaves_mixtures_and_other_sizes_and_schedules_out(tmp_path: Path) -> None:
    rows = made_rows()
    more = [{**row, "data_name": name} for row in rows[1:2] for name in ("all", "w/o-math")]
    more += [{**row, "data_size": 20000.0} for row in rows[1:2]] + [
        {**row, "lr_strategy": "constant"} for row in rows[1:2]
    ]
    more += [{**row, "epoch": 3} for row in rows[1:2]]
    plain, widened = studied(tmp_path, rows), studied(tmp_path, rows + more)
    assert widened.tables["gains"].equals(plain.tables["gains"])
    everything = studied(
        tmp_path, rows + more, Choice(datasets=("every",), sizes=("every",), schedules=("every",), epochs=("every",))
    )
    assert everything.tables["gains"].num_rows == plain.tables["gains"].num_rows + 5 * len(more)


def few_rows(text: str, tmp_path: Path) -> ReleasedStudy:
    path = tmp_path / "few.csv"
    path.write_text(text)
    return study_released(path, tmp_path / "few")


def test_trials_that_differ_in_a_setting_are_trials_of_their_own(tmp_path: Path) -> None:
    study = few_rows(
        "model,dataset,lr,batch_size,t\nm,base,,,10\nm,d,1e-5,8,20\nm,d,1e-4,8,90\nm,d,1e-4,32,50\n", tmp_path
    )
    rows = study.tables["gains"].to_pylist()
    assert sorted((row["learning_rate"], row["score"]) for row in rows) == [(1e-5, 20), (1e-4, 50), (1e-4, 90)]
    assert {row["variant"] for row in rows} == {"unnamed method, lr 1e-05", "unnamed method, lr 0.0001"}
    assert not [line for line in study.summary["left_out"] if "repeated" in line]


def test_scores_in_two_rows_are_put_together_and_conflicts_are_an_error(tmp_path: Path) -> None:
    study = few_rows("model,dataset,t,u\nm,base,10,\nm,base,,30\nm,d,20,40\nm,d,25,40\n", tmp_path)
    assert {row["task"]: row["gain"] for row in study.tables["gains"].to_pylist()} == {"t": 10, "u": 10}
    found = [row for row in study.tables["lint"].to_pylist() if row["check"] == "repeated_scores"]
    assert [(row["severity"], row["subject"]) for row in found] == [("error", "m / d / epoch 1")]
    assert "they differ in t" in found[0]["detail"]
    assert "repeated rows: 2 scores of a model, trial and epoch that came before" in study.summary["left_out"]


def test_none_right_of_a_known_number_of_items_has_an_error(tmp_path: Path) -> None:
    study = few_rows("model,dataset,humaneval-0shot\nm,base,30\nn,base,40\nm,d,0\nn,d,50\n", tmp_path)
    errors = {row["score"]: row["score_stderr"] for row in study.tables["gains"].to_pylist()}
    p = 2 / 168  # Agresti and Coull: 0 of 164
    assert errors[0] == pytest.approx(100 * np.sqrt(p * (1 - p) / 168))
    assert errors[50] == pytest.approx(100 * np.sqrt(0.25 / 164))


def test_coverage_of_a_slice_counts_what_was_chosen(tmp_path: Path) -> None:
    rows = [row for row in made_rows() if not (row["model_name"] == "ant" and row["epoch"] == 0)]
    study = studied(tmp_path, rows, Choice(methods=("full",), tasks=("math-0shot", "BoolQ-0shot")))
    measured = study.summary["checks"]["cells_measured"]
    assert (measured["value"], measured["of"]) == (3 * 4 * 2, 4 * 4 * 2)  # ant has no base model
    unused = study.summary["checks"]["scores_unused"]
    assert (unused["value"], unused["of"]) == (4 * 2, 4 * 4 * 2)


DEGENERATE: dict[str, list[Row]] = {
    "one model": made_rows(models=("ant",)),
    "one dataset": made_rows(datasets=("math",)),
    "one of everything": made_rows(models=("ant",), datasets=("math",)),
    "base models only": [row for row in made_rows() if row["epoch"] == 0],
    "no base model": [row for row in made_rows() if row["epoch"] != 0],
    "constant column": [{**row, "math-0shot": 1.0} for row in made_rows()],
    "empty column": [{**row, "math-0shot": None} for row in made_rows()],
    "everything constant": [{**row, **dict.fromkeys(TASKS, 1.0)} for row in made_rows()],
    "the same row twice": [*made_rows(), made_rows()[0], made_rows()[1]],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DEGENERATE)
def test_what_can_be_computed_is_and_the_rest_says_why_not(name: str, tmp_path: Path) -> None:
    study = studied(tmp_path, DEGENERATE[name])
    assert study.tables["lint"].num_rows
    for table_name, table in study.tables.items():
        for field in table.schema:
            if pa.types.is_floating(field.type):
                assert np.isfinite(table[field.name].drop_null().to_numpy()).all(), (table_name, field.name)
    given = [row["reason"] for name in ("prediction", "similarity") for row in study.tables[name].to_pylist()]
    reasons = " | ".join([*study.summary["left_out"], *(reason for reason in given if reason)])
    expected = {
        "one model": "1 to hold out in turn, 3 needed",
        "one dataset": "1 to hold out in turn, 3 needed",
        "one of everything": "1 points with every predictor, 3 needed",
        "base models only": "every statistic: no gain is left to study",
        "no base model": "gains of ant: no scores of the base model",
        "constant column": "math-0shot in the components: its gains are constant",
        "empty column": "gains in math-0shot: not measured",
        "everything constant": "principal components",
        "the same row twice": "repeated rows: 12 scores",
    }
    assert expected[name] in reasons
    filled = {table for table in FROM_SCORES if study.tables[table].num_rows}
    if name in ("one model", "one dataset", "constant column", "empty column", "the same row twice"):
        assert filled == FROM_SCORES


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("models", "datasets"), [(1, 3), (2, 2)])
def test_a_few_fine_tunings_on_seven_tasks_are_a_study(models: int, datasets: int, tmp_path: Path) -> None:
    rows = [row for row in made_rows(MODELS[:models], DATASETS[:datasets]) if not row["lora"]]
    rows = [{**row, "hellaswag": row["nq-5shot"] + 3 * at} for at, row in enumerate(rows)]
    study = studied(tmp_path, rows, Choice(tasks=("every",)))
    claims = {row["name"]: row["reason"] for row in study.tables["claims"].to_pylist()}
    assert claims["components"].startswith(f"{models * datasets} complete fine-tunings and 7 tasks that vary: 6 of")


def test_a_csv_of_another_shape(tmp_path: Path) -> None:
    rows = [
        {"checkpoint": model, "data": data, "lr": 0.1, "score": 0.1 * place, "other": 0.3 + 0.2 * place, "who": "me"}
        for place, (model, data) in enumerate(product(("x", "y"), ("base", "a", "b", "c")))
    ]
    path = write(tmp_path / "other.csv", rows)
    with pytest.raises(ReleasedError, match=r"no column for the model .*--column model=NAME.* there are .*checkpoint"):
        read_released(path)
    study = study_released(path, tmp_path / "out", columns={"model": "checkpoint"})
    assert study.tables["gains"].num_rows == 2 * 3 * 2
    assert study.summary["read"]["not_read"] == ["Not read: who, no numbers"]
    assert study.summary["read"]["columns"]["learning_rate"] == "lr"
    assert study.summary["chosen"]["sizes"] == "not in this file: size"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a CSV"),
        ("model,dataset,t\n", "no rows"),
        ("model,dataset,t\nm,base,1\nm,d\n", "not a CSV"),
        ("model,dataset,who\nm,base,me\n", "no column of numbers"),
        ("model,dataset,t,t\nm,base,1,2\n", "two columns are called 't'"),
        ("model,dataset,epoch,t\nm,d,ten,1\n", "row 2: epoch is 'ten'"),
        ("model,dataset,size,t\nm,d,-5,1\n", "row 2: size is -5"),
        ("model,dataset,t\n,d,1\n", "row 2: no model"),
        ("model,dataset,epoch,t\nm,,10,90\n", "row 2: epoch 10 of a dataset without a name"),
        ("model,dataset,epoch,t\nm,d,2024-01-01,1\n", "row 2: epoch is .*, a number from 0"),
        ("model,dataset,t\nm\u00e9,base,1\n", "column 'model' is not UTF-8"),
        ("mod\u00e9l,dataset,t\nm,base,1\n", "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ReleasedError, match=message) as caught:
        read_released(path)
    assert "\n" not in str(caught.value)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["study", *map(str, words)])


def test_the_command_prints_what_was_chosen_and_found(made: Path, tmp_path: Path) -> None:
    result = run("--released", made, "--out", tmp_path / "out", "--models", "ant,bee", "--methods", "full")
    assert result.exit_code == 0, result.output
    assert "Models: ant, bee\n" in result.stdout
    assert "Schedules: all 1: cosine\n" in result.stdout
    assert "Scales: 1: Truthful_QA-0shot; 10: mtbench-total; 100: " in result.stdout
    assert "warning: mixed_scales: mtbench-total: on 1 to 10" in result.stdout
    assert (tmp_path / "out/tables/gains.parquet").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a sweep's YAML, or --released CSV --out DIR"),
        (["--released", "{made}"], "a folder for the study is wanted"),
        (["--released", "nowhere.csv", "--out", "{out}"], "nowhere.csv: not a file"),
        (
            ["--released", "{made}", "--out", "{out}", "--models", "eel"],
            "--models eel: not among these scores, which have ant",
        ),
        (["--released", "{made}", "--out", "{out}", "--column", "model"], "ROLE=NAME is wanted"),
        (["--released", "{made}", "--out", "{made}"], "a file; a folder for the study is wanted"),
        (["sweep.yaml", "--released", "{made}", "--out", "{out}"], "the sweep does not go with --released"),
        (["--released", "{made}", "--out", "{out}", "--clip-below", "-5"], "--clip-below does not go with --released"),
        (["sweep.yaml", "--models", "ant"], "--models does not go with a sweep"),
        (["--released", "{made}", "--out", "{out}", "--column", "animal=x"], "animal is none of model, dataset"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words: list[str], message: str, made: Path, tmp_path: Path) -> None:
    result = run(*(word.format(made=made, out=tmp_path / "out") for word in words))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("column", "items", "chance"),
    [
        ("BoolQ-5shot", 3270, 0.5),
        ("mbpp_4shot", 257, None),
        ("LongBench-v2-0shot", 503, 0.25),
        ("cmmlu-0shot", 11582, 0.25),
        ("mmlu_zh", 11582, 0.25),
        ("mtbench-math", None, None),
    ],
)
def test_benchmarks_are_known_by_their_names(column: str, items: int | None, chance: float | None) -> None:
    found = benchmark_of(column)
    assert (found.items, found.chance) == (items, chance)


def test_components_of_known_variance() -> None:
    # Uncorrelated columns of variances 8 and 2: 80% and 100%.
    values = np.array([[4, 1], [-4, 1], [4, -1], [-4, -1]], dtype=float) * [1 / np.sqrt(2), np.sqrt(2)]
    assert cumulative_variance(values) == pytest.approx([0.8, 1])
    assert cumulative_variance(scaled(values, "zscore")) == pytest.approx([0.5, 1])
    assert scaled(np.array([[0.0], [1.0], [4.0]]), "minmax")[:, 0] == pytest.approx([-1, -0.5, 1])


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> ReleasedStudy:
    if not PAPER.exists():
        pytest.skip("the paper's scores are not here")
    return study_released(PAPER, tmp_path_factory.mktemp("paper"))


def test_the_papers_scores_in_the_main_slice(paper: ReleasedStudy) -> None:
    assert paper.tables["gains"].num_rows == 219 * 12 - 10 * 5  # ten LoRA rows of one model lack five of the benchmarks
    read = paper.summary["read"]
    assert read["base_models"] == 11
    five = [row["cumulative"] for row in paper.tables["pca"].to_pylist() if row["component"] == 5]
    assert five == pytest.approx([0.938, 0.836, 0.829], abs=0.001)
    # Raw gains are on each task's own scale; the claim takes shares of it, and says so.
    claim = next(row for row in paper.tables["claims"].to_pylist() if row["name"] == "components")
    assert json.loads(claim["numbers"])["of_shares"] == pytest.approx(0.930, abs=0.001)
    assert "93% of gains as shares of each task's scale" in claim["statement"]


def test_rows_and_epochs_are_compared_on_what_was_chosen(paper: ReleasedStudy) -> None:
    numbers = {row["name"]: json.loads(row["numbers"]) for row in paper.tables["claims"].to_pylist()}
    # Of three models and the twelve benchmarks; over all 29 columns -0.005 and 0.024.
    assert numbers["few rows"]["many_minus_few"] == pytest.approx(0.0002, abs=0.0001)
    assert numbers["more epochs"]["last_minus_first"] == pytest.approx(-0.004, abs=0.001)
    assert numbers["few rows"]["n"] == numbers["more epochs"]["n"] == 3 * 12


def test_lint_finds_the_defects_of_the_papers_scores(paper: ReleasedStudy) -> None:
    rows = paper.tables["lint"].to_pylist()
    details = {(row["check"], row["subject"]): row["detail"] for row in rows}
    baselines = [row for row in rows if row["check"] == "duplicate_baseline"]
    assert [row["subject"] for row in baselines] == [
        "Chinese-Mistral-7B-v0.1 (base) = Mistral-7B-v0.1 (base)",
        "LLM-jp-3-7B (base) = OLMo-7B-hf (base)",
    ]
    assert baselines[0]["detail"].startswith("identical in all 29 scores")
    copies = [row["subject"] for row in rows if row["check"] == "duplicate_scores" and "constant" in row["subject"]]
    # The cosine rows of three models on ten datasets, all but two, stand again among the constant ones.
    assert len(copies) == 28
    assert {subject.split(" / ")[0] for subject in copies} == {"LLM-jp-3-7B", "OLMo-7B-hf", "Qwen2.5-7B"}
    assert details["mixed_scales", "Truthful_QA-0shot"].startswith("on 0 to 1 ")
    assert details["mixed_scales", "mtbench-total"].startswith("on 1 to 10 ")
    below = [row["detail"] for row in rows if row["check"] == "at_or_below_chance" and row["subject"] == "BoolQ-0shot"]
    assert below[0] == "732 of 1016 (72%) of the fine-tuned scores are at or below 50"
    assert ("missing_cells", "full, 1000, cosine") in details
    assert ("constant_column", "LongBench-v2-0shot") in details
