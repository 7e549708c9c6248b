"""What takes lm-eval's whole index: what is read of its groups without it, and names that are not in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pytest
from lm_eval.tasks._index import Entry, Kind, TaskIndex

from raysft.spec.benchmarks import PACKAGED_TASKS, _tasks_in
from raysft.spec.lm_eval_groups import held_by_groups
from tests.unit.test_cli import refused

pytestmark = pytest.mark.invariants

# Of each way in which a group comes to its members: tags, groups inside it or written out in it, lists of includes.
TASKS = (
    "mmlu_anatomy", "leaderboard_bbh_snarks", "arc_easy", "belebele_deu_Latn", "doda_translation_dr_fr",
    "mmlu_flan_cot_zeroshot_anatomy", "m_mmlu_de", "super-glue-lm-eval-v1", "minerva_math_algebra", "hellaswag",
)  # fmt: skip


@pytest.fixture(scope="module")
def index() -> Mapping[str, Entry]:
    return TaskIndex.build([Path(lm_eval.tasks.__file__).parent])


def _members(config: Mapping[str, Any], known: Mapping[str, Entry]) -> Iterator[str]:
    for member in config["task"] if isinstance(config.get("task"), list) else []:
        name = member if isinstance(member, str) else member.get("group", member.get("task"))
        if name in known:
            yield name
        elif isinstance(member, dict) and "group" in member:
            yield from _members(member, known)


def _below(name: str, index: Mapping[str, Entry]) -> set[str]:
    entry = index[name]
    members = entry.tags if entry.kind is Kind.TAG else set(_members(entry.cfg or {}, index))
    return members.union(*(_below(member, index) for member in members - {name}))


def test_groups_and_tags_hold_what_lm_evals_index_says(index: Mapping[str, Entry]) -> None:
    names = frozenset(name for name in TASKS if name in index)
    assert len(names) > 7  # tasks come and go with lm-eval's versions
    holders = [name for name, entry in index.items() if entry.kind in (Kind.GROUP, Kind.TAG)]
    wanted = {name: held for name in holders if name not in names and (held := names & _below(name, index))}
    found = held_by_groups(names)
    assert {name: held - found.get(name, frozenset()) for name, held in wanted.items()} == dict.fromkeys(
        wanted, frozenset()
    )
    assert frozenset().union(*wanted.values()) == frozenset().union(*found.values())


def test_no_group_of_lm_evals_holds_a_task_of_this_package(index: Mapping[str, Entry]) -> None:
    """Or its key would have to say so where a sweep has no folder of its own."""
    packaged = _tasks_in((PACKAGED_TASKS,)).keys()
    assert held_by_groups(frozenset(packaged)) == {}
    assert "humaneval" in packaged & index.keys()


def test_a_name_that_is_no_task_ends_with_one_line_before_any_worker_starts(
    content: dict[str, Any], write_sweep: Callable[[dict[str, Any]], Path]
) -> None:
    content["evaluation"]["tasks"] = ["nosuchtask"]
    assert "no task named nosuchtask" in refused(write_sweep(content))
