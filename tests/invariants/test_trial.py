"""One trial in this process, from data to what the storage holds: divergence, and going on after a kill."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from raysft import trial
from raysft.reduce import reduce_sweep
from raysft.session import Session
from raysft.spec.plan import Plan, Unit, make_plan
from raysft.spec.sweep import Sweep, parse_sweep
from raysft.store.layout import open_storage
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
    for unit in plan.missing_units():
        trial.run_unit(session, unit, plan.missing_works(unit))
    plan = make_plan(sweep, storage)
    return plan, next(unit for unit in plan.units if unit.kind == "fine_tune")


def _table(sweep: Sweep, name: str) -> list[dict[str, Any]]:
    import io

    import pyarrow.parquet as pq

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
