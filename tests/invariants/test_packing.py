"""Packed rows train to the same numbers as padded ones, where a model can be packed; where it cannot, it is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OlmoConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
)

from raysft.corpus.batching import cut, pack_rows, pad_rows
from raysft.models.load import Base
from raysft.models.methods import apply_method, packs, prepare
from raysft.models.packing import pack_attention, why_not_packed
from raysft.spec.sweep import MethodSpec
from raysft.training.loop import EpochStats, Hooks, Job, train
from raysft.training.loss import summed_loss
from raysft.training.parallel import DataParallel
from tests.invariants.tiny_models import VOCABULARY, optimisation, random_rows, tiny_base

pytestmark = pytest.mark.invariants

CPU = torch.device("cpu")
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GATED = {**COMMON, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
LEARNED: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
PACKABLE = {
    "llama": LlamaConfig(**GATED),
    "qwen2": Qwen2Config(**GATED),
    "olmo": OlmoConfig(**GATED),
    "phi3": Phi3Config(**GATED),
    "mistral, window of 4": MistralConfig(**GATED, sliding_window=4),
    "gpt2, learned positions": GPT2Config(**LEARNED, attn_pdrop=0.0),
}
REFUSED = {
    "convolutions": (Lfm2Config(**GATED, layer_types=["conv", "full_attention", "conv"]), "neighbours"),
    "recurrent states": (MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2), "attention is|neigh"),
    "dropout inside attention": (GPT2Config(**LEARNED), "packed attention has no dropout"),
    "ALiBi": (BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4), "attention is|does not take"),
}
METHODS = {
    "full": MethodSpec(name="full", kind="full", neftune_alpha=5),
    "lora": MethodSpec(name="lora", kind="lora", rank=4, alpha=8, dropout=0.1),
}


def _model(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", PACKABLE)
def test_packed_rows_have_the_loss_and_gradients_of_padded_ones(name: str) -> None:
    model = _model(PACKABLE[name])
    assert why_not_packed(model) is None
    rows = random_rows(7)

    def measured(batch: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        loss = summed_loss(model, batch)
        loss.backward()
        return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]

    padded = measured(pad_rows(rows, 0))
    pack_attention(model)
    packed = measured(pack_rows(rows))
    still_padded = measured(pad_rows(rows, 0))
    for loss, gradients in (packed, still_padded):
        torch.testing.assert_close(loss, padded[0], rtol=1e-5, atol=0)
        for mine, theirs in zip(gradients, padded[1], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_leak_is_refused_with_the_reason(name: str) -> None:
    config, reason = REFUSED[name]
    model = _model(config)
    base = Base(name, model, None, {})
    implementation = model.config._attn_implementation
    with pytest.raises(ValueError, match=f"training.packing: on, but .*({reason})"):
        packs(base, "on", "float32", CPU)
    assert model.config._attn_implementation == implementation
    assert not packs(base, "auto", "bfloat16", torch.device("cuda"))
    assert not packs(base, "auto", "float32", CPU)
    assert not model.training


@pytest.mark.parametrize(
    ("wanted", "dtype", "device", "compiled", "packed"),
    [
        ("auto", "float32", "cpu", False, True),
        ("auto", "bfloat16", "cpu", True, False),
        ("auto", "bfloat16", "cuda", True, True),
        ("auto", "float32", "cuda", False, False),
        ("auto", "float32", "mps", False, False),
        ("off", "bfloat16", "cuda", False, False),
        ("on", "float32", "cuda", True, True),
    ],
)
def test_auto_packs_where_it_pays(wanted: Any, dtype: str, device: str, compiled: bool, packed: bool) -> None:
    assert packs(tiny_base("llama"), wanted, dtype, torch.device(device), compiled) == packed


def test_soft_caps_are_refused() -> None:
    with pytest.raises(ValueError, match="its attention is 'eager', only sdpa has a packed form; use auto or off"):
        packs(tiny_base("gemma2"), "on", "float32", CPU)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", METHODS)
def test_a_packed_training_is_the_padded_one(kind: str, checkpointing: bool) -> None:
    """Noise and dropout included: they belong to a row and its positions, wherever they lie."""

    def trained(packed: bool) -> tuple[list[EpochStats], dict[str, torch.Tensor]]:
        tuned = apply_method(tiny_base("llama"), METHODS[kind], 0)
        assert packs(tuned.base, "on", "float32", CPU)  # with noise on the model, as a trial asks
        prepare(tuned, checkpointing, compiled=False, packed=packed)
        job = Job(random_rows(20), optimisation(), 0, 2, 0, 64, CPU)
        history: list[EpochStats] = []
        engine = DataParallel(tuned.model, tuned.trainable(), job.settings)
        assert train(engine, replace(job, noise=tuned.noise, packed=packed), Hooks(epoch_ended=history.append))
        weights = {name: parameter.detach().clone() for name, parameter in tuned.trainable()}
        tuned.detach()
        assert tuned.base.model.config._attn_implementation == "sdpa"
        return history, weights

    (padded, theirs), (packed, ours) = trained(False), trained(True)
    for mine, other in zip(packed, padded, strict=True):
        assert mine.loss == pytest.approx(other.loss, rel=1e-5)
        assert mine.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=2e-5)


def test_packs_hold_as_many_tokens_as_the_budget_allows() -> None:
    assert cut([6, 5, 3, 2, 2], 8) == [[0], [1], [2, 3], [4]]
    assert cut([6, 5, 3, 2, 2], 8, packed=True) == [[0], [1, 2], [3, 4]]
    assert cut([9, 1], 8) == cut([9, 1], 8, packed=True) == [[0], [1]]
    assert cut([], 8) == []
