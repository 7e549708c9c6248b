"""Recommendations for a model that no trial has seen: what they rest on, what they say of themselves, bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from typer.testing import CliRunner

from raysft.cli import app
from raysft.console.study_folder import study_folder
from raysft.store.layout import open_storage
from raysft.store.schema import TABLES
from raysft.study.recommend import FORMS, recommend
from raysft.study.recommend_known import ALL_TASKS, RecommendError
from raysft.study.schema import STUDY_TABLES
from raysft.study.statistics.new_model import Panel, held_out_predictions, jackknife_plus, possible_level, predict
from raysft.study.tables import from_rows, write_table
from tests.s3_server import BUCKET, environment, s3_service
from tests.unit.planted_studies import Tables, gains, names

pytestmark = pytest.mark.unit

NEW = "new"


def study(
    slope: float, models: int = 9, datasets: int = 5, seed: int = 0, tasks: tuple[str, ...] = ("a", "b")
) -> tuple[Tables, Tables, dict[tuple[str, str], float]]:
    """(study, sweep, true gains of the new model): gains fall with perplexity by `slope`."""
    random = np.random.default_rng(seed)
    pairs = list(product([*names("model", models), NEW], names("data", datasets)))
    x = random.normal(2, 0.5, size=len(pairs))
    of_data = {name: random.normal() for name in names("data", datasets)}
    by_task = {
        task: np.array([0.05 * of_data[dataset] for _, dataset in pairs])
        - slope * x
        + 0.01 * random.normal(size=len(pairs))
        for task in tasks
    }
    old = [at for at, (model, _) in enumerate(pairs) if model != NEW]
    table = gains([pairs[at] for at in old], {task: values[old] for task, values in by_task.items()})
    rows = [
        {"model": model, "dataset": dataset, "epoch": 0, "property": name, "value": value, "n": 100}
        for at, (model, dataset) in enumerate(pairs)
        for name, value in (("response_nll_per_token", x[at]), ("response_tokens", 100 * np.exp(of_data[dataset])))
    ]
    mean = np.mean(list(by_task.values()), axis=0)
    true = {pair: float(value) for pair, value in zip(pairs, mean, strict=True) if pair[0] == NEW}
    return {"gains": table}, {"data_properties": from_rows(rows, TABLES["data_properties"])}, true


def test_properties_that_tell_are_used_and_get_the_ranking_right() -> None:
    tables, sweep, true = study(slope=0.2)
    found = recommend(tables, sweep, NEW)
    assert found.form == FORMS[1]
    assert found.predictors == ("response_nll_per_token", "response_tokens")
    assert "beat the mean of the others" in found.why
    rows = [row for row in found.gains.to_pylist() if row["task"] == ALL_TASKS]
    assert rows[0]["dataset"] == max(true, key=lambda pair: true[pair])[1]
    assert stats.spearmanr([row["predicted"] for row in rows], [true[NEW, row["dataset"]] for row in rows])[0] > 0.8
    assert [row["rank"] for row in rows] == list(range(1, 6))
    inside = sum(row["low"] <= true[NEW, row["dataset"]] <= row["high"] for row in rows)
    assert inside >= 4
    accuracy = {row["task"]: row for row in found.accuracy.to_pylist()}[ALL_TASKS]
    assert accuracy["r2"] > 0.9 > accuracy["baseline_r2"]
    assert accuracy["regret"] < accuracy["baseline_regret"]
    assert (accuracy["models"], accuracy["n"]) == (9, 45)


def test_properties_that_tell_nothing_give_way_to_the_mean_of_the_others() -> None:
    tables, sweep, _ = study(slope=0.0)
    found = recommend(tables, sweep, NEW)
    assert found.form == FORMS[0]
    assert "cannot be shown to beat" in found.why
    rows = [row for row in found.gains.to_pylist() if row["task"] == "a"]
    own = [row for row in tables["gains"].to_pylist() if row["task"] == "a"]
    for row in rows:
        mean = np.mean([other["scaled_gain"] for other in own if other["dataset"] == row["dataset"]])
        assert row["predicted"] == pytest.approx(mean)
        assert row["predicted"] == row["mean_of_others"]


def test_a_model_of_the_study_is_predicted_without_its_own_trials() -> None:
    tables, sweep, _ = study(slope=0.2)
    own = "model03"
    changed = [
        {**row, "scaled_gain": 9.0, "gain": 9.0, "score": 9.3} if row["model"] == own else row
        for row in tables["gains"].to_pylist()
    ]
    wild = {"gains": pa.Table.from_pylist(changed, schema=tables["gains"].schema)}
    first, second = (recommend(one, sweep, own) for one in (tables, wild))
    assert first.left_out
    assert own not in first.others
    assert first.gains.drop_columns(["scale"]).equals(second.gains.drop_columns(["scale"]))


def test_released_scores_fall_back_to_base_scores_and_then_to_the_mean() -> None:
    """What is nearer to the top has less to gain; then bases that say nothing."""
    random, pairs = np.random.default_rng(0), list(product(names("model", 10), names("data", 5)))
    base = {model: random.uniform(0.1, 0.9) for model in names("model", 10)}
    values = np.array([0.2 * (1 - base[model]) for model, _ in pairs]) + 0.005 * random.normal(size=len(pairs))
    rows = [{**row, "base": base[row["model"]]} for row in gains(pairs, {"a": values}).to_pylist()]
    found = recommend({"gains": from_rows(rows, STUDY_TABLES["gains"])}, {}, "model01")
    assert (found.form, found.predictors, found.left_out) == (FORMS[1], ("base score",), True)
    assert "no properties of datasets are known, only base scores" in found.why
    assert found.gains.to_pylist()[0]["predicted"] == pytest.approx(0.2 * (1 - base["model01"]), abs=0.02)
    same = recommend({"gains": gains(pairs, {"a": values})}, {}, "model01")
    assert (same.form, same.predictors) == (FORMS[0], ())
    with pytest.raises(RecommendError, match="neither trials, properties nor base scores"):
        recommend({"gains": gains(pairs, {"a": values})}, {}, NEW)


def test_scores_of_the_new_models_base_are_enough_to_be_heard_of() -> None:
    tables, _, _ = study(slope=0.2)
    rows = [{"model": NEW, "epoch": 0, "task": task, "metric": "acc", "value": 0.3} for task in ("a", "b")]
    found = recommend(tables, {"scores": from_rows(rows, TABLES["scores"])}, NEW)
    assert not found.left_out
    assert found.form == FORMS[0]  # every base scored the same, which tells nothing


def test_likelihood_vectors_find_the_models_that_are_near() -> None:
    """Two families of models that gain from opposite datasets; the new one lies with the second."""
    random = np.random.default_rng(0)
    pairs = list(product(names("model", 10), names("data", 5)))
    family = {model: at % 2 for at, model in enumerate([*names("model", 10), NEW])}
    taste = random.normal(size=(2, 5))
    values = np.array([taste[family[model], int(dataset[-2:])] for model, dataset in pairs])
    table = gains(pairs, {"a": 0.1 * values + 0.005 * random.normal(size=len(pairs))})
    ways = 30 * random.normal(size=(2, 50))
    rows = [
        {"model": model, "epoch": 0, "text": text, "log_likelihood": -100 + ways[kind, text] + random.normal()}
        for model, kind in family.items()
        for text in range(50)
    ]
    found = recommend({"gains": table}, {"log_likelihood": from_rows(rows, TABLES["log_likelihood"])}, NEW)
    assert found.form == FORMS[1]
    assert "log-likelihood vector" in found.predictors
    best = found.gains.to_pylist()[0]["dataset"]
    assert best == f"data{int(taste[family[NEW]].argmax()):02d}"


def test_intervals_promise_no_more_than_models_allow() -> None:
    assert possible_level(3, 0.9) == 0.75
    assert possible_level(9, 0.9) == pytest.approx(0.9)
    tables, sweep, _ = study(slope=0.0, models=3)
    found = recommend(tables, sweep, NEW)
    assert found.level == 0.75
    assert "4 needed" in found.why
    assert all(np.isfinite(row["low"]) and np.isfinite(row["high"]) for row in found.gains.to_pylist())


def test_the_jackknife_plus_of_one_dataset_by_hand() -> None:
    # Means without each of 1, 2, 6: 4, 3.5, 1.5; errors 3, 1.5, 4.5. At 75% of 3 models the ends are the extremes.
    panel = Panel(np.array([[1.0], [2.0], [6.0], [np.nan]]), np.zeros((4, 1, 0)))
    held = held_out_predictions(panel, correct=False)
    assert held[:3, 0].tolist() == [4.0, 3.5, 1.5]
    low, high = jackknife_plus(panel, held, 3, correct=False, level=0.9)
    assert (low[0], high[0]) == (1.5 - 4.5, 4.0 + 3.0)
    low, high = jackknife_plus(panel, held, 3, correct=False, level=0.5)
    assert (low[0], high[0]) == (1.0, 6.0)
    assert predict(panel, panel.known, 3, correct=False)[0] == 3.0


def test_missing_cells_are_left_out_and_not_taken_for_zero() -> None:
    tables, sweep, _ = study(slope=0.2)
    kept = [row for row in tables["gains"].to_pylist() if (row["model"], row["dataset"]) != ("model00", "data00")]
    found = recommend({"gains": pa.Table.from_pylist(kept, schema=tables["gains"].schema)}, sweep, NEW)
    counts = {row["dataset"]: row["models"] for row in found.gains.to_pylist()}
    assert counts == {"data00": 8, "data01": 9, "data02": 9, "data03": 9, "data04": 9}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"datasets": ["nope"]}, "dataset nope: not in this study, which has data00"),
        ({"tasks": ["nope"]}, "task nope: not in this study, which has a, b"),
        ({"variant": "nope"}, "variant nope: not in this study, which has full"),
        ({"level": 1.0}, "level: 1.0 given, valid: above 0 and below 1"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, object], message: str) -> None:
    tables, sweep, _ = study(slope=0.2)
    with pytest.raises(RecommendError, match=message) as caught:
        recommend(tables, sweep, NEW, **options)  # type: ignore[arg-type]  # one of several options
    assert "\n" not in str(caught.value)


def test_a_dataset_without_the_models_properties_is_named() -> None:
    tables, sweep, _ = study(slope=0.2)
    rows = sweep["data_properties"].to_pylist()
    kept = [row for row in rows if (row["model"], row["dataset"]) != (NEW, "data02")]
    lacking = {"data_properties": from_rows(kept, TABLES["data_properties"])}
    with pytest.raises(RecommendError, match="dataset data02: no response_nll_per_token of it under new"):
        recommend(tables, lacking, NEW, datasets=["data01", "data02"])
    found = recommend(tables, lacking, NEW)
    assert "data02" not in found.gains["dataset"].to_pylist()


def test_one_model_and_no_gains_are_refused() -> None:
    tables, sweep, _ = study(slope=0.2, models=1)
    with pytest.raises(RecommendError, match="1 other model in this study; 2 needed"):
        recommend(tables, sweep, NEW)
    with pytest.raises(RecommendError, match="no gains"):
        recommend({"gains": tables["gains"].slice(0, 0)}, sweep, NEW)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A storage with a study, whose properties lack the new model, and `new.parquet`, which has them."""
    tables, sweep, _ = study(slope=0.2)
    properties = sweep["data_properties"]
    is_new = pa.array([name == NEW for name in properties["model"].to_pylist()], pa.bool_())
    write_table(tables["gains"], tmp_path / "study/tables/gains.parquet")
    write_table(TABLES["trials"].empty_table(), tmp_path / "tables/trials.parquet")
    write_table(properties.filter(pa.compute.invert(is_new)), tmp_path / "tables/data_properties.parquet")
    part = properties.filter(is_new).select(["model", "dataset", "property", "value"])
    write_table(part, tmp_path / "new.parquet")
    return tmp_path


