"""The generated world: what is held out stays held out, and the tasks over it score a perfect answer as perfect."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import raysft.evaluation
from raysft.corpus import skills

pytestmark = pytest.mark.unit

TASKS = Path(raysft.evaluation.__file__).parent / "tasks" / "micro"


def all_rows(skill: str) -> int:
    """The number of distinct rows, from the message that refuses one more than there can be."""
    with pytest.raises(ValueError, match="distinct instruction rows") as refusal:
        skills.instruction_rows(skill, 10**6, seed=0)
    return int(str(refusal.value).split(" has ")[1].split()[0])


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_no_test_question_is_a_training_row(skill: str) -> None:
    rows = skills.instruction_rows(skill, all_rows(skill), seed=0)
    asked = {row.instruction for row in rows}
    assert len(asked) == len(rows)
    assert not asked & {item.question for item in skills.test_items(skill)}


@pytest.mark.parametrize("asked", ["capitals", "reversal", "flags"])
@pytest.mark.parametrize("tested", ["capitals", "reversal", "flags"])
def test_a_held_out_country_or_city_is_held_out_from_every_skill(asked: str, tested: str) -> None:
    words = {word for row in skills.instruction_rows(asked, all_rows(asked), 0) for word in row.instruction.split()}
    for item in skills.test_items(tested):
        name = next(word for word in item.question.split() if word.endswith("?"))
        assert name not in words


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_pretraining_states_every_held_out_fact(skill: str) -> None:
    read = set(skills.statements({skill: 1.0}, 200_000 if skill == "largest" else 20_000, seed=0))
    assert all(f"Question: {item.question}\nAnswer: {item.answer}." in read for item in skills.test_items(skill))


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_choices_hold_the_answer_once_and_places_are_balanced(skill: str) -> None:
    items = skills.test_items(skill)
    assert all(item.choices.count(item.answer) == 1 and len(set(item.choices)) == 4 for item in items)
    places = [item.choices.index(item.answer) for item in items]
    assert all(places.count(place) > len(items) / 8 for place in range(4))


def test_answers_are_true() -> None:
    for item in skills.test_items("addition"):
        a, b = (int(word) for word in item.question.strip("?").split() if word.isdigit())
        assert int(item.answer) == a + b
    for item in skills.test_items("largest"):
        assert int(item.answer) == max(map(int, item.choices))
    cities = {item.answer: item.question for item in skills.test_items("capitals")}
    for item in skills.test_items("reversal"):
        city = item.question.removesuffix("?").split()[-1]
        assert item.answer in cities[city]


def test_statements_follow_the_shares() -> None:
    drawn = skills.statements({"addition": 3, "flags": 1, "largest": 0}, 4000, seed=1)
    flags = sum("flag" in sentence for sentence in drawn)
    assert len(drawn) == 4000
    assert 880 < flags < 1120
    assert not any("largest" in sentence for sentence in drawn)
    assert all(sentence.isascii() for sentence in drawn)


def test_the_world_is_the_same_in_another_process() -> None:
    program = (
        "from raysft.corpus import skills\n"
        "print([skills.statements({s: 1.0}, 5, 3) + skills.instruction_rows(s, 5, 3) + skills.test_items(s)[:5]"
        " for s in skills.SKILLS])"
    )
    worlds = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(worlds) == 1


def test_rows_follow_the_seed() -> None:
    assert skills.instruction_rows("flags", 50, 0) == skills.instruction_rows("flags", 50, 0)
    assert skills.instruction_rows("flags", 50, 0) != skills.instruction_rows("flags", 50, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: skills.statements({"captials": 1.0}, 1, 0),
        lambda: skills.instruction_rows("captials", 1, 0),
        lambda: skills.test_items("captials"),
    ],
)
def test_an_unknown_skill_is_refused_with_the_valid_ones(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="'captials', valid are capitals, reversal"):
        call()


@pytest.fixture(scope="module")
def task_manager():  # type: ignore[no-untyped-def]
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(TASKS), include_defaults=False)


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_the_exact_task_gives_a_right_answer_one_and_a_talkative_one_zero(skill: str, task_manager) -> None:  # type: ignore[no-untyped-def]
    task = load(task_manager, f"micro_{skill}_exact")
    items = skills.test_items(skill)
    documents = list(task.test_docs())
    assert len(documents) == len(items)
    for document, item in zip(documents, items, strict=True):
        assert task.doc_to_text(document) == f"###Question: {item.question}\n###Answer:"
        assert task.process_results(document, [item.answer]) == {"exact_match": 1.0}
        assert task.process_results(document, [item.answer + "."]) == {"exact_match": 0.0}


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_the_choice_task_prefers_the_gold_answer(skill: str, task_manager) -> None:  # type: ignore[no-untyped-def]
    task = load(task_manager, f"micro_{skill}_choice")
    assert task.config.metadata["chance"] == 0.25
    for document, item in zip(task.test_docs(), skills.test_items(skill), strict=True):
        assert task.doc_to_text(document) == f"###Question: {item.question}\n###Answer:"
        choices = task.doc_to_choice(document)
        assert tuple(choices) == item.choices
        likelihoods = [(-1.0 if choice == item.answer else -9.0, False) for choice in choices]
        assert task.process_results(document, likelihoods)["acc"] == 1.0


def load(task_manager, name: str):  # type: ignore[no-untyped-def]
    return task_manager.load([name])["tasks"][name]
