"""HumanEval and MBPP: asked as lm-eval asks them, scored by the sandbox, and only where the sweep says that it may."""

from __future__ import annotations

import ast
import gzip
import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from raysft.evaluation.harness import Benchmarks, load_benchmarks
from raysft.evaluation.programs import _first_block, pass_at_k, run_humaneval
from raysft.evaluation.sandbox import pool
from raysft.evaluation.sandbox.pool import Protections, SandboxError, allowed
from raysft.spec.benchmarks import PACKAGED_TASKS, task_identity
from raysft.spec.run_code import CODE_TASKS
from raysft.spec.sweep import SpecError, Sweep, parse_sweep
from tests.conftest import SMALL
from tests.scripted_lm import Scripted, score_rows

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(sys.platform != "linux", reason="programs are run on Linux only"),
]

HUMANEVAL = Path(__file__).parents[3] / "shared/data/bench/HumanEval.jsonl.gz"
OF_LM_EVAL = Path(lm_eval.__file__).parent / "tasks"
PROMPT = 'def {name}(a: int, b: int) -> int:\n    """The {name} of a and b."""\n'
TEST = "\n\ndef check(candidate):\n    assert candidate(2, 5) == {expected}\n    assert candidate(0, 0) == 0\n"
OPERATIONS = {"total": ("a + b", 7), "product": ("a * b", 10), "difference": ("a - b", -3), "larger": ("max(a, b)", 5)}
HUMANEVAL_ROWS = [
    {
        "task_id": f"HumanEval/{number}",
        "prompt": PROMPT.format(name=name),
        "entry_point": name,
        "canonical_solution": f"    return {solution}\n",
        "test": TEST.format(expected=expected),
    }
    for number, (name, (solution, expected)) in enumerate(OPERATIONS.items())
]
MBPP_ROWS = [
    {
        "task_id": 11 + number,
        "text": f"Write a function to find the {name} of two numbers.",
        "code": f"def {name}(a, b):\r\n  return {solution}",
        "test_list": [f"assert {name}(2, 5) == {expected}", f"assert {name}(0, 0) == 0", f"assert {name}(0, 0) < 1"],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    for number, (name, (solution, expected)) in enumerate(OPERATIONS.items())
]


def _model(answer: Callable[[str], str]) -> Scripted:
    """One for which each gold answer has one bit."""
    return Scripted(answer, lambda *_: (-math.log(2), False))


def _sweep(folder: Path, **evaluation: Any) -> Sweep:
    return parse_sweep({**SMALL, "storage": str(folder), "evaluation": evaluation}, "the test's sweep")


def _loaded(folder: Path, task: str, rows: list[dict[str, Any]], run_code: bool | str = True) -> Benchmarks:
    with gzip.open(folder / "items.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    data = {task: str(folder / "items.jsonl.gz")}
    return load_benchmarks(_sweep(folder, tasks=[task], data=data, run_code=run_code))


def _score(benchmarks: Benchmarks, task: str, model: Scripted) -> dict[str, dict[str, Any]]:
    """Score rows by metric."""
    return {metric: row for (_, metric), row in score_rows(benchmarks, task, model).items()}


def _by_name(answers: dict[str, str]) -> Callable[[str], str]:
    """The answer to the operation that a prompt names last."""
    return lambda context: answers[max(answers, key=lambda name: context.rfind(f"{name} of"))]


def _verdicts(row: dict[str, Any]) -> list[tuple[float, str]]:
    return [(sample["value"], sample["response"].partition("\n")[0]) for sample in row["samples"]]


ANSWERS = {
    "total": "    return a + b\n",
    "product": "    return a + b\n",
    "difference": "    raise SystemExit(0)\n",
    "larger": "  \n",
}


def _check(row: dict[str, Any], third: str = "# failed: SystemExit: 0") -> None:
    """One of four passed, by hand: mean 1/4, standard deviation 1/2 over the root of four; one wrote nothing."""
    assert _verdicts(row) == [(1.0, "# passed"), (0.0, "# failed: AssertionError"), (0.0, third), (0.0, "")]
    assert row["value"] == 0.25
    assert row["stderr"] == pytest.approx(0.25)
    assert (row["n"], row["chance"], row["unextracted"]) == (4, 0.0, 0.25)
    assert [sample["extracted"] for sample in row["samples"]] == [True, True, True, False]


def test_humaneval_from_a_file(tmp_path: Path) -> None:
    to_the_stop = "    return a + b\n\ndef total(a, b):\n    return 0\n"
    model = _model(_by_name({**ANSWERS, "total": to_the_stop, "difference": "    while True: pass\n"}))
    row = _score(_loaded(tmp_path, "humaneval", HUMANEVAL_ROWS), "humaneval", model)["pass@1,create_test"]
    assert model.contexts == [entry["prompt"] for entry in HUMANEVAL_ROWS]
    _check(row, "# timed out: limits: 15 s, 3 of CPU")
    assert row["samples"][0]["response"] == "# passed\n    return a + b\n"  # up to the next function
    assert [gold for _, gold in model.scored] == [entry["canonical_solution"] for entry in HUMANEVAL_ROWS]
    gold_bytes = sum(len(entry["canonical_solution"].strip()) for entry in HUMANEVAL_ROWS)
    assert row["bits_per_byte"] == pytest.approx(4 / gold_bytes)


def test_humaneval_in_a_code_block(tmp_path: Path) -> None:
    model = _model(_by_name({name: f"{text}```\nThat is all." for name, text in ANSWERS.items()}))
    benchmarks = _loaded(tmp_path, "humaneval_instruct", HUMANEVAL_ROWS)
    _check(_score(benchmarks, "humaneval_instruct", model)["pass@1,create_test"])
    prompt = HUMANEVAL_ROWS[0]["prompt"]
    assert model.contexts[0] == (
        "Write a solution to the following problem and make sure that it passes the tests:\n"
        f"```python\n{prompt}\n```\nHere is the completed function:\n```python\n{prompt}\n"
    )


def test_humaneval_asked_many_times(tmp_path: Path) -> None:
    answers = iter(["    return a + b\n"] * 16 + ["    return None\n"] * 48)
    model = _model(lambda _: next(answers))
    benchmarks = _loaded(tmp_path, "humaneval_64", HUMANEVAL_ROWS[:1])
    rows = _score(benchmarks, "humaneval_64", model)
    expected = {k: 1 - math.comb(48, k) / math.comb(64, k) for k in (2, 8, 16, 32, 64)}
    assert {metric: row["value"] for metric, row in rows.items()} == pytest.approx(
        {f"pass@{k},create_test": value for k, value in expected.items()}
    )
    response = rows["pass@2,create_test"]["samples"][0]["response"]
    assert (response.count("# passed\n"), response.count("# failed: AssertionError\n")) == (16, 48)


def test_mbpp_from_a_file(tmp_path: Path) -> None:
    answers = {name: f"def {name}(a, b):\n{body}" if body.strip() else body for name, body in ANSWERS.items()}
    model = _model(_by_name({name: f"{text}[DONE]\nmore" for name, text in answers.items()}))
    row = _score(_loaded(tmp_path, "mbpp", MBPP_ROWS), "mbpp", model)["pass_at_1,none"]
    _check(row)
    context = model.contexts[0]
    assert context.count("You are an expert Python programmer, and here is your task: ") == 4
    assert context.count("[BEGIN]\n") == 4
    assert context.count("\n[DONE]\n\n") == 3
    assert context.endswith(
        "Write a function to find the total of two numbers. Your code should pass these tests:\n\n"
        "assert total(2, 5) == 7\nassert total(0, 0) == 0\nassert total(0, 0) < 1\n[BEGIN]\n"
    )
    assert [gold for _, gold in model.scored] == [entry["code"] for entry in MBPP_ROWS]


def test_mbpp_in_a_code_block(tmp_path: Path) -> None:
    answers = {
        name: f"def {name}(a, b):\n{body}```\nDone." if body.strip() else "None." for name, body in ANSWERS.items()
    }
    benchmarks = _loaded(tmp_path, "mbpp_instruct", MBPP_ROWS)
    _check(_score(benchmarks, "mbpp_instruct", _model(_by_name(answers)))["pass_at_1,extract_code"])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def f(): pass\n```\nSo it is.", "def f(): pass"),
        ("\nimport re\n```", "\nimport re"),
        ("```python\ndef f(): pass\n```", "def f(): pass"),
        ("\n```\nx = 1\n```\n```\nx = 2\n```", "x = 1"),
        ("def f(): pass", ""),
        ("```", ""),
    ],
)
def test_the_first_block_is_the_answer(text: str, code: str) -> None:
    assert _first_block(text) == code