def run(*words: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["recommend", *words])
    return found.exit_code, found.output


def test_the_command_with_properties_from_a_file(folder: Path) -> None:
    words = ("--study", str(folder), "--model", NEW, "--properties", str(folder / "new.parquet"))
    code, printed = run(*words)
    assert code == 0
    assert "learnt from 9 others" in printed
    assert "Recommended by the properties" in printed
    code, printed = run(*words, "--json", "--tasks", "a", "--datasets", "data01,data03")
    facts = json.loads(printed)
    assert (code, facts["recommended_by"]) == (0, "properties")
    assert {row["dataset"] for row in facts["gains"]} == {"data01", "data03"}
    assert {row["task"] for row in facts["gains"]} == {"a"}


def test_the_command_says_what_is_wrong_in_one_line(folder: Path, tmp_path: Path) -> None:
    at = ("--study", str(folder), "--model")
    for words, message in [
        ((*at, NEW), "neither trials, properties nor base scores"),
        ((*at, NEW, "--properties", str(folder / "none.parquet")), "not a Parquet file"),
        ((*at, "other", "--properties", str(folder / "new.parquet")), "no row of model other; there are new"),
        (("--study", str(tmp_path / "nowhere"), "--model", NEW), "no study"),
        (("--model", NEW), "a sweep's YAML or --study DIR is wanted"),
    ]:
        code, printed = run(*words)
        assert code == 2, printed
        assert message in printed.replace("\n", " ")
        assert printed.count("\n") == 1


