"""Grid and keys: what is a new trial, what is the same one, and what the paper's grid counts to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raysft.spec.grid import Trial, expand
from raysft.spec.plan import Plan, make_plan
from raysft.spec.sweep import SpecError, load_sweep, parse_sweep
from raysft.store.layout import open_storage

pytestmark = pytest.mark.unit

Content = dict[str, Any]
SWEEPS = Path(__file__).parents[2] / "sweeps"
SHAPE = {"family": "llama", "layers": 2, "hidden": 8, "intermediate": 8, "heads": 2, "vocabulary": 9}


def _trials(content: Content) -> list[Trial]:
    return expand(parse_sweep(content, "test"))[0]


def _keys(content: Content) -> set[str]:
    plan: Plan = make_plan(parse_sweep(content, "test"))
    return {work.key for work in plan.works()}


def test_the_papers_grid_has_1070_checkpoints() -> None:
    trials, blocks = expand(load_sweep(SWEEPS / "massive_sft.yaml"))
    assert sum(len(trial.measured) for trial in trials) == 1070
    assert [block.new_checkpoints for block in blocks] == [240, 240, 300, 270, 20]
    assert len(trials) == 341


def test_a_full_factorial_holds_every_combination_once(content: Content) -> None:
    content["grid"] = [{"sizes": [16, 32], "epochs": [1], "seeds": [0, 1], "learning_rates": [1e-3, 1e-4]}]
    trials = _trials(content)
    assert len(trials) == len({trial.key for trial in trials}) == 2 * 2 * 2 * 2 * 2


def test_a_constant_schedule_is_trained_once_for_all_lengths(content: Content) -> None:
    content["grid"] = [{"sizes": [32], "epochs": [1, 3], "schedules": ["constant"]}]
    for trial in _trials(content):
        assert (trial.epochs, trial.measured) == (3, (1, 3))


def test_cosine_schedules_of_different_lengths_are_different_trials(content: Content) -> None:
    content["grid"] = [{"sizes": [32], "epochs": [1, 3], "schedules": ["cosine"]}]
    assert len(_trials(content)) == 2 * 2 * 2


def test_a_longer_constant_run_keeps_the_keys_of_a_shorter_one(content: Content) -> None:
    content["grid"] = [{"sizes": [32], "epochs": [2], "schedules": ["constant"], "measure": "every"}]
    plan = make_plan(parse_sweep(content, "test"))
    content["grid"][0]["epochs"] = [3]
    longer = make_plan(parse_sweep(content, "test"))
    measured = {work.key for work in plan.works() if work.stage == "evaluate"}
    assert measured < {work.key for work in longer.works() if work.stage == "evaluate"}


def test_blocks_that_overlap_are_merged(content: Content) -> None:
    content["grid"].append({"name": "again", "sizes": [32], "epochs": [2], "measure": "last"})
    trials, blocks = expand(parse_sweep(content, "test"))
    assert len(trials) == 4
    assert blocks[1].new_checkpoints == 0
    assert trials[0].blocks == ("grid", "again")


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["models"][0].update(name="other"),
        lambda c: c["training"].update(token_budget=64),
        lambda c: c.update(resources={"workers": 2}),
        lambda c: c.update(resources={"memory_per_worker": 80}),
        lambda c: c["models"][0].update(shape=SHAPE),
        lambda c: c.update(name="renamed", storage="/elsewhere"),
        lambda c: c["evaluation"].update(batch_size=3),
        lambda c: c["probes"]["intrinsic_dimension"].update(batch_size=3),
    ],
)
def test_where_and_how_it_runs_is_not_in_the_keys(content: Content, change: Any) -> None:
    before = _keys(content)
    change(content)
    assert _keys(content) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["models"][0]["micro"].update(steps=9),
        lambda c: c["datasets"][0]["generated"].update(seed=1),
        lambda c: c["methods"][1].update(rank=2),
        lambda c: c["training"].update(weight_decay=0.1),
        lambda c: c["grid"][0].update(seeds=[1]),
        lambda c: c["training"].update(template="alpaca"),
    ],
)
def test_what_changes_the_numbers_is_in_the_keys(content: Content, change: Any) -> None:
    def trained(content: Content) -> set[str]:
        return {trial.key for trial in _trials(content)}

    before = trained(content)
    change(content)
    assert trained(content) != before


def test_adding_a_value_re_runs_nothing(content: Content) -> None:
    before = _keys(content)
    content["grid"][0]["seeds"] = [0, 1]
    content["evaluation"]["tasks"].append("micro_capitals_exact")
    content["datasets"].append({"name": "flags", "generated": {"skill": "flags", "rows": 32}})
    assert before < _keys(content)


def test_a_file_counts_by_content_not_by_name(content: Content, tmp_path: Path) -> None:
    row = '{"instruction": "a", "response": "b"}\n'
    keys = []
    for name, text in (("one.jsonl", row), ("two.jsonl", row), ("three.jsonl", row + row)):
        (tmp_path / name).write_text(text)
        content["datasets"] = [{"name": "mine", "path": str(tmp_path / name)}]
        content["grid"][0]["sizes"] = ["all"]
        keys.append({trial.key for trial in _trials(content)})
    assert keys[0] == keys[1] != keys[2]


def test_a_size_above_the_known_rows_is_refused(content: Content) -> None:
    content["grid"][0]["sizes"] = [65]
    with pytest.raises(SpecError, match=r"grid\.grid\.sizes: 65 rows asked of dataset capitals, which has 64"):
        _trials(content)


def test_a_missing_model_folder_is_refused(content: Content) -> None:
    content["models"] = [{"name": "mine", "path": "/no/such/folder"}]
    with pytest.raises(SpecError, match=r"models\.mine\.path: no folder /no/such/folder"):
        _trials(content)


def test_mixtures_leave_one_out(content: Content) -> None:
    content["datasets"].append({"name": "without", "mixture": {"of": ["capitals", "addition"], "without": "capitals"}})
    sweep = parse_sweep(content, "test")
    mixture = sweep.dataset("without").mixture
    assert mixture is not None
    assert mixture.members == ("addition",)


def test_bases_come_before_what_needs_them_and_stay_together(content: Content) -> None:
    second = {"name": "second", "micro": {"family": "qwen3", "corpus": {"addition": 1.0}, "steps": 8}}
    content["models"].append(second)
    units = make_plan(parse_sweep(content, "test")).units
    assert [unit.kind for unit in units[:2]] == ["pretrain", "pretrain"]
    assert [unit.model for unit in units[2:]] == ["tiny"] * 5 + ["second"] * 5


def test_the_plan_of_an_empty_storage_misses_everything(content: Content, tmp_path: Path) -> None:
    plan = make_plan(parse_sweep(content, "test"), open_storage(str(tmp_path / "nothing")))
    assert all(done == 0 for done, _ in plan.count_by_stage().values())
    assert not (tmp_path / "nothing").exists()


def test_geometry_of_a_mixture_is_of_the_texts_of_its_size(content: Content) -> None:
    """A mixture of another size begins with other texts, so that its base is embedded for each size; of a plain
    dataset the first texts are the same."""
    content["datasets"].append({"name": "both", "mixture": {"of": ["capitals", "addition"]}})
    content["probes"]["intrinsic_dimension"] = {"texts": 20, "neighbours": 4}
    content["grid"][0]["sizes"] = [24, 32]
    works = [
        work
        for work in make_plan(parse_sweep(content, "test")).geometry
        if work.stage == "embed" and work.subject.trial is None
    ]
    count = Counter(work.about for work in works)
    assert count == {"capitals": 1, "addition": 1, "both": 2}
    compared = {
        (work.about, work.before)
        for work in make_plan(parse_sweep(content, "test")).geometry
        if work.stage == "intrinsic_dimension"
    }
    assert len(compared) == 4


def test_more_neighbours_than_any_trial_has_texts_is_refused(content: Content) -> None:
    content["probes"]["intrinsic_dimension"] = {"texts": 200}
    said = r"100 neighbours take 102 texts, and no trial has as many: datasets.capitals at size 32 has 32"
    with pytest.raises(SpecError, match=said):
        make_plan(parse_sweep(content, "test"))
    content["grid"][0]["sizes"] = [32, 200]
    content["datasets"][0]["generated"]["rows"] = content["datasets"][1]["generated"]["rows"] = 200
    assert {work.subject.size for work in make_plan(parse_sweep(content, "test")).geometry} == {32, 200}
