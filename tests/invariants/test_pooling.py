"""Pooled hidden states beside one plain forward pass for each text, over architectures of many kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raysft.corpus.tokenize import TokenisedRow
from raysft.probes import pooling
from raysft.probes.pooling import pooled_layers
from raysft.spec.probes import Pooling
from tests.invariants.tiny_models import VOCABULARY, random_rows

pytestmark = pytest.mark.invariants

_POOLINGS: tuple[Pooling, ...] = ("mean", "last_token", "first_response_token")

_SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 48},
    "mistral": {"num_key_value_heads": 2, "intermediate_size": 48, "sliding_window": 4},
    "gemma2": {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8, "sliding_window": 4},
    "qwen2": {"num_key_value_heads": 2, "intermediate_size": 48},
    "olmo2": {"num_key_value_heads": 2, "intermediate_size": 48},
    "gpt2": {"n_positions": 64},
    "gpt_neox": {"intermediate_size": 48},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi3": {"num_key_value_heads": 2, "intermediate_size": 48},
}


def tiny(family: str) -> Any:
    """A random model of three layers."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape, **_SHAPES[family])).eval()


@torch.inference_mode()
def alone(model: Any, row: TokenisedRow, how: Pooling) -> np.ndarray:
    """Vectors (layers + 1, width) of one row from a pass of its own, pooled in fp64."""
    ids = torch.from_numpy(np.asarray(row.ids, np.int64))[None]
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, use_cache=False)
    states = torch.stack(output.hidden_states)[:, 0].double()
    place = {"last_token": len(row.ids) - 1, "first_response_token": row.spans[0][0]}
    chosen = states.mean(dim=1) if how == "mean" else states[:, place[how]]
    found: np.ndarray = chosen.numpy()
    return found


@pytest.mark.parametrize("family", list(_SHAPES))
def test_batches_with_padding_give_what_each_text_gives_alone(family: str) -> None:
    """Equal in every layer and pooling, whatever the batches; and hooks are gone afterwards."""
    model, rows = tiny(family), random_rows(9)
    alone(model, rows[0], "mean")  # transformers leaves hooks of its own
    before = _hooks(model)
    for how in _POOLINGS:
        expected = np.stack([alone(model, row, how) for row in rows])
        assert expected.shape == (9, 4, 32)
        for token_budget in (1, 40, 1000):
            found = pooled_layers(model, rows, 0, token_budget, how)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6)
    assert _hooks(model) == before


def test_layers_that_cannot_be_told_apart_are_asked_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder whose layers are not found has all its states held at once, and the same vectors."""
    model, rows = tiny("llama"), random_rows(5)
    expected = pooled_layers(model, rows, 0, 100)
    monkeypatch.setattr(pooling, "_layers", lambda _: None)
    np.testing.assert_allclose(pooled_layers(model, rows, 0, 100), expected, rtol=1e-5, atol=1e-6)


def _hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
