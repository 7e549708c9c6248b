"""Suites, shots and local data: what the YAML's words stand for, what keys hold of them, and what is refused."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysft.corpus.sources import FORMATS
from raysft.evaluation.harness import benchmark_texts, load_benchmarks
from raysft.evaluation.local_data import LocalData
from raysft.spec.benchmarks import is_local, task_identity
from raysft.spec.evaluation import Evaluation
from raysft.spec.local_data import ENDINGS
from raysft.spec.suites import SUITES, split_shots
from raysft.spec.sweep import SpecError, Sweep, load_sweep, parse_sweep, resolved_yaml
from tests.conftest import SMALL

pytestmark = pytest.mark.unit

NEED_MORE = ["humaneval", "mbpp", "alpaca_eval", "mt_bench"]
REST = ("minerva_math", "gsm8k", "boolq", "nq_open", "truthfulqa_gen", "mmlu", "cmmlu", "mmlu_jp")


def _sweep(folder: Path, **evaluation: Any) -> Sweep:
    (folder / "sweep.yaml").write_text(json.dumps({**SMALL, "storage": "none", "evaluation": evaluation}))
    return load_sweep(folder / "sweep.yaml")


# suites and shots


def test_the_suite_stands_for_its_members_without_those_left_out() -> None:
    assert Evaluation(tasks=["massive_sft"], without=NEED_MORE).tasks == REST
    assert len(SUITES["massive_sft"]) == 12


def test_shots_are_in_the_names_as_far_as_a_member_shows_any() -> None:
    tasks = Evaluation(tasks=[{"task": "massive_sft", "shots": 5}, "gsm8k"], without=NEED_MORE).tasks
    assert tasks == (
        "minerva_math@4", "gsm8k@5", "boolq@5", "nq_open@5", "truthfulqa_gen", "mmlu@5", "cmmlu@5", "mmlu_jp@5", "gsm8k"
    )  # fmt: skip
    assert [split_shots(task) for task in tasks[1:2] + tasks[-1:]] == [("gsm8k", 5), ("gsm8k", None)]


def test_a_sweep_that_was_written_out_reads_as_itself(tmp_path: Path) -> None:
    data = {"gsm8k": {"test": "here.jsonl"}}
    sweep = _sweep(tmp_path, tasks=["massive_sft", {"task": "gsm8k", "shots": 0}], without=NEED_MORE, data=data)
    assert sweep.evaluation.data == {"gsm8k": {"test": tmp_path / "here.jsonl"}}
    (tmp_path / "again.yaml").write_text(resolved_yaml(sweep))
    assert load_sweep(tmp_path / "again.yaml") == sweep


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "members in need": (
        {"tasks": ["massive_sft"]},
        ["run_code: true", "judge", "without: [humaneval, mbpp, alpaca_eval, mt"],
    ),
    "no member": ({"tasks": ["massive_sft"], "without": ["arc"]}, ["evaluation.without", "arc", "boolq"]),
    "half a number": (
        {"tasks": [{"task": "gsm8k", "shots": 2.5}]},
        ["tasks: shots of gsm8k", "whole number from 0 to 1000", "2.5"],
    ),
    "true": ({"tasks": [{"task": "gsm8k", "shots": True}]}, ["shots of gsm8k", "whole number", "True"]),
    "shots twice": ({"tasks": [{"task": "gsm8k@5", "shots": 0}]}, ["shots are in the name gsm8k@5 already"]),
    "another field": (
        {"tasks": [{"task": "gsm8k", "fewshot": 5}]},
        ["task (a name) and shots (a number)", "task, fewshot"],
    ),
    "one task twice": ({"tasks": ["gsm8k@5", {"task": "gsm8k", "shots": 5}]}, ["found twice: gsm8k@5"]),
    "a task that is not text": ({"tasks": [5]}, ["evaluation.tasks.0", "string"]),
    "data of no task": ({"tasks": ["boolq"], "data": {"gsm8k": "a.jsonl"}}, ["'gsm8k'", "valid: boolq"]),
    "data of one with shots": ({"tasks": ["boolq@5"], "data": {"boolq@5": "a.jsonl"}}, ["'boolq@5'", "valid: boolq"]),
    "no data": ({"tasks": ["boolq"], "data": {"boolq": {}}}, ["data.boolq", "empty mapping"]),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_stands_for_nothing_is_refused_in_one_line(mistake: str) -> None:
    evaluation, words = REFUSED[mistake]
    with pytest.raises(SpecError) as refused:
        parse_sweep({**SMALL, "storage": "none", "evaluation": evaluation}, "sweep.yaml")
    [line] = str(refused.value).splitlines()
    assert "evaluation" in line
    assert [word for word in words if word not in line] == []


# keys


def test_keys_hold_shots_and_what_the_files_hold_but_not_where_they_lie(tmp_path: Path) -> None:
    def identity(task: str, **evaluation: Any) -> Mapping[str, Any]:
        return task_identity(_sweep(tmp_path, tasks=[task], **evaluation), task)

    (tmp_path / "a.jsonl").write_text('{"question": "1"}\n')
    (tmp_path / "b.jsonl").write_text('{"question": "1"}\n')
    (tmp_path / "c.jsonl").write_text('{"question": "2"}\n')
    assert identity("gsm8k") == {"task": "gsm8k", "digest": None, "limit": None}  # as before there were any
    assert identity("gsm8k@5") == {**identity("gsm8k"), "shots": 5}
    of_file = {name: identity("gsm8k", data={"gsm8k": f"{name}.jsonl"}) for name in "abc"}
    assert of_file["a"] == of_file["b"] != of_file["c"]
    assert of_file["a"] != identity("gsm8k")
    splits = identity("gsm8k", data={"gsm8k": {"test": "a.jsonl", "train": "c.jsonl"}})
    assert splits["data"] == {"test": of_file["a"]["data"], "train": of_file["c"]["data"]}


def test_a_folder_of_data_is_all_files_below_it(tmp_path: Path) -> None:
    def digest(folder: str) -> Any:
        return task_identity(_sweep(tmp_path, tasks=["mmlu"], data={"mmlu": folder}), "mmlu")["data"]

    for folder in ("one", "two", "three"):
        (tmp_path / folder / "test").mkdir(parents=True)
        (tmp_path / folder / "test" / "law.csv").write_text(folder if folder == "three" else "a")
    assert digest("one") == digest("two") != digest("three")
    (tmp_path / "two" / "test" / "law.csv").rename(tmp_path / "two" / "test" / "art.csv")
    with pytest.raises(SpecError, match=r"evaluation\.data\.mmlu: no file .*four"):
        digest("four")


# tasks of the user's own

TASK = """
task: {name}
dataset_path: json
output_type: generate_until
training_split: train
test_split: test
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
ITEMS = [{"question": f"question {number}", "answer": f"answer {number}"} for number in range(4)]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with two tasks, `one` that shows nothing and `two`, and a group of them whose members show one."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "one.yaml").write_text(TASK.format(name="one") + "num_fewshot: 0\n")
    (folder / "two.yaml").write_text(TASK.format(name="two") + "dataset_name: second\n")
    (folder / "both.yaml").write_text("group: both\ntask: [one, two]\nnum_fewshot: 1\n")
    return folder