# What may differ from lm-eval's own YAML: where the programs are run, and the target, of which they make the tests.
OURS = {"process_results", "metric_list", "filter_list", "doc_to_target", "target_delimiter", "metadata", "include"}


@pytest.mark.parametrize("task", CODE_TASKS)
def test_a_task_asks_as_lm_evals_own_does(task: str) -> None:
    theirs = load_yaml(OF_LM_EVAL / task.partition("_")[0] / f"{task}.yaml", resolve_func=False)
    ours = load_yaml(PACKAGED_TASKS / "code" / f"{task}.yaml", resolve_func=False)
    shown = ours.get("fewshot_config", {})
    if shown:
        samples = ast.parse((OF_LM_EVAL / "mbpp/utils.py").read_text())
        listing = next(node for node in samples.body if getattr(node, "name", "") == "list_fewshot_samples")
        theirs["fewshot_config"]["samples"] = ast.literal_eval(listing.body[0].value)
    kept = [{name: value for name, value in config.items() if name not in OURS} for config in (ours, theirs)]
    assert kept[0] == kept[1]
    assert [entry["name"] for entry in ours["filter_list"]] == [
        entry["name"] for entry in theirs.get("filter_list", [{"name": "none"}])
    ]


def test_the_packages_tasks_that_run_programs_are_named() -> None:
    running = {
        task["task"]
        for path in PACKAGED_TASKS.rglob("*.yaml")
        if (task := load_yaml(path, resolve_func=False)).get("unsafe_code")
    }
    assert running == set(CODE_TASKS)


