"""A small sweep on a real local Ray: all of it, again, with a benchmark more, with failures."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raysft.cluster.pipeline import RunResult, run_everything
from raysft.spec.plan import make_plan
from raysft.spec.sweep import Sweep, parse_sweep
from raysft.store.layout import open_storage
from tests.conftest import SMALL

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]

Content = dict[str, Any]


@pytest.fixture(scope="module")
def finished(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Content, RunResult, list[str]]:
    """The small sweep run once, for the tests that look at what came out or go on from there."""
    content = {**copy.deepcopy(SMALL), "storage": str(tmp_path_factory.mktemp("finished") / "storage")}
    said: list[str] = []
    return content, run_everything(_sweep(content), say=said.append), said


def _sweep(content: Content) -> Sweep:
    return parse_sweep(content, "test")


def _rows(content: Content, table: str) -> list[dict[str, Any]]:
    return pq.read_table(Path(content["storage"]) / "tables" / f"{table}.parquet").to_pylist()


def _modified(content: Content) -> dict[str, int]:
    root = Path(content["storage"])
    return {str(path): path.stat().st_mtime_ns for path in root.glob("results/*/*.parquet")}


def test_a_sweep_commits_everything_it_planned(finished: tuple[Content, RunResult, list[str]]) -> None:
    content, result, said = finished
    assert result.failures == ()
    plan = make_plan(_sweep(content), open_storage(content["storage"]))
    assert all(plan.is_done(work) for work in plan.works())
    assert Path(result.report).is_file()
    assert any("neither training nor measuring" in line for line in said)


def test_the_tables_hold_every_subject(finished: tuple[Content, RunResult, list[str]]) -> None:
    content, _, _ = finished
    trials = _rows(content, "trials")
    assert [row["kind"] for row in trials] == ["base"] + ["fine-tuning"] * 4
    assert {row["state"] for row in trials} == {"done"}
    assert {row["steps"] for row in trials[1:]} == {4}
    scores = _rows(content, "scores")
    assert len(scores) == 2 * (1 + 4 * 2)
    assert all(row["n"] == 16 and row["bits_per_byte"] > 0 for row in scores)
    assert {row["chance"] for row in scores if row["task"] == "micro_capitals_choice"} == {0.25}
    assert len(_rows(content, "samples")) == 16 * len(scores)
    dimensions = _rows(content, "intrinsic_dimension")
    estimators = {"twonn", "mle", "gride", "participation_ratio", "effective_rank"}
    assert {row["estimator"] for row in dimensions if row["trial"] is None} == estimators
    assert {row["estimator"] for row in dimensions if row["trial"]} == {*estimators, "neighbourhood_overlap"}
    overlaps = [row for row in dimensions if row["estimator"] == "neighbourhood_overlap"]
    assert all(0 < row["value"] <= 1 and row["scale"] == 4 for row in overlaps)
    assert {row["layer"] for row in overlaps} == {row["layer"] for row in dimensions}
    assert {(row["trial"] is None, row["epoch"]) for row in dimensions} == {(True, 0), (False, 2)}
    assert {row["epoch"] for row in _rows(content, "log_likelihood")} == {0, 2}
    assert {row["about"] for row in _rows(content, "data_properties")} == {None, *SMALL["evaluation"]["tasks"]}
    assert _rows(content, "failures") == []


def test_a_finished_sweep_has_nothing_missing(finished: tuple[Content, RunResult, list[str]]) -> None:
    content, _, _ = finished
    before, said = _modified(content), []
    result = run_everything(_sweep(content), say=said.append)
    assert result.units == 0
    assert said[0].startswith("Nothing is missing")
    assert _modified(content) == before


def test_a_new_benchmark_is_measured_on_kept_checkpoints(finished: tuple[Content, RunResult, list[str]]) -> None:
    content = copy.deepcopy(finished[0])
    before = _modified(content)
    content["evaluation"]["tasks"].append("micro_capitals_exact")
    result = run_everything(_sweep(content), say=lambda _: None)
    assert result.failures == ()
    new = {Path(path).parent.name for path in set(_modified(content)) - set(before)}
    assert new == {"evaluate", "similarity", "contamination"}
    assert {path: stamp for path, stamp in _modified(content).items() if path in before} == before


def test_whatever_is_damaged_is_made_again(finished: tuple[Content, RunResult, list[str]]) -> None:
    """A lost base, a checkpoint with a wrong byte, a truncated result and one that is damaged inside."""
    content = finished[0]
    root = Path(content["storage"])
    run_everything(_sweep(content), say=lambda _: None)  # tables of this very sweep, whatever ran before
    before = {name: _rows(content, name) for name in ("scores", "training", "weight_change", "intrinsic_dimension")}
    shutil.rmtree(next(root.glob("models/*")))
    weights = next(root.glob("checkpoints/*/epoch-0002/model.safetensors"))
    trial = weights.parent.parent.name
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    for stage in ("weight_change", "intrinsic_dimension"):
        plan = make_plan(_sweep(content), open_storage(content["storage"]))
        works = [work for work in plan.works() if work.stage == stage and work.subject.epoch == 2]
        key = next(work.key for work in works if work.subject.trial == trial)
        path = root / "results" / stage / f"{key}.parquet"
        path.write_bytes(path.read_bytes()[:100])
    inside = next(root.glob("results/perplexity/*.parquet"))
    inside.write_bytes(inside.read_bytes()[:4] + b"garbage!" * 40 + inside.read_bytes()[324:])

    said: list[str] = []
    first = run_everything(_sweep(content), say=said.append)
    assert sum("truncated; moved aside" in line for line in said) == 2
    assert [line for line in first.failures if "moved aside, run again" in line]
    second = run_everything(_sweep(content), say=said.append)
    assert second.failures == ()
    for name, rows in before.items():
        assert _rows(content, name) == rows, name
    assert len(list(root.glob("results/*/.damaged-*"))) == 3
    assert len(list(root.glob(f"checkpoints/{trial}/.damaged-*"))) == 1


def test_a_failed_trial_does_not_stop_the_others(content: Content, tmp_path: Path) -> None:
    content["datasets"][1]["override"] = {"max_length": 8}
    content["grid"][0]["epochs"] = [1]
    content["probes"]["intrinsic_dimension"] = None
    result = run_everything(_sweep(content), say=lambda _: None)
    assert len(result.failures) == 2
    assert all("datasets.addition: row 1" in line and "max_length 8" in line for line in result.failures)
    states = {row["dataset"]: row["state"] for row in _rows(content, "trials")}
    assert states == {None: "done", "capitals": "done", "addition": "failed"}
    [failure, _] = _rows(content, "failures")
    assert (failure["stage"], failure["error"], failure["attempt"], failure["resolved"]) == (
        "train",
        "SpecError",
        1,
        False,
    )
    assert "\nTraceback" in (Path(content["storage"]) / failure["log"]).read_text()
    content["datasets"][1]["override"] = {}
    assert run_everything(_sweep(content), say=lambda _: None).failures == ()


def test_more_than_the_cluster_has_is_refused(content: Content) -> None:
    content["resources"] = {"gpus_per_worker": 8}
    with pytest.raises(ValueError, match=r"tiny needs 1 CPU, 8 GPU, the cluster has 2 CPU, 0 GPU on 1 node$"):
        run_everything(_sweep(content), say=lambda _: None)