def _lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _prompts(sweep: Sweep) -> dict[str, str]:
    """What each leaf task of the sweep asks first."""
    leaves = {name: leaf for loaded in load_benchmarks(sweep).loaded.values() for name, leaf in loaded["tasks"].items()}
    for leaf in leaves.values():
        leaf.set_fewshot_seed(0)
    return {
        name: leaf.fewshot_context(leaf.eval_docs[0], leaf.config.num_fewshot or 0) for name, leaf in leaves.items()
    }


def test_shots_count_more_than_what_task_and_group_say(tmp_path: Path, tasks: Path) -> None:
    data = {"train": str(_lines(tmp_path / "train.jsonl", ITEMS[2:])), "test": str(_lines(tmp_path / "t.jsonl", ITEMS))}
    named = ["one", "one@2", "two@1"]
    sweep = _sweep(tmp_path, include=[str(tasks)], tasks=named, data=dict.fromkeys(("one", "two"), data))
    shown = {name: prompt.count("A: answer") for name, prompt in _prompts(sweep).items()}
    assert shown == {"one": 0, "one@2": 2, "two@1": 1}


def test_a_groups_own_shots_count_without_any_in_the_name(tmp_path: Path, tasks: Path) -> None:
    rows = [{**row, "subject": subject} for row in ITEMS for subject in ("one", "second")]
    data = {"both": {"train": str(_lines(tmp_path / "a.jsonl", rows)), "test": str(_lines(tmp_path / "b.jsonl", rows))}}
    prompts = _prompts(_sweep(tmp_path, include=[str(tasks)], tasks=["both", "both@0", "both@2"], data=data))
    shown = {name: prompt.count("A: answer") for name, prompt in prompts.items()}
    assert shown == {"one": 1, "two": 1, "one@0": 0, "two@0": 0, "one@2": 2, "two@2": 2}


