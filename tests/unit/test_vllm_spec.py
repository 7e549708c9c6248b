"""vLLM in a sweep: which mistakes are one line, which of its settings are part of a key, and what is known early."""

from __future__ import annotations

from typing import Any

import pytest

from raysft.evaluation import vllm_checks
from raysft.evaluation.vllm_checks import check_serving
from raysft.spec.plan import make_plan
from raysft.spec.sweep import SpecError, Sweep, parse_sweep

pytestmark = pytest.mark.unit


def _sweep(content: dict[str, Any], backend: str | None = "vllm", **settings: Any) -> Sweep:
    evaluation = {**content["evaluation"], **({} if backend is None else {"backend": backend})}
    return parse_sweep({**content, "evaluation": evaluation | ({"vllm": settings} if settings else {})}, "sweep.yaml")


def _keys(sweep: Sweep) -> dict[str, set[str]]:
    keys: dict[str, set[str]] = {}
    for unit in make_plan(sweep).units:
        for work in unit.works:
            keys.setdefault(work.stage, set()).add(work.key)
    return keys


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"python": "envs/vllm/bin/python"}, "evaluation.vllm.python: an absolute path, or the name of a command"),
        ({"dtype": "auto"}, "evaluation.vllm.dtype: "),
        ({"gpu_memory_utilization": 1.5}, "evaluation.vllm.gpu_memory_utilization: "),
        ({"tensor_parallel": 0}, "evaluation.vllm.tensor_parallel: "),
        ({"gpus": 2}, "evaluation.vllm.gpus: unknown field; valid: python, dtype"),
        (
            {"options": {"max_model_len": 9}},
            "evaluation.vllm.options: max_model_len is not given here; give evaluation.v",
        ),
        ({"options": {"tokenizer": "x"}}, "evaluation.vllm.options: tokenizer is not given here"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(
    content: dict[str, Any], settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(SpecError) as error:
        _sweep(content, **settings)
    assert str(error.value).startswith(f"sweep.yaml: {problem}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", [None, "transformers"])
def test_settings_of_vllm_without_it_are_a_mistake(content: dict[str, Any], backend: str | None) -> None:
    with pytest.raises(SpecError, match="evaluation: vllm belongs to backend: vllm, found with backend: transformers"):
        _sweep(content, backend, dtype="float32")


def test_only_evaluations_by_vllm_have_other_keys_and_only_what_changes_numbers_is_in_them(
    content: dict[str, Any],
) -> None:
    plain, vllm = _keys(_sweep(content, None)), _keys(_sweep(content))
    assert plain == _keys(_sweep(content, "transformers"))
    assert not plain["evaluate"] & vllm["evaluate"]
    assert {**plain, "evaluate": None} == {**vllm, "evaluate": None}
    elsewhere = {"python": "/opt/vllm/bin/python", "gpu_memory_utilization": 0.5, "tensor_parallel": 2}
    assert _keys(_sweep(content, **elsewhere, max_model_len=512, options={"enforce_eager": True})) == vllm
    speed = {"enforce_eager": True, "max_num_seqs": 8, "block_size": 32, "enable_prefix_caching": False}
    assert _keys(_sweep(content, options=speed)) == vllm
    changing: list[dict[str, Any]] = [
        {"quantization": "fp8"},
        {"rope_scaling": {"factor": 2.0}},
        {"logits_processors": ["mine.Processor"]},
        {"load_format": "dummy"},
        {"an_option_of_next_year": 1},
    ]
    others = [_keys(_sweep(content, options=speed | options))["evaluate"] for options in changing]
    others += [vllm["evaluate"], _keys(_sweep(content, dtype="float32"))["evaluate"]]
    assert len(set.union(*others)) == sum(map(len, others))


@pytest.mark.parametrize(
    ("resources", "settings", "problem"),
    [
        ({"gpus_per_worker": 0.25}, {}, "gpu_memory_utilization: required where processes share a GPU"),
        ({"gpus_per_worker": 0.25}, {"gpu_memory_utilization": 0.2}, ""),
        ({"gpus_per_worker": 1}, {"tensor_parallel": 2}, "tensor_parallel: 2, and a process that measures holds 1 GPU"),
        ({"gpus_per_worker": 2}, {"tensor_parallel": 2}, ""),
        ({"workers": 8, "gpus_per_worker": 1, "measuring": {"gpus": 4}}, {"tensor_parallel": 4}, ""),
        ({"workers": 8, "gpus_per_worker": 1}, {"tensor_parallel": 4}, "tensor_parallel: 4, and a process"),
        ({"gpus_per_worker": 0}, {"tensor_parallel": 2}, ""),
    ],
)
def test_gpus_that_are_not_there_are_known_before_anything_starts(
    content: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    resources: dict[str, Any],
    settings: dict[str, Any],
    problem: str,
) -> None:
    monkeypatch.setattr(vllm_checks, "why_missing", lambda spec: "")
    sweep = _sweep({**content, "resources": resources}, **settings)
    if not problem:
        check_serving(sweep)
        return
    with pytest.raises(SpecError, match=problem):
        check_serving(sweep)


def test_an_interpreter_that_is_not_there_is_known_before_anything_starts(content: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"evaluation\.vllm\.python: no interpreter /nowhere/python"):
        check_serving(_sweep(content, python="/nowhere/python"))
    check_serving(_sweep(content, None))
