"""What of a storage an export takes: axes, epochs, keys, the best on a task; and what is said of what is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raysft.export.mistakes import ExportError
from raysft.export.names import LONGEST, checkpoint_name
from raysft.export.selection import Checkpoint, Choice, select, stored_checkpoints
from raysft.spec.grid import expand
from raysft.spec.sweep import parse_sweep
from raysft.store.layout import open_storage
from raysft.store.schema import TABLES
from tests.made_storage import make_storage, score_rows

pytestmark = pytest.mark.unit

Content = dict[str, Any]


@pytest.fixture
def stored(content: Content) -> tuple[list[Checkpoint], pa.Table]:
    """Two datasets x full and LoRA x two seeds, epochs 1 and 2 of each; and their scores."""
    content["grid"][0]["seeds"] = [0, 7]
    sweep = parse_sweep(content, "sweep")
    storage = make_storage(sweep)
    scores = pa.Table.from_pylist(list(score_rows(sweep)), schema=TABLES["scores"])
    return stored_checkpoints(sweep, storage), scores


Stored = tuple[list[Checkpoint], pa.Table]


def chosen(stored: Stored, **choice: Any) -> list[tuple[str, str, int, int]]:
    found = select(stored[0], Choice(**choice), stored[1])
    return [(one.trial.dataset, one.trial.method, one.trial.seed, one.epoch) for one in found]


def test_an_axis_narrows_and_epochs_are_the_last(stored: Stored) -> None:
    assert chosen(stored, datasets=("addition",), methods=("lora",)) == [
        ("addition", "lora", 0, 2),
        ("addition", "lora", 7, 2),
    ]
    assert len(chosen(stored, models=("every",))) == 8
    assert len(chosen(stored, models=("every",), epochs=("every",))) == 16
    assert {epoch for *_, epoch in chosen(stored, epochs=("1",))} == {1}
    assert len(chosen(stored, epochs=("1", "last"))) == 16
    assert {seed for _, _, seed, _ in chosen(stored, seeds=("7",))} == {7}
    assert len(chosen(stored, sizes=("32",))) == 8


def test_trials_are_named_by_key_by_its_beginning_or_by_name(stored: Stored) -> None:
    wanted = stored[0][2]
    for name in (wanted.trial.key, wanted.trial.key[:8]):
        [found] = select(stored[0], Choice(trials=(name,)), stored[1])
        assert (found.trial.key, found.epoch) == (wanted.trial.key, 2)
    assert wanted.epoch == 1
    assert select(stored[0], Choice(trials=(wanted.name,)), stored[1]) == [wanted], "its name says the epoch"
    with pytest.raises(ExportError, match="--trial abc: no checkpoint of that; valid are a trial's key"):
        chosen(stored, trials=("abc",))


def test_the_best_are_looked_for_in_every_epoch(stored: Stored) -> None:
    order = [(one.trial.dataset, one.trial.method, one.trial.seed, one.epoch) for one in stored[0]]
    assert chosen(stored, best="micro_addition_exact") == [order[1]], "of the first trial, its second epoch"
    assert chosen(stored, best="micro_addition_exact", top=3) == [order[1], order[3], order[5]]
    assert chosen(stored, best="micro_addition_exact", epochs=("1",)) == [order[0]]
    lower = stored[1].set_column(
        stored[1].column_names.index("higher_is_better"), "higher_is_better", pa.array([False] * stored[1].num_rows)
    )
    assert chosen((stored[0], lower), best="micro_addition_exact") == [order[-2]]


def test_a_checkpoint_without_a_score_is_never_the_best(stored: Stored) -> None:
    values = [None if row["epoch"] == 2 else row["value"] for row in stored[1].to_pylist()]
    values[0] = float("nan")
    scores = stored[1].set_column(stored[1].column_names.index("value"), "value", pa.array(values, pa.float64()))
    assert {epoch for *_, epoch in chosen((stored[0], scores), best="micro_addition_exact", top=99)} == {1}
    with pytest.raises(ExportError, match="none of the 8 selected checkpoints was scored on it"):
        chosen((stored[0], scores), best="micro_addition_exact", epochs=("2",))


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (
            {},
            "nothing selected: narrow an axis, or take all with --models every. There are 16 checkpoints of 8 trials: ",
        ),
        ({}, "models tiny; datasets addition, capitals; methods full, lora; sizes 32; seeds 0, 7; epochs 1, 2"),
        ({"models": ("gpt",)}, "--models gpt: not among these checkpoints, which have tiny"),
        ({"epochs": ("3",)}, "--epochs 3: not among these checkpoints, which have 1, 2"),
        ({"epochs": ("last", "x")}, "--epochs x: not among these"),
        ({"best": "mmlu"}, "--best mmlu: no such task in the table scores, which has micro_addition_exact, micro_"),
        ({"best": "micro_addition_exact", "top": 0}, "--top 0: a number from 1 on"),
        ({"models": ("tiny",), "top": 2}, "--top 2: a number from 1 on, with --best TASK"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(stored: Stored, choice: Content, said: str) -> None:
    with pytest.raises(ExportError) as raised:
        chosen(stored, **choice)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_axes_that_never_meet_are_said_so(content: Content) -> None:
    content["grid"] = [
        {"name": "a", "datasets": ["capitals"], "methods": ["full"], "sizes": [32], "epochs": [1]},
        {"name": "b", "datasets": ["addition"], "methods": ["lora"], "sizes": [32], "epochs": [1]},
    ]
    sweep = parse_sweep(content, "sweep")
    stored = stored_checkpoints(sweep, make_storage(sweep))
    with pytest.raises(ExportError, match="nothing selected: no checkpoint is all of what was asked for"):
        select(stored, Choice(datasets=("capitals",), methods=("lora",)), TABLES["scores"].empty_table())


def test_an_empty_storage_is_said_so(content: Content, tmp_path: Path) -> None:
    stored = stored_checkpoints(parse_sweep(content, "sweep"), open_storage(str(tmp_path)))
    with pytest.raises(ExportError, match="no checkpoint of this sweep in its storage"):
        select(stored, Choice(models=("every",)), TABLES["scores"].empty_table())


def test_names_are_valid_on_the_hub_and_differ(content: Content) -> None:
    names = pytest.importorskip("huggingface_hub.utils").validate_repo_id
    content["name"] = "a--b..c-" + "x" * 80
    content["models"][0]["name"] = "m.-" + "y" * 90
    content["datasets"][0]["name"] = "d.git"
    content["grid"][0]["seeds"] = [0, 1]
    sweep = parse_sweep(content, "sweep")
    made = [checkpoint_name(sweep.name, trial, epoch) for trial in expand(sweep)[0] for epoch in (1, 2, 1000)]
    assert len(set(made)) == len(made) == 24
    for name in made:
        names(f"org/{name}")
        assert len(name) <= LONGEST
