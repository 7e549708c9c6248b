"""Tiny base models: each family loads like any model, the recipe alone decides the bytes, texts stand in for skills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raysft.models.micro import pretrain, read_documents
from raysft.spec.recipe import MicroRecipe

pytestmark = pytest.mark.invariants

FAMILIES = ("llama", "qwen3", "gemma2", "olmo2")


def recipe(**changes: Any) -> MicroRecipe:
    small = {"layers": 2, "width": 32, "heads": 2, "vocabulary": 400, "steps": 8, "batch_size": 2}
    source = {} if "texts" in changes else {"corpus": {"capitals": 1.0, "addition": 1.0}}
    return MicroRecipe(**{"family": "llama", **small, **source, **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_reloads_and_speaks_its_own_architecture(family: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = pretrain(recipe(family=family), tmp_path, progress=lambda step, steps, loss: seen.append((step, steps)))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.model_type == made.family == family
    assert model.dtype == torch.float32
    assert made.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert made.tokens == 8 * 2 * 32
    assert seen == [(step, 8) for step in range(1, 9)]


def test_the_tokenizer_adds_one_bos_and_no_eos(tmp_path: Path) -> None:
    pretrain(recipe(vocabulary=600), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    prompt = "###Question: what is 3 plus 4?\n###Answer:"
    ids = tokenizer(prompt)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids
    assert ids[1:] == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == prompt
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert len(tokenizer("\n###Answer:", add_special_tokens=False)["input_ids"]) <= 4


def test_the_same_recipe_gives_the_same_bytes_whatever_the_process_did_before(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.manual_seed(1)
        pretrain(recipe(), tmp_path / "first")
        assert torch.get_num_threads() == 2
        torch.manual_seed(2)
        state = torch.random.get_rng_state()
        pretrain(recipe(), tmp_path / "second")
        assert torch.equal(torch.random.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)
    pretrain(recipe(seed=1), tmp_path / "other")
    first, second, other = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second", "other")
    )
    assert first == second
    assert first != other
    assert (tmp_path / "first" / "tokenizer.json").read_text() == (tmp_path / "second" / "tokenizer.json").read_text()


def test_pretraining_lowers_the_loss(tmp_path: Path) -> None:
    losses: list[float] = []
    made = pretrain(recipe(steps=60), tmp_path, progress=lambda step, steps, loss: losses.append(loss))
    assert made.loss == pytest.approx(sum(losses[-6:]) / 6)
    assert made.loss < 0.7 * losses[0]


def test_texts_are_read_from_files(tmp_path: Path) -> None:
    plain, rows = tmp_path / "plain.txt", tmp_path / "rows.jsonl"
    plain.write_text("The first paragraph\nof two lines.\n\n\nThe second one.\n")
    rows.write_text(json.dumps({"text": "A row of its own."}) + "\n")
    paths = (str(plain), str(rows))
    documents = ["The first paragraph\nof two lines.", "The second one.", "A row of its own."]
    assert read_documents(paths) == documents
    made = pretrain(recipe(texts=paths), tmp_path / "made")
    assert made.loss > 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "\n\n", "no text to pretrain on in"),
        ("rows.jsonl", '{"text": "a"}\n{"body": "b"}\n', "rows.jsonl, line 2: expected an object with a text field"),
        ("table.csv", "a,b", "texts must be .txt or .jsonl files"),
    ],
)
def test_files_without_text_are_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        pretrain(recipe(texts=(str(path),)), tmp_path / "out")
