"""The YAML contract: every mistake is one line that names the field, what was found and what is valid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysft.spec.resources import Shape
from raysft.spec.sweep import SpecError, load_sweep, parse_sweep, resolved_yaml

pytestmark = pytest.mark.unit

Content = dict[str, Any]


def _set(path: str, value: Any) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        target: Any = content
        for parent in parents:
            target = target[parent]
        target[last] = value

    return change


BAD = {
    "unknown field": (_set("nam", "x"), ["nam", "unknown field", "storage"]),
    "unknown nested field": (_set("training.batchsize", 8), ["training.batchsize", "unknown field", "batch_size"]),
    "wrong type": (_set("training.learning_rate", "fast"), ["training.learning_rate", "number", "'fast'"]),
    "duplicated axis value": (_set("grid.0.epochs", [2, 2]), ["grid.0.epochs", "twice", "2"]),
    "empty axis": (_set("grid.0.seeds", []), ["grid.0.seeds", "at least 1"]),
    "empty grid": (_set("grid", []), ["grid", "at least 1"]),
    "unknown model": (_set("grid.0.models", ["huge"]), ["grid.grid.models", "'huge'", "tiny"]),
    "duplicated names": (_set("methods.1.name", "full"), ["methods", "twice", "full"]),
    "no model source": (_set("models.0", {"name": "tiny"}), ["models.0", "exactly one of path, hub, micro", "none"]),
    "rank of a full method": (_set("methods.0.rank", 4), ["methods.0", "rank", "kind: lora"]),
    "depth out of range": (_set("methods.0.depth", [0.9, 0.2]), ["methods.0.depth", "[0.9, 0.2]"]),
    "epoch never reached": (_set("grid.0.measure", [5]), ["epoch 5", "never reached"]),
    "one GPU and a half": (_set("resources", {"gpus_per_worker": 1.5}), ["resources", "whole number", "1.5"]),
    "rule of an unknown model": (
        _set("resources", {"rules": [{"models": ["huge"], "workers": 2}]}),
        ["resources.rules.0.models", "'huge'", "tiny"],
    ),
    "rules that make no sense together": (
        _set(
            "resources", {"strategy": "zero3", "rules": [{"offload": True}, {"methods": ["lora"], "strategy": "ddp"}]}
        ),
        ["resources.rules: tiny x lora", "offload belongs to", "ddp"],
    ),
    "neighbours above texts": (
        _set("probes.intrinsic_dimension.neighbours", 99),
        ["intrinsic_dimension", "99 and 32"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line(content: Content, name: str) -> None:
    change, expected = BAD[name]
    change(content)
    with pytest.raises(SpecError) as caught:
        parse_sweep(content, "sweep.yaml")
    message = str(caught.value)
    assert message.startswith("sweep.yaml: ")
    assert "\n" not in message
    for part in expected:
        assert part in message


def test_every_mistake_is_named(content: Content) -> None:
    content["training"]["batch_size"] = 0
    content["grid"][0]["epochs"] = [0]
    with pytest.raises(SpecError, match=r"training\.batch_size.*grid\.0\.epochs"):
        parse_sweep(content, "sweep.yaml")


@pytest.mark.parametrize("text", ["models: [", "- a\n- b\n", "", "\x00"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"sweep\.yaml: "):
        load_sweep(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        load_sweep(tmp_path / "none.yaml")


def test_resolved_yaml_holds_every_default_and_reads_back(content: Content) -> None:
    sweep = parse_sweep(content, "sweep.yaml")
    text = resolved_yaml(sweep)
    assert yaml.safe_load(text)["training"]["max_grad_norm"] == 1.0
    assert parse_sweep(yaml.safe_load(text), "resolved") == sweep


def test_paths_are_relative_to_the_yaml(content: Content, tmp_path: Path, write_sweep: Callable[..., Path]) -> None:
    content["datasets"].append({"name": "mine", "path": "rows.jsonl"})
    assert load_sweep(write_sweep(content)).dataset("mine").path == (tmp_path / "rows.jsonl").resolve()


def test_the_last_rule_that_names_a_trial_is_the_strongest(content: Content) -> None:
    content["resources"] = {
        "gpus_per_worker": 1,
        "labels": {"zone": "a"},
        "rules": [
            {"workers": 8, "strategy": "zero3"},
            {"methods": ["lora"], "workers": 1, "strategy": "ddp", "gpus_per_worker": 0.5},
            {"models": ["tiny"], "methods": ["lora"], "cpus_per_worker": 3, "labels": {}},
        ],
        "measuring": {"gpus": 0.25},
    }
    sweep = parse_sweep(content, "test")
    assert sweep.resources_of("tiny", "full").shape == Shape(8, 1, 1, (("zone", "a"),))
    assert sweep.resources_of("tiny", "lora").shape == Shape(1, 3, 0.5)
    assert sweep.resources.measuring_shape == Shape(1, 1, 0.25, (("zone", "a"),))
    assert not sweep.resources_of("tiny", "full").measures_in_place
    assert sweep.resources_of("tiny", "lora").measures_in_place