def test_pass_at_k_by_hand_and_by_counting() -> None:
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4)
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert (pass_at_k(5, 0, 3), pass_at_k(5, 3, 3), pass_at_k(4, 4, 1)) == (0.0, 1.0, 1.0)
    drawn = list(itertools.combinations([True] * 3 + [False] * 4, 3))
    assert pass_at_k(7, 3, 3) == pytest.approx(sum(map(any, drawn)) / len(drawn))


@pytest.mark.skipif(not HUMANEVAL.is_file(), reason="HumanEval's file is not beside the checkout")
def test_every_reference_solution_passes_and_no_empty_body() -> None:
    docs = [json.loads(line) for line in gzip.decompress(HUMANEVAL.read_bytes()).splitlines()]
    assert len(docs) == 164
    with allowed(True):
        solved = run_humaneval([[doc["canonical_solution"]] for doc in docs], docs)
        empty = run_humaneval([["    pass\n"]] * len(docs), docs)
    assert [text.partition("\n")[0] for (text,) in solved] == ["# passed"] * 164
    assert [text for (text,) in empty if not text.startswith("# failed: ")] == []


@pytest.mark.parametrize("tasks", [["humaneval"], ["mbpp@1"], ["gsm8k", "humaneval_64", "mbpp_instruct"]])
def test_a_sweep_says_that_programs_may_be_run(tmp_path: Path, tasks: list[str]) -> None:
    running = [task.partition("@")[0] for task in tasks if task != "gsm8k"]
    with pytest.raises(SpecError) as refused:
        _sweep(tmp_path, tasks=tasks)
    line = str(refused.value)
    assert line.startswith(
        f"the test's sweep: evaluation: to score {', '.join(running)}, programs that the models wrote"
    )
    assert "give run_code: true to run them in a sandbox" in line
    assert "\n" not in line
    for run_code in (True, "unprotected"):
        assert _sweep(tmp_path, tasks=tasks, run_code=run_code).evaluation.run_code == run_code
    with pytest.raises(SpecError, match=r"evaluation.run_code: .*'unprotected', found 'always'"):
        _sweep(tmp_path, tasks=tasks, run_code="always")


