"""Every task of the suite on local files: what it asks, and what it makes of right, wrong and unreadable answers.

A scripted model answers, and nothing may connect anywhere. HumanEval and MBPP are in tests/sandbox/test_code_tasks.py,
MT-Bench and AlpacaEval in tests/unit/test_judge*.py.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest

from raysft.evaluation.harness import Benchmarks, load_benchmarks
from raysft.spec.suites import SUITES
from raysft.spec.sweep import SpecError, parse_sweep
from tests.bench_files import GSM8K, GSM8K_TRAIN, write_bench_files
from tests.conftest import SMALL
from tests.scripted_lm import Scripted, score_rows

pytestmark = pytest.mark.invariants

BENCH = Path(__file__).parents[3] / "shared/data/bench"
TASKS = ["minerva_math@0", "gsm8k@0", "boolq", "nq_open", "truthfulqa_gen", "mmlu", "cmmlu", "mmlu_jp"]
WITH_EXAMPLES = ["minerva_math@4", "gsm8k@5", "boolq@1", "truthfulqa_gen@0", "mmlu@2", "cmmlu@5"]
DEAD_END = "I cannot say."


@dataclass
class Asked:
    """What a scripted model was asked by a task, and what came of it: score rows by leaf task (or group) and metric."""

    contexts: list[str]
    rows: dict[tuple[str, str], dict[str, Any]]


def _ask(benchmarks: Benchmarks, task: str, answer: Callable[[str], str]) -> Asked:
    model = Scripted(answer)
    rows = score_rows(benchmarks, task, model)
    return Asked([*model.contexts, *(context for context, _ in model.scored)], rows)


def _load(folder: Path, tasks: list[str], data: dict[str, Any], limit: int | None = 1) -> Benchmarks:
    evaluation = {"tasks": tasks, "data": data, "limit": limit}
    return load_benchmarks(parse_sweep({**SMALL, "storage": str(folder), "evaluation": evaluation}, "the test's sweep"))


@pytest.fixture(scope="module", autouse=True)
def no_network() -> Iterator[None]:
    """Whoever tries to connect fails the test."""

    def refuse(_: socket.socket, address: Any) -> None:
        raise AssertionError(f"a connection to {address}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket.socket, "connect_ex", refuse)
        yield


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Benchmarks:
    folder = tmp_path_factory.mktemp("bench")
    return _load(folder, [*TASKS, *WITH_EXAMPLES], write_bench_files(folder))


TRUTHFUL = "Q: Where were the 1992 Olympics held?\nA: The 1992 Olympics were held in Barcelona, Spain.\n\n"
MINERVA = "Final Answer: The final answer is ${}$. I hope it is correct."
ANATOMY = "\nA. 21\nB. 22\nC. 23\nD. 24\n"

# task, one of its leaf tasks and a metric: what it is asked last, a right and a wrong answer, one that cannot be read
CASES: dict[tuple[str, str, str], tuple[str, str, str, str | None]] = {
    ("minerva_math@0", "minerva_math_counting_and_prob@0", "exact_match,none"): (
        "Problem:\nWhat is $2 \\div 7$ in counting_and_probability?\n\nSolution:",
        "Divide. " + MINERVA.format("\\frac{2}{7}"),
        "Divide. " + MINERVA.format("\\frac{3}{7}"),
        "It is 2/7, of course.",
    ),
    ("minerva_math@0", "minerva_math_algebra@0", "math_verify,none"): (
        "Problem:\nWhat is $2 \\div 7$ in algebra?\n\nSolution:",
        "We find $\\boxed{\\frac{2}{7}}$.",
        "We find $\\boxed{\\frac{3}{7}}$.",
        "There is no telling.",
    ),
    ("gsm8k@0", "gsm8k@0", "exact_match,strict-match"): (
        "Question: A shed has 4 shelves of 6 pots. How many pots?\nAnswer:",
        " 4 * 6 = 24\n#### 24",
        " 4 + 6 = 10\n#### 10",
        " That makes 24.",
    ),
    ("gsm8k@0", "gsm8k@0", "exact_match,flexible-extract"): (
        "Question: A shed has 4 shelves of 6 pots. How many pots?\nAnswer:",
        " That makes 24.",
        " That makes 10.",
        " Two dozen.",
    ),
    ("boolq", "boolq", "acc,none"): (
        "The Lun has 90 km, the Ashe 70.\nQuestion: is the river lun longer than the ashe?\nAnswer:",
        " yes",
        " no",
        None,
    ),
    ("nq_open", "nq_open", "exact_match,remove_whitespace"): (
        "Answer these questions:\n\nQ: who built the first tidal clock?\nA:",
        " H Voss\nQ: who",
        " Ida Voss\n",
        "\n",
    ),
    ("truthfulqa_gen", "truthfulqa_gen", "bleu_acc,none"): (
        TRUTHFUL + "Q: What happens if a cat walks under a ladder?",
        "\nA: Nothing in particular happens.\n\n",
        "\nA: You will have seven years of bad luck.\n\n",
        "\n\n",
    ),
    ("mmlu", "mmlu_anatomy", "acc,none"): (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        f"In anatomy, what is 20 + 1?{ANATOMY}Answer:",
        " A",
        " B",
        None,
    ),
    ("cmmlu", "cmmlu_anatomy", "acc,none"): (
        f"以下是关于解剖学的单项选择题，请直接给出正确答案的选项。\n\nIn anatomy, what is 20 + 1?{ANATOMY}答案：",
        " A",
        " B",
        None,
    ),
    ("mmlu_jp", "mmlu_jp::anatomy", "acc,none"): (
        "以下は解剖学に関する選択問題です。正しい選択肢の記号を答えてください。\n\n"
        f"In anatomy, what is 21 + 1?{ANATOMY}答え：",
        "B",
        "A",
        None,
    ),
}


@pytest.mark.parametrize("case", CASES, ids="|".join)
def test_prompt_extraction_and_metric(benchmarks: Benchmarks, case: tuple[str, str, str]) -> None:
    task, leaf, metric = case
    prompt, right, wrong, unreadable = CASES[case]

    def told(answer: str) -> dict[str, Any]:
        asked = _ask(benchmarks, task, lambda context: answer if context.endswith(prompt) else DEAD_END)
        assert any(context.endswith(prompt) for context in asked.contexts)
        return asked.rows[leaf, metric]

    expected = {right: (1.0, 0.0), wrong: (0.0, 0.0)} | ({} if unreadable is None else {unreadable: (0.0, 1.0)})
    found = {answer: told(answer) for answer in expected}
    assert {answer: (row["value"], row["unextracted"]) for answer, row in found.items()} == expected
    assert {row["n"] for row in found.values()} == {1}
    if task != "truthfulqa_gen":  # which names many right answers, and none as the gold one
        assert all(row["bits_per_byte"] > 0 for row in found.values())


@pytest.mark.parametrize(
    ("task", "right", "wrong"), [("mmlu", " A", " C"), ("cmmlu", " A", " D"), ("mmlu_jp", "B", "A")]
)
def test_a_group_is_scored_over_its_members(benchmarks: Benchmarks, task: str, right: str, wrong: str) -> None:
    for answer, score in ((right, 1.0), (wrong, 0.0)):
        rows = _ask(benchmarks, task, lambda _, answer=answer: answer).rows
        assert rows[task, "acc,none"]["value"] == score
        leaves = {name for name, metric in rows if metric == "acc,none" and rows[name, metric]["samples"]}
        assert len(leaves) == (67 if task == "cmmlu" else 57)
        assert {rows[leaf, "acc,none"]["chance"] for leaf in leaves} == {0.25}


def _before_the_item(asked: Asked, item: str) -> str:
    [context] = {context for context in asked.contexts if context.endswith(item)}
    return context.removesuffix(item)


def test_shots_replace_a_tasks_own_number(benchmarks: Benchmarks) -> None:
    """GSM8K shows five examples by itself, MMLU none, TruthfulQA's own zero is one that lm-eval does not let go of."""
    item = f"Question: {GSM8K[0]['question']}\nAnswer:"
    assert _before_the_item(_ask(benchmarks, "gsm8k@0", str), item) == ""
    shown = _before_the_item(_ask(benchmarks, "gsm8k@5", str), item)
    known = [f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in GSM8K_TRAIN]
    assert sum(shown.count(example) for example in known) == 5
    assert sum(map(len, (example for example in known if example in shown))) == len(shown)

    first, second = (
        f"In anatomy, what is {number} + 1?\nA. {number - 1 - right + 2}\nB. {number - right + 2}\n"
        f"C. {number - right + 3}\nD. {number - right + 4}\nAnswer: {'ABCD'[right]}\n\n"
        for number, right in ((10, 2), (11, 3))
    )
    start = "The following are multiple choice questions (with answers) about anatomy.\n\n"
    asked = _ask(benchmarks, "mmlu@2", str)
    assert _before_the_item(asked, f"In anatomy, what is 20 + 1?{ANATOMY}Answer:") == start + first + second
    assert ("mmlu_anatomy@2", "acc,none") in asked.rows
    assert ("mmlu@2", "acc,none") in asked.rows


