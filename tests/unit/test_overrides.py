"""Members of groups that the user redefines: what a group measures is in its key, and what it does not is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raysft.spec import benchmarks, lm_eval_groups
from raysft.spec.benchmarks import is_local, task_identity
from raysft.spec.lm_eval_groups import held_by_groups
from raysft.spec.sweep import load_sweep
from tests.conftest import SMALL

pytestmark = pytest.mark.unit

ASKED = ("mmlu", "mmlu_stem", "cmmlu", "gsm8k", "arc_challenge")
TASK = "task: {name}\ndataset_path: json\noutput_type: generate_until\ndoc_to_text: '{text}'\ndoc_to_target: x\n"
Digests = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def read_once() -> Iterator[None]:
    """lm-eval's own files, of two of its folders; tests/invariants/test_lm_eval_groups.py looks into all of them."""
    files = [entry for entry in lm_eval_groups._files() if {"mmlu", "cmmlu"} & set(entry[0].parts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval_groups, "_files", lambda: files)
        held_by_groups.cache_clear()
        yield
    held_by_groups.cache_clear()


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with a task of the user's own."""
    (tmp_path / "tasks").mkdir()
    return _write(tmp_path / "tasks", "own", TASK.format(name="own", text="Q")).parent


@pytest.fixture
def digests(tmp_path: Path, tasks: Path) -> Digests:
    """What keys hold of tasks of lm-eval's and the user's, read anew."""

    def read(*more: str) -> dict[str, Any]:
        for cached in (benchmarks._digest, benchmarks._tasks_in, benchmarks._tagged_in):
            cached.cache_clear()
        evaluation = {"tasks": [*ASKED, *more], "include": [str(tasks)]}
        (tmp_path / "sweep.yaml").write_text(json.dumps({**SMALL, "storage": "none", "evaluation": evaluation}))
        sweep = load_sweep(tmp_path / "sweep.yaml")
        return {name: task_identity(sweep, name)["digest"] for name in sweep.evaluation.tasks}

    return read


def _write(folder: Path, name: str, text: str) -> Path:
    (folder / f"{name}.yaml").write_text(text)
    return folder / f"{name}.yaml"


def test_a_task_that_no_group_holds_is_in_no_key(digests: Digests) -> None:
    assert digests() == dict.fromkeys(ASKED)  # as they were before a sweep had a folder


def test_a_redefined_member_is_part_of_the_groups_above_it(tasks: Path, digests: Digests) -> None:
    """Through a tag and a group; lm-eval's own YAML has both, the user's neither."""
    member = _write(tasks, "mine", TASK.format(name="mmlu_anatomy", text="mine"))
    added = digests()
    assert [name for name in ASKED if added[name] is not None] == ["mmlu", "mmlu_stem"]
    assert digests() == added
    member.write_text(member.read_text() + "target_delimiter: ''\n")
    edited = digests("mmlu_anatomy")
    assert [name for name in ASKED if edited[name] != added[name]] == ["mmlu", "mmlu_stem"]
    member.unlink()
    assert digests() == dict.fromkeys(ASKED)


def test_a_redefined_group_is_part_of_the_one_above_it(tasks: Path, digests: Digests) -> None:
    """And its members are, where it has other ones: what lm-eval's has under its name counts no more."""
    _write(tasks, "anatomy", TASK.format(name="mmlu_anatomy", text="mine"))
    _write(tasks, "stem", "group: mmlu_stem\ntask: [own]\n")
    before = digests()
    assert before["mmlu"] == before["mmlu_stem"] is not None
    _write(tasks, "anatomy", TASK.format(name="mmlu_anatomy", text="another"))
    assert digests() == before
    _write(tasks, "own", TASK.format(name="own", text="another"))
    after = digests()
    assert [name for name in ASKED if after[name] != before[name]] == ["mmlu", "mmlu_stem"]


def test_a_task_under_a_tag_of_lm_evals_is_part_of_its_group(tasks: Path, digests: Digests) -> None:
    _write(tasks, "tagged", TASK.format(name="tagged", text="Q") + "tag: [mmlu_stem_tasks]\n")
    assert [name for name, digest in digests().items() if digest is not None] == ["mmlu", "mmlu_stem"]


def test_a_group_of_the_users_holds_what_he_redefined_of_lm_evals(tasks: Path, digests: Digests) -> None:
    _write(tasks, "both", "group: both\ntask: [own, mmlu]\n")
    without = digests("both")["both"]
    _write(tasks, "anatomy", TASK.format(name="mmlu_anatomy", text="mine"))
    assert digests("both")["both"] != without


def test_groups_written_out_inside_a_group_are_what_their_members_are(tmp_path: Path, digests: Digests) -> None:
    tasks = tmp_path / "tasks"
    _write(tasks, "inner", "group: inner\ntask: [own]\n")
    _write(tasks, "outer", "group: outer\ntask:\n  - {group: here, task: [{task: own, num_fewshot: 1}]}\n")
    _write(tasks, "above", "group: above\ntask: [{group: inner, num_fewshot: 0}]\n")
    before = digests("outer", "above")
    assert all(is_local(load_sweep(tmp_path / "sweep.yaml"), name) for name in ("outer", "above"))
    _write(tasks, "own", TASK.format(name="own", text="another"))
    after = digests("outer", "above")
    assert before["outer"] != after["outer"]
    assert before["above"] != after["above"]
