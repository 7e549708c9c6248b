"""A sweep whose benchmarks a vLLM process answers, beside the same one that answers them itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raysft.evaluation import vllm_lm
from raysft.evaluation.vllm_engine import VllmEngine
from raysft.measure import Report
from raysft.session import Session
from raysft.spec.plan import make_plan
from raysft.spec.sweep import Sweep, parse_sweep
from raysft.store.layout import open_storage
from raysft.store.results import read_result
from raysft.trial import run_unit
from tests.invariants.vllm_interpreters import VLLMS, vllm_settings

pytestmark = pytest.mark.invariants

TASKS = ["micro_addition_choice", "micro_addition_exact"]


def _sweep(content: dict[str, Any], **evaluation: Any) -> Sweep:
    """A base and a LoRA of it; sweeps of one test have one storage, and so the same checkpoints."""
    return parse_sweep(
        {
            **content,
            "datasets": content["datasets"][1:],
            "methods": content["methods"][1:],
            "grid": [{"sizes": [32], "epochs": [1], "measure": "last"}],
            "evaluation": {"tasks": TASKS, "limit": 4, **evaluation},
            "probes": {"perplexity": None, "intrinsic_dimension": None, "log_likelihood": {"texts": "skills"}},
        },
        "sweep.yaml",
    )


def _run(sweep: Sweep) -> list[Report]:
    plan, session = make_plan(sweep, open_storage(sweep.storage)), Session(sweep, torch.device("cpu"))
    return [run_unit(session, unit, plan.missing_works(unit)) for unit in plan.missing_units()]


def _scores(sweep: Sweep) -> list[Any]:
    storage = open_storage(sweep.storage)
    works = [work for unit in make_plan(sweep, storage).units for work in unit.works if work.stage == "evaluate"]
    return [read_result(storage, work.stage, work.key).to_pylist() for work in works]


def _close_to(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _close_to(one) for name, one in value.items()}
    if isinstance(value, list):
        return list(map(_close_to, value))
    return pytest.approx(value, abs=1e-4, rel=1e-5) if isinstance(value, float) else value


@pytest.mark.parametrize("where", VLLMS)
def test_every_number_is_that_of_the_model_in_memory_from_one_process_a_checkpoint(
    where: str, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoRA merged, and taken off again: what is measured after the benchmarks is measured in both sweeps."""
    settings = vllm_settings(where, monkeypatch)
    starts: list[int | None] = []

    class Counted(VllmEngine):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            starts.append(self.pid)

    monkeypatch.setattr(vllm_lm, "VllmEngine", Counted)
    itself, vllm = _sweep(content), _sweep(content, backend="vllm", vllm=settings)
    assert not [failure for report in _run(itself) for failure in report.failures]
    assert starts == []
    assert not [failure for report in _run(vllm) for failure in report.failures]
    assert len(starts) == 2
    theirs, ours = _scores(itself), _scores(vllm)
    assert ours == _close_to(theirs)
    assert len({str(rows) for rows in theirs}) == len(theirs) == 4


def test_a_model_that_vllm_does_not_take_is_a_recorded_failure_and_the_rest_is_done(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = vllm_settings("stand-in", monkeypatch) | {"gpu_memory_utilization": 0.001}
    sweep = _sweep(content, backend="vllm", vllm=settings)
    failures = [failure for report in _run(sweep) for failure in report.failures]
    assert [(failure["stage"], failure["error"]) for failure in failures] == 4 * [("evaluate", "VllmError")]
    for failure in failures:
        assert failure["message"].startswith("vLLM failed: ValueError: Free memory on device is less than")
    plan = make_plan(sweep, open_storage(sweep.storage))
    assert {work.stage for unit in plan.missing_units() for work in plan.missing_works(unit)} == {"evaluate"}