def test_a_group_is_what_its_members_are(tmp_path: Path, tasks: Path) -> None:
    def digests() -> dict[str, Any]:
        from raysft.spec import benchmarks

        for cached in (benchmarks._digest, benchmarks._tasks_in, benchmarks._tagged_in):
            cached.cache_clear()
        sweep = _sweep(tmp_path, include=[str(tasks)], tasks=["both", "two", "one"])
        assert all(is_local(sweep, name) for name in sweep.evaluation.tasks)
        return {name: task_identity(sweep, name)["digest"] for name in sweep.evaluation.tasks}

    before = digests()
    (tasks / "one.yaml").write_text((tasks / "one.yaml").read_text() + "target_delimiter: ''\n")
    after = digests()
    assert before["two"] == after["two"]
    assert before["one"] != after["one"]
    assert before["both"] != after["both"]


def test_a_group_with_members_of_lm_eval_is_not_local(tmp_path: Path, tasks: Path) -> None:
    (tasks / "mixed.yaml").write_text("group: mixed\ntask: [one, gsm8k]\n")
    assert not is_local(_sweep(tmp_path, include=[str(tasks)], tasks=["mixed"]), "mixed")


def test_the_users_task_counts_more_than_this_packages(tmp_path: Path, tasks: Path) -> None:
    (tasks / "jp.yaml").write_text(TASK.format(name="mmlu_jp").replace("Q: ", "Own: "))
    test = {"mmlu_jp": str(_lines(tmp_path / "jp.jsonl", ITEMS))}
    assert _prompts(_sweep(tmp_path, include=[str(tasks)], tasks=["mmlu_jp"], data=test)) == {
        "mmlu_jp": "Own: question 0\nA:"
    }


def _without_question(folder: Path) -> Any:
    return str(_lines(folder / "x.jsonl", [{"text": "a", "answer": "b"}]))


def _half_a_row(folder: Path) -> Any:
    return str(_lines(folder / "x.jsonl", [*ITEMS, {"question": "more"}]))


