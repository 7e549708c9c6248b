"""Exports of real trials, loaded by `transformers`, peft and `datasets` as they are: the storage's own numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import get_dataset_config_names, load_dataset
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from raysft.export.run import Options, export, selected
from raysft.export.selection import Choice
from raysft.models.methods import apply_method
from raysft.reduce import reduce_sweep
from raysft.session import Session
from raysft.spec.grid import expand
from raysft.spec.plan import make_plan
from raysft.spec.sweep import Sweep, parse_sweep
from raysft.store.checkpoints import local_folder
from raysft.store.layout import checkpoint_folder, open_storage
from raysft.trial import run_unit
from tests.conftest import SMALL

pytestmark = pytest.mark.invariants

METHODS = [
    {"name": "full", "kind": "full"},
    {"name": "middle", "kind": "full", "depth": [0.3, 0.7]},
    {"name": "lora", "kind": "lora", "rank": 4, "alpha": 8},
    {"name": "rslora", "kind": "lora", "rank": 4, "alpha": 8, "rslora": True, "depth": [0.5, 1.0]},
    {"name": "dora", "kind": "lora", "rank": 4, "alpha": 8, "dora": True},
]
ADAPTERS = [method["name"] for method in METHODS if method["kind"] == "lora"]


@dataclass(frozen=True)
class Released:
    """Exports of a sweep that was run, by method (and `base` and `tables`), and the logits of its checkpoints."""

    out: Path
    folders: dict[str, Path]
    logits: dict[str, torch.Tensor]
    ids: torch.Tensor


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    """One trial of each method, trained for an epoch, exported once."""
    root = tmp_path_factory.mktemp("released")
    sweep = _sweep(root)
    storage, session = open_storage(sweep.storage), Session(sweep, torch.device("cpu"))
    plan = make_plan(sweep, storage)
    for unit in plan.missing_units():
        assert not run_unit(session, unit, plan.missing_works(unit)).failures
    reduce_sweep(sweep, storage)
    with selected(sweep, storage, Choice(models=("every",))) as selection:
        outcomes = list(export(selection, root / "release", Options()))
    assert [outcome.state for outcome in outcomes] == ["written"] * (len(METHODS) + 2)
    ids = torch.arange(3, 43).reshape(2, 20)
    logits = {trial.method: _stored_logits(session, trial, ids) for trial in expand(sweep)[0]}
    return Released(root / "release", _by_method(root / "release"), logits, ids)


def _sweep(root: Path) -> Sweep:
    content: dict[str, Any] = {**SMALL, "storage": str(root / "storage"), "datasets": SMALL["datasets"][:1]}
    content["methods"] = [{**method, "override": {"learning_rate": 1e-2}} for method in METHODS]
    content["grid"] = [{"sizes": [32], "epochs": [1]}]
    content["evaluation"] = {"tasks": ["micro_capitals_choice"], "limit": 8}
    content["probes"] = {"perplexity": None, "intrinsic_dimension": None, "log_likelihood": None}
    return parse_sweep(content, "sweep")


def _by_method(out: Path) -> dict[str, Path]:
    names = [method["name"] for method in METHODS]
    found = {name: next(out.glob(f"small-tiny-capitals-{name}-*")) for name in names}
    return found | {"base": next(out.glob("*-base-*")), "tables": next(out.glob("*-tables"))}


def _stored_logits(session: Session, trial: Any, ids: torch.Tensor) -> torch.Tensor:
    """Of a checkpoint of the storage, loaded as a sweep loads it."""
    folder = local_folder(session.storage, checkpoint_folder(trial.key, 1))
    tuned = apply_method(session.base(trial.model), session.sweep.method(trial.method), trial.seed)
    try:
        tuned.load(folder)
        return _logits(tuned.model.eval(), ids)
    finally:
        tuned.detach()


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids).logits
    return logits


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("method", ["full", "middle"])
def test_transformers_loads_a_full_checkpoint(released: Released, method: str) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(released.folders[method])
    assert torch.equal(_logits(loaded, released.ids), released.logits[method])
    base = AutoModelForCausalLM.from_pretrained(released.folders["base"])
    assert not torch.equal(_logits(base, released.ids), released.logits[method]), "training changed it"


@pytest.mark.parametrize("method", ADAPTERS)
def test_peft_loads_an_adapter_on_the_exported_base(
    released: Released, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = AutoModelForCausalLM.from_pretrained(released.folders["base"])
    by_hand = PeftModel.from_pretrained(base, released.folders[method]).eval()
    assert torch.equal(_logits(by_hand, released.ids), released.logits[method])
    monkeypatch.chdir(released.out)
    name = released.folders[method].name
    # What transformers (5.23) loads by itself has no magnitudes of DoRA: its card says so.
    loaders = [AutoPeftModelForCausalLM] if method == "dora" else [AutoPeftModelForCausalLM, AutoModelForCausalLM]
    assert ("leaves the magnitudes" in (released.folders[method] / "README.md").read_text()) == (len(loaders) == 1)
    for loader in loaders:
        alone = loader.from_pretrained(name).eval()
        assert torch.equal(_logits(alone, released.ids), released.logits[method])


def test_adapters_are_merged_one_after_the_other(released: Released) -> None:
    for method in ADAPTERS:
        base = AutoModelForCausalLM.from_pretrained(released.folders["base"])
        merged = PeftModel.from_pretrained(base, released.folders[method]).merge_and_unload()
        torch.testing.assert_close(_logits(merged, released.ids), released.logits[method], atol=1e-4, rtol=1e-4)


def test_the_code_of_a_card_runs(released: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(released.out)
    for method in ("full", "lora"):
        card = (released.folders[method] / "README.md").read_text(encoding="utf-8")
        code = card.partition("```python\n")[2].partition("\n```")[0].replace("max_new_tokens=200", "max_new_tokens=3")
        said: list[str] = []
        exec(code, {"print": said.append})  # it is what users paste
        assert len(said) == 1


def test_every_export_has_the_tokenizer_of_its_base(released: Released) -> None:
    own = AutoTokenizer.from_pretrained(released.folders["base"])
    for method in METHODS:
        exported = AutoTokenizer.from_pretrained(released.folders[method["name"]])
        assert exported("the capital of balore is tumi.") == own("the capital of balore is tumi.")


def test_datasets_loads_every_table_by_name(
    released: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    folder = str(released.folders["tables"])
    names = get_dataset_config_names(folder)
    assert {"trials", "training", "scores", "samples", "weight_change", "costs"} <= set(names)
    for name in names:
        assert load_dataset(folder, name, split="train", cache_dir=str(tmp_path)).num_rows > 0
    scores = load_dataset(folder, "scores", split="train", cache_dir=str(tmp_path))
    assert set(scores["method"]) == {None, *(method["name"] for method in METHODS)}


def test_versions_of_the_training_are_in_the_card(released: Released) -> None:
    card = (released.folders["full"] / "README.md").read_text(encoding="utf-8")
    assert f"| `torch` | `{torch.__version__}` |" in card
    record = json.loads((released.folders["full"] / "raysft.json").read_bytes())
    assert record["identity"]["epoch"] == 1
