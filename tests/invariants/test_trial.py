"""One trial in this process, from data to what the storage holds: divergence, resuming, measuring apart."""

from __future__ import annotations

import io
import math
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from raysft import trial
from raysft.reduce import reduce_sweep
from raysft.session import Session
from raysft.spec.plan import Plan, Unit, make_plan
from raysft.spec.sweep import Sweep, parse_sweep
from raysft.store.layout import open_storage
from raysft.store.results import result_path
from raysft.training import loop

pytestmark = pytest.mark.invariants


def _sweep(content: dict[str, Any]) -> Sweep:
    """One full fine-tuning of three epochs of two steps, without benchmarks or probes that take long."""
    content["datasets"] = content["datasets"][:1]
    content["methods"] = content["methods"][:1]
    content["grid"] = [{"sizes": [32], "epochs": [3], "measure": "every", "schedules": ["constant"]}]
    content["evaluation"] = {"tasks": []}
    content["probes"] = {"perplexity": None, "intrinsic_dimension": None, "log_likelihood": None}
    return parse_sweep(content, "sweep")


def _run(sweep: Sweep) -> tuple[Plan, Unit]:
    """Do every unit; the plan afterwards and its fine-tuning."""
    storage = open_storage(sweep.storage)
    plan, session = make_plan(sweep, storage), Session(sweep, torch.device("cpu"))
    apart = plan.works_apart()
    for unit in plan.missing_units():
        trial.run_unit(session, unit, plan.missing_works(unit), apart.get(unit.key, {}))
    plan = make_plan(sweep, storage)
    return plan, next(unit for unit in plan.units if unit.kind == "fine_tune")


def _table(sweep: Sweep, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(
        io.BytesIO(open_storage(sweep.storage).read_bytes("tables", f"{name}.parquet"))
    ).to_pylist()
    return rows


def test_a_divergence_is_recorded_once_and_flagged_everywhere(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, real, calls = _sweep(content), loop.summed_loss, iter(range(1000))
    monkeypatch.setattr(loop, "summed_loss", lambda m, b, c: real(m, b, c) * (math.nan if next(calls) >= 3 else 1))
    plan, unit = _run(sweep)
    assert plan.diverged == {unit.key: 2}  # steps 1 and 2 are the first epoch; step 4 is the one that broke
    assert not plan.missing_units(), "a trajectory that ends there would end there again"
    assert [work.subject.epoch for work in unit.works if plan.is_done(work)] == [None, 1]
    storage = open_storage(sweep.storage)
    assert any(name.startswith("resume-00000003") for name in storage.names("checkpoints", unit.key))
    reduce_sweep(sweep, storage)
    row = next(row for row in _table(sweep, "trials") if row["trial"] == unit.key)
    assert (row["state"], row["diverged"], row["diverged_in_epoch"], row["steps"]) == ("diverged", True, 2, 2)
    assert {row["diverged"] for row in _table(sweep, "weight_change")} == {True}
    (failure,) = _table(sweep, "failures")
    assert failure["error"] == "DivergenceError"
    assert "at step 4, epoch 2" in failure["message"]


def test_a_trial_killed_inside_an_epoch_goes_on_from_its_last_state(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = _sweep({**content, "storage": content["storage"] + "-straight"})
    _run(straight)
    reduce_sweep(straight, open_storage(straight.storage))

    sweep, real, steps = _sweep(content), loop.summed_loss, []

    def dies(model: Any, batch: Any, chunked: bool) -> torch.Tensor:
        steps.append(1)
        if len(steps) == 4:  # inside the second epoch
            raise KeyboardInterrupt
        return real(model, batch, chunked)

    monkeypatch.setattr(trial, "RESUME_EVERY_S", 0.0)
    monkeypatch.setattr(loop, "summed_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        _run(sweep)
    plan, unit = _run(sweep)
    assert not plan.missing_units()
    assert len(steps) == 4 + 3, "three steps were done and kept"
    assert not [name for name in open_storage(sweep.storage).names("checkpoints", unit.key) if "resume" in name]
    reduce_sweep(sweep, open_storage(sweep.storage))
    for table in ("training", "weight_change", "trials"):
        assert _table(sweep, table) == _table(straight, table), table


def _apart(content: dict[str, Any]) -> Sweep:
    """The sweep with two workers a trial, which therefore does not measure; only its last weights are kept."""
    return _sweep({**content, "resources": {"workers": 2}, "checkpoints": {"keep": "last"}})


def test_checkpoints_measured_apart_have_the_numbers_of_those_measured_in_place(content: dict[str, Any]) -> None:
    content["grid"][0]["measure"] = "every"
    in_place = _sweep({**content, "storage": content["storage"] + "-in-place"})
    apart = _apart(content)
    for sweep in (in_place, apart):
        plan, unit = _run(sweep)
        assert not plan.missing_units()
        reduce_sweep(sweep, open_storage(sweep.storage))
    for table in ("training", "weight_change", "weight_sketches", "trials"):
        assert _table(apart, table) == _table(in_place, table), table
    assert len(_table(apart, "weight_change")) > 0
    assert {row["epoch"] for row in _table(apart, "weight_sketches")} == {3}, "early ones are not compared"
    assert open_storage(apart.storage).names("checkpoints", unit.key) == ["epoch-0003"]


def test_updates_are_compared_at_the_last_epoch_that_is_measured(content: dict[str, Any]) -> None:
    sweep = _sweep(content)
    block = sweep.grid[0].model_copy(update={"measure": (1, 2)})
    sweep = sweep.model_copy(update={"grid": (block,)})
    _run(sweep)
    reduce_sweep(sweep, open_storage(sweep.storage))
    assert {(row["epochs"], row["epoch"]) for row in _table(sweep, "weight_change")} == {(3, 1), (3, 2)}
    assert {row["epoch"] for row in _table(sweep, "weight_sketches")} == {2}


def test_a_measurement_that_lacks_its_checkpoint_trains_again_and_commits_no_training_twice(
    content: dict[str, Any],
) -> None:
    sweep = _apart(content)
    plan, unit = _run(sweep)
    storage = open_storage(sweep.storage)
    training = storage.local_path(result_path("train", unit.works[0].key))
    before = training.stat().st_mtime_ns
    lacking = next(work for work in plan.works() if work.stage == "weight_change" and work.subject.epoch == 1)
    path = storage.local_path(result_path(lacking.stage, lacking.key))
    first = path.read_bytes()
    path.unlink()
    plan = make_plan(sweep, storage)
    assert [(unit.kind, unit.epoch) for unit in plan.missing_units()] == [("fine_tune", None), ("checkpoint", 1)]
    plan, unit = _run(sweep)
    assert not plan.missing_units()
    assert pq.read_table(path).equals(pq.read_table(io.BytesIO(first)))
    assert training.stat().st_mtime_ns == before
    assert storage.names("checkpoints", unit.key) == ["epoch-0003"]


def test_a_measurement_whose_checkpoint_is_there_trains_nothing(content: dict[str, Any]) -> None:
    sweep = _apart(content)
    plan, _ = _run(sweep)
    storage = open_storage(sweep.storage)
    lacking = next(work for work in plan.works() if work.stage == "weight_change" and work.subject.epoch == 3)
    storage.local_path(result_path(lacking.stage, lacking.key)).unlink()
    assert [(unit.kind, unit.epoch) for unit in make_plan(sweep, storage).missing_units()] == [("checkpoint", 3)]
    plan, _ = _run(sweep)
    assert not plan.missing_units()
