"""Whole tasks have the numbers of lm-eval's own HF backend, whatever a model's positions and attention are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pytest
from lm_eval.models.huggingface import HFLM

from raysft.evaluation import harness, prefix_lm
from raysft.evaluation.harness import Benchmarks, evaluate, load_benchmarks
from raysft.evaluation.prefix_lm import PrefixLM
from raysft.evaluation.sharing import sharing_of
from raysft.spec.sweep import load_sweep
from tests.conftest import SMALL
from tests.invariants.test_equal_scores import CONFIGS, LENGTH, TOLERANCE, _model
from tests.unit.tokenizers_in_miniature import byte_level

pytestmark = pytest.mark.invariants

PAGE = "What is the capital of France? The capital of France is Paris. " * 3
ITEMS = [
    {"page": PAGE[: 40 + 30 * n], "text": f"Question: what is {n} plus 4?", "options": [str(n + 4), "Yes", "Rome"]}
    for n in range(5)
]
SHARED = "dataset_path: json\ndataset_kwargs: {data_files: {test: items.jsonl}}\ntest_split: test\n"
# Standard errors that are drawn, and what is asked for with and without a prompt.
OWN = {
    "pages": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
    "sentences": """
output_type: loglikelihood
doc_to_text: "{{text}}"
doc_to_target: " It is {{options[0]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "additions": """
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: options
doc_to_target: 0
metric_list:
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: acc_mutual_info, aggregation: mean, higher_is_better: true}
""",
}
TASKS = ["micro_addition_choice", "micro_addition_exact", *OWN]


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Benchmarks:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    for name, own in OWN.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{SHARED}{own}")
    evaluation = {"tasks": TASKS, "limit": 12, "include": [str(folder)]}
    (folder / "sweep.yaml").write_text(json.dumps({**SMALL, "storage": "none", "evaluation": evaluation}))
    return load_benchmarks(load_sweep(folder / "sweep.yaml"))


@pytest.mark.parametrize("family", ["grouped-query", "learned positions", "sliding window"])
def test_whole_tasks_have_the_metrics_and_errors_of_the_backend(
    benchmarks: Benchmarks, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choices, generation and rolling texts, with gold answers: every number of every table."""
    tokenizer = byte_level()
    model = _model(CONFIGS[family](len(tokenizer)))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    tables: dict[str, Mapping[str, pa.Table]] = {}
    for way, sharing in (("shared", sharing_of(model)), ("plain", None)):
        monkeypatch.setattr(prefix_lm, "_known", {model: sharing})
        assert PrefixLM(model, tokenizer, batch_size=4)._sharing is sharing
        tables[way] = evaluate(model, tokenizer, benchmarks, TASKS)
        assert evaluate(model, tokenizer, benchmarks, TASKS) == tables[way], "asked again with kept requests"
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=LENGTH, backend="causal")
    theirs.endless = frozenset()  # it does not say which generations it cut
    monkeypatch.setattr(harness, "_language_model", lambda *_: theirs)
    tables["backend"] = evaluate(model, tokenizer, benchmarks, TASKS)
    for task in TASKS:
        ours, plain, wanted = (tables[way][task].to_pylist() for way in ("shared", "plain", "backend"))
        assert _said_by_both(ours) == _close_to(_said_by_both(plain))
        assert _said_by_both(ours) == _close_to(_said_by_both(wanted))
        if family == "grouped-query":  # of broken characters, as others write, the plain way cannot tell how many
            assert ours == _close_to(plain)
        for row in ours:
            assert row["samples"]
            assert (row["stderr"] is None) == (task == "pages"), "lm-eval knows none of bits per byte"


def _said_by_both(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _said_by_both(one) for name, one in value.items() if name != "degenerate"}
    return list(map(_said_by_both, value)) if isinstance(value, list) else value


def _close_to(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _close_to(one) for name, one in value.items()}
    if isinstance(value, list):
        return list(map(_close_to, value))
    return pytest.approx(value, abs=TOLERANCE, rel=1e-5) if isinstance(value, float) else value