def test_a_task_that_fewer_models_have_shows_its_own_level(folder: Path) -> None:
    path = folder / "study/tables/gains.parquet"
    gains = pq.read_table(path)
    models = sorted(set(gains["model"].to_pylist()))
    kept = [row for row in gains.to_pylist() if row["task"] != "a" or row["model"] in models[:4]]
    write_table(pa.Table.from_pylist(kept, schema=gains.schema), path)
    at = ("--study", str(folder), "--model", NEW, "--properties", str(folder / "new.parquet"))
    code, printed = run(*at, "--tasks", "a,b")
    assert code == 0, printed
    assert "Intervals of 80% to 90%, by how many models a task has: 4 models cannot promise 90%" in " ".join(
        printed.split()
    )
    levels = [re.findall(r" (\d+%) ", line) for line in printed.splitlines() if "data0" in line]
    assert [found for found in levels if found] == levels
    assert {level for (level,) in levels} == {"80%", "90%"}
    code, printed = run(*at, "--tasks", "b")
    assert "90% interval" in printed


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a storage on S3 with nothing in it."""
    with s3_service() as service:
        for name, value in environment(service.url).items():
            monkeypatch.setenv(name, value)
        yield f"s3://{BUCKET}/a-sweep"


def test_a_study_in_a_bucket_is_one_too(folder: Path, bucket: str) -> None:
    words = ("--model", NEW, "--properties", str(folder / "new.parquet"), "--json")
    storage = open_storage(bucket)
    with (
        pytest.raises(RecommendError, match="a-sweep: no study; a sweep's storage or"),
        study_folder(None, storage.uri),
    ):
        pass
    for name in ("study", "tables"):
        storage.upload(folder / name, name)
    code, printed = run("--study", storage.uri, *words)
    assert (code, printed) == run("--study", str(folder), *words)
    assert code == 0