def test_how_programs_are_held_is_part_of_no_key(tmp_path: Path) -> None:
    of = {
        how: task_identity(_sweep(tmp_path, tasks=["humaneval"], run_code=how), "humaneval")
        for how in (True, "unprotected")
    }
    assert of[True] == of["unprotected"]
    assert of[True]["digest"]


OWN = """
task: mine
custom_dataset: !function items.rows
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{prompt}}"
"""
ITEMS = "import datasets\ndef rows(**_):\n    return {'test': datasets.Dataset.from_list(ROWS)}\nROWS = "


@pytest.mark.parametrize(
    ("own", "rows", "run_code", "problem"),
    [
        ({}, HUMANEVAL_ROWS, False, "to score mine, programs that the models wrote are run"),
        ({}, HUMANEVAL_ROWS, True, "mine runs programs outside the sandbox"),
        ({"filter": "run_humaneval"}, HUMANEVAL_ROWS, False, "to score mine, programs that the models wrote are run"),
        ({"filter": "run_humaneval"}, [{"prompt": "x"}], True, "mine needs the columns prompt, test, entry_point"),
    ],
)
def test_a_task_of_the_users_own_is_held_as_well(
    tmp_path: Path, own: dict[str, str], rows: list[dict[str, Any]], run_code: bool, problem: str
) -> None:
    with pytest.raises(SpecError, match=problem):
        _own_task(tmp_path, own, rows, run_code)


def test_a_task_of_the_users_own_may_use_the_sandbox(tmp_path: Path) -> None:
    benchmarks = _own_task(tmp_path, {"filter": "run_humaneval"}, HUMANEVAL_ROWS[:1], True)
    row = _score(benchmarks, "mine", _model(lambda *_: "    return a + b\n"))["pass@1,own"]
    assert (row["value"], row["samples"][0]["response"]) == (1.0, "# passed\n    return a + b\n")
    assert _own_task(tmp_path, {}, HUMANEVAL_ROWS, "unprotected").run_code == "unprotected"


def _own_task(folder: Path, own: dict[str, str], rows: list[dict[str, Any]], run_code: bool | str) -> Benchmarks:
    (folder / "items.py").write_text(ITEMS + repr(rows))
    text = OWN
    if "filter" in own:
        text += (
            "filter_list:\n  - name: own\n    filter:\n      - function: custom\n"
            f"        filter_fn: !function raysft.evaluation.programs.{own['filter']}\n"
            "process_results: !function raysft.evaluation.programs.pass_at_1\n"
            "metric_list: [{metric: pass@1, aggregation: mean, higher_is_better: true}]\n"
        )
    else:
        text += "unsafe_code: true\n"
    (folder / "mine.yaml").write_text(text)
    return load_benchmarks(_sweep(folder, tasks=["mine"], include=[str(folder)], run_code=run_code))


def test_nothing_is_generated_on_a_machine_that_cannot_hold_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Protections("open", network="", files="", processes="", user="own", reasons=("no namespaces",))
    benchmarks = _loaded(tmp_path, "humaneval", HUMANEVAL_ROWS)
    monkeypatch.setattr(pool, "protections", lambda: bare)
    model = _model(lambda *_: "")
    with pytest.raises(SandboxError, match="cannot keep programs from its network and files and processes"):
        _score(benchmarks, "humaneval", model)
    assert model.contexts == []


def test_a_filter_called_from_elsewhere_runs_nothing() -> None:
    with pytest.raises(SandboxError, match="run_code is false"):
        run_humaneval([["    return 1\n"]], HUMANEVAL_ROWS[:1])