UNUSABLE: dict[str, tuple[str, Callable[[Path], Any], list[str]]] = {
    "no such column": ("one", _without_question, ["columns that one reads", "question", "found text, answer"]),
    "an item without an answer": ("one", _half_a_row, ["one: row 5 of test has no answer"]),
    "no such split": ("one", lambda at: {"dev": str(_lines(at / "x.jsonl", ITEMS))}, ["no split dev", "test, train"]),
    "not what is scored": (
        "one",
        lambda at: {"train": str(_lines(at / "x.jsonl", ITEMS))},
        ["nothing for split test of one", "{test: a file or folder}"],
    ),
    "no rows": ("one", lambda at: str(_lines(at / "x.jsonl", [])), ["holds no rows"]),
    "an ending": ("one", lambda at: str(_lines(at / "x.txt", ITEMS)), ["x.txt", "known endings", ".parquet"]),
    "kinds": ("one", lambda at: str(_lines(at / "x.jsonl", [*ITEMS, {"question": [5]}])), ["different kinds"]),
    "no example": (
        "one@1",
        lambda at: str(_lines(at / "x.jsonl", ITEMS)),
        ["1 example", "0 in split train", "shots: 0"],
    ),
    "too few": (
        "one@3",
        lambda at: dict.fromkeys(("train", "test"), str(_lines(at / "x.jsonl", ITEMS[:2]))),
        ["one@3 is to show 3 examples, but has 2 in split train"],
    ),
    "no member told": ("both", lambda at: str(_lines(at / "x.jsonl", ITEMS)), ["no row of one", "subject", "folder"]),
    "an empty folder": (
        "one",
        lambda at: str(_lines(at / "y/x.txt", ITEMS).parent),
        ["nothing for split test", "test.*"],
    ),
}


@pytest.mark.parametrize("mistake", UNUSABLE)
def test_data_that_a_task_cannot_use_is_one_line(tmp_path: Path, tasks: Path, mistake: str) -> None:
    name, make, words = UNUSABLE[mistake]
    data = {split_shots(name)[0]: make(tmp_path)}
    with pytest.raises(SpecError) as refused:
        load_benchmarks(_sweep(tmp_path, include=[str(tasks)], tasks=[name], data=data))
    [line] = str(refused.value).splitlines()
    assert line.startswith(("evaluation.data.", "evaluation.tasks: "))
    assert [word for word in words if word not in line] == []


def test_a_task_never_shows_the_items_that_it_is_scored_on(tmp_path: Path, tasks: Path) -> None:
    (tasks / "bare.yaml").write_text(TASK.format(name="bare").replace("training_split: train\n", ""))
    data = {"bare": str(_lines(tmp_path / "bare.jsonl", ITEMS))}
    assert _prompts(_sweep(tmp_path, include=[str(tasks)], tasks=["bare"], data=data))["bare"] == "Q: question 0\nA:"
    with pytest.raises(SpecError, match="no items besides those it is scored on"):
        load_benchmarks(_sweep(tmp_path, include=[str(tasks)], tasks=["bare@1"], data=data))


# files

ROWS = [{"question": "1.50?", "answer": 3, "choices": ["a", "007"]}, {"question": "2", "answer": 0, "choices": ["b"]}]


def _as_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "items.json": lambda path: path.write_text(json.dumps(ROWS)),
    "items.jsonl": lambda path: _lines(path, ROWS),
    "items.jsonl.gz": lambda path: path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode())),
    "items.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "items.csv": _as_csv,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_items(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    data = LocalData("evaluation.data.x", "x", None, ("test", "train"), "test", tmp_path / name)()
    assert data["test"].to_list() == ROWS
    assert len(data["train"]) == 0


def test_texts_of_a_csv_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("A,B,C,D\n1.50,007,12,[a]\n2.0,8,13,b\n")
    rows = LocalData("w", "x", None, ("test",), "test", tmp_path / "x.csv")()["test"].to_list()
    assert rows[0] == {"A": "1.50", "B": "007", "C": 12, "D": "[a]"}


PLACES = {
    "a file for each member": ["law.jsonl"],
    "split folders": ["test/law.jsonl", "dev/law.jsonl"],
    "split folders, split in the name": ["test/law_test.jsonl", "dev/law_dev.jsonl"],
    "member folders": ["law/test.jsonl", "law/dev.jsonl"],
    "member folders in shards": ["law/test-00000-of-00001.jsonl", "law/dev-00000-of-00001.jsonl"],
    "split in the name": ["law_test.jsonl", "law_dev.jsonl"],
    "many files": ["test/law/1.jsonl", "dev/law/1.jsonl"],
    "named after the task": ["exam_law_test.jsonl", "exam_law_dev.jsonl"],
}