def test_the_same_examples_are_shown_to_every_checkpoint(benchmarks: Benchmarks) -> None:
    assert _ask(benchmarks, "gsm8k@5", str).contexts == _ask(benchmarks, "gsm8k@5", str).contexts


def test_minerva_shows_its_four_examples(benchmarks: Benchmarks) -> None:
    item = "Problem:\nWhat is $2 \\div 7$ in algebra?\n\nSolution:"
    shown = _before_the_item(_ask(benchmarks, "minerva_math@4", str), item)
    assert shown.count("Problem:\n") == shown.count("I hope it is correct.") == 4


def test_a_hub_out_of_reach_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("cannot reach\nthe hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(SpecError) as refused:
        _load(tmp_path, ["boolq@0"], {})
    hint = "local files would stand under evaluation.data.boolq"
    assert str(refused.value) == f"evaluation.tasks: boolq@0 cannot be loaded (cannot reach the hub); {hint}"


def test_every_member_without_a_judge_or_code_is_tested_here() -> None:
    elsewhere = {"humaneval", "mbpp", "alpaca_eval", "mt_bench"}
    here = {task.split("@")[0] for task, _, _ in CASES}
    assert here | elsewhere == {member.task for member in SUITES["massive_sft"]}


@pytest.mark.skipif(not BENCH.is_dir(), reason="the real benchmark files are not beside the checkout")
def test_the_real_gsm8k_scores_its_own_solutions(tmp_path: Path) -> None:
    path = BENCH / "gsm8k_test.jsonl"
    solutions = {row["question"]: row["answer"] for row in map(json.loads, path.read_text().splitlines())}
    real = _load(tmp_path, ["gsm8k@0"], {"gsm8k": str(path)}, None)

    def solve(context: str) -> str:
        return solutions[context.removeprefix("Question: ").removesuffix("\nAnswer:")]

    row = _ask(real, "gsm8k@0", solve).rows["gsm8k@0", "exact_match,strict-match"]
    assert (row["n"], row["value"], row["unextracted"]) == (1319, 1.0, 0.0)


@pytest.mark.skipif(not BENCH.is_dir(), reason="the real benchmark files are not beside the checkout")
def test_the_real_nq_open_takes_any_of_its_answers(tmp_path: Path) -> None:
    path = BENCH / "nq_open_dev.jsonl"
    answers = {row["question"]: row["answer"] for row in map(json.loads, path.read_text().splitlines())}
    real = _load(tmp_path, ["nq_open"], {"nq_open": str(path)}, None)

    def know(context: str) -> str:
        return answers[context.removeprefix("Answer these questions:\n\nQ: ").removesuffix("?\nA:")][-1]

    row = _ask(real, "nq_open", know).rows["nq_open", "exact_match,remove_whitespace"]
    assert row["n"] == 3610
    # An answer ends at the first of these, and two answers begin with one.
    read = [re.split(r"[.,\n]", options[-1])[0] for options in answers.values()]
    whole = sum(text == options[-1] for text, options in zip(read, answers.values(), strict=True))
    assert round(row["value"] * row["n"]) >= whole > 3000
    assert round(row["unextracted"] * row["n"]) == read.count("") == 2