@pytest.mark.parametrize("layout", PLACES)
def test_a_members_files_are_found_in_a_folder(tmp_path: Path, layout: str) -> None:
    for place in PLACES[layout]:
        split = "dev" if "dev" in place else "test"
        _lines(tmp_path / place, [{"question": f"law {split}"}])
        _lines(tmp_path / place.replace("law", "art"), [{"question": f"art {split}"}])
    data = LocalData("w", "exam_law", "law", ("test", "dev"), "test", tmp_path)()
    assert data["test"].to_list() == [{"question": "law test"}]
    assert data["dev"].to_list() == ([{"question": "law dev"}] if len(PLACES[layout]) > 1 else [])


@pytest.mark.parametrize("column", ["subject", "Subject", "type", "category"])
def test_a_members_rows_are_told_by_a_column(tmp_path: Path, column: str) -> None:
    rows = [{"question": name, column: name} for name in ("Counting & Probability", "number_theory")]
    path = _lines(tmp_path / "all.jsonl", rows)
    for subset, row in zip(("counting_and_probability", "Number Theory"), rows, strict=True):
        assert LocalData("w", "task", subset, ("test",), "test", path)()["test"].to_list() == [row]


def test_folders_hold_what_can_be_read() -> None:
    assert set(ENDINGS) == set(FORMATS)


def test_two_files_that_could_be_meant_are_refused(tmp_path: Path) -> None:
    for name in ("test.jsonl", "test.csv"):
        _lines(tmp_path / name, ITEMS)
    with pytest.raises(SpecError, match=r"either of .*test\.csv, .*test\.jsonl could be meant"):
        LocalData("w", "x", None, ("test",), "test", tmp_path)()


# MMLU in Japanese

JAPANESE = {
    "MMMLU": {"Question": "?", "A": "a", "B": "b", "C": "c", "D": "d", "Answer": "C", "Subject": "anatomy"},
    "Global-MMLU": {
        "question": "?", "option_a": "a", "option_b": "b", "option_c": "c", "option_d": "d", "answer": "C",
        "subject": "anatomy",
    },
    "MMLU": {"question": "?", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "anatomy"},
}  # fmt: skip


@pytest.mark.parametrize("layout", JAPANESE)
def test_translated_mmlu_is_read_in_every_published_layout(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "jp"
    _lines(folder / "anatomy.jsonl", [JAPANESE[layout]])
    from raysft.evaluation.tasks.massive_sft.items import as_mmlu

    items = as_mmlu(LocalData("w", "anatomy", "anatomy", ("test",), "test", folder)()["test"])
    assert items.to_list() == [{"question": "?", "choices": ["a", "b", "c", "d"], "answer": 2}]


def test_translated_mmlu_without_all_subjects_is_refused(tmp_path: Path) -> None:
    path = _lines(tmp_path / "jp.jsonl", list(JAPANESE.values())[:1])
    with pytest.raises(SpecError, match=r"evaluation\.data\.mmlu_jp: .*no row of abstract_algebra"):
        load_benchmarks(_sweep(tmp_path, tasks=["mmlu_jp"], data={"mmlu_jp": str(path)}))


def test_texts_for_similarity_come_from_local_data_too(tmp_path: Path, tasks: Path) -> None:
    data = {"one": str(_lines(tmp_path / "one.jsonl", ITEMS))}
    loaded = load_benchmarks(_sweep(tmp_path, include=[str(tasks)], tasks=["one"], data=data))
    assert benchmark_texts(loaded, "one", 1) == ["Q: question 0\nA: answer 0"]
