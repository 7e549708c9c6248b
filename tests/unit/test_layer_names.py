"""Names of every family mean the same layers and modules; fused projections are split where the model splits them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raysft.models.layers import (
    Architecture,
    architecture_of,
    canonical_name,
    is_buffer,
    layer_count,
    layer_index,
    parts_of,
    place_of,
)
from raysft.probes.weights.rows import weights_in_memory

pytestmark = pytest.mark.unit

SIZES = {"vocab_size": 64, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = {**SIZES, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
GROUPED = {**WIDE, "num_key_value_heads": 2}
OLD = {**SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4}

FAMILIES: dict[str, dict[str, Any]] = {
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "llama": GROUPED,
    "mistral": GROUPED,
    "gemma2": {**GROUPED, "head_dim": 8},
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "phi3": GROUPED,
    "phi": GROUPED,
    "gpt2": OLD,
    "gpt_bigcode": OLD,
    "gptj": {**OLD, "rotary_dim": 4},
    "gpt_neox": WIDE,
    "bloom": {**SIZES, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": WIDE,
    "mpt": {**SIZES, "d_model": 32, "n_layers": 2, "n_heads": 4},
    "opt": {**WIDE, "ffn_dim": 48, "word_embed_proj_dim": 32},
}
GATED = ("olmo", "olmo2", "llama", "mistral", "gemma2", "qwen2", "qwen3", "phi3")
FUSED = ("phi3", "gpt2", "gpt_bigcode", "gpt_neox", "bloom", "falcon", "mpt")
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


def made(family: str, device: str = "cpu") -> Any:
    config = AutoConfig.for_model(family, **FAMILIES[family])
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):  # they start at zero
            torch.nn.init.normal_(parameter, std=0.02)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_same_modules_in_its_layers(family: str) -> None:
    model = made(family, "meta")
    architecture = architecture_of(model.config.to_dict())
    weights = weights_in_memory(dict(model.named_parameters()), architecture)
    assert layer_count(weights) == 2
    places = {name: place_of(name, 2, architecture.family) for name in weights}
    feed_forward = {"up_proj", "down_proj"} | ({"gate_proj"} if family in GATED else set())
    for layer in (0, 1):
        kinds = {place.module for place in places.values() if place.layer == layer}
        assert kinds - {"norm"} == ATTENTION | feed_forward
    outside = {place.module for place in places.values() if place.layer is None}
    assert {"embedding"} <= outside <= {"embedding", "norm", "output"}
    entries = sum(rows.shape[0] * rows.shape[1] for rows in weights.values())
    assert entries == sum(parameter.numel() for parameter in model.parameters()), "each entry once"


@pytest.mark.parametrize("family", FUSED)
def test_parts_of_a_fused_projection_are_those_that_attention_uses(family: str) -> None:
    model = made(family)
    plain = attended(model)
    assert torch.allclose(attended(scaled(family, v_proj=2.0)), 2 * plain, rtol=1e-4, atol=1e-6)
    assert torch.allclose(attended(scaled(family, q_proj=4.0, k_proj=0.25)), plain, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(attended(scaled(family, q_proj=4.0)), plain, rtol=1e-2)


def test_the_gate_is_the_part_whose_scale_does_not_only_scale() -> None:
    plain = attended(made("phi3"), "down_proj")
    assert torch.allclose(attended(scaled("phi3", up_proj=2.0), "down_proj"), 2 * plain, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(attended(scaled("phi3", gate_proj=2.0), "down_proj"), 2 * plain, rtol=1e-2, atol=1e-7)


def scaled(family: str, **factors: float) -> Any:
    """The model with parts of its first layer multiplied."""
    model = made(family)
    weights = weights_in_memory(dict(model.named_parameters()), architecture_of(model.config.to_dict()))
    for name, rows in weights.items():
        place = place_of(name, 2)
        if place.layer == 0 and place.module in factors:
            outputs = rows.layout.outputs
            assert outputs is not None
            matrix = rows.tensor.T if rows.layout.transposed else rows.tensor
            with torch.no_grad():
                matrix[torch.from_numpy(outputs)] *= factors[place.module]
    return model


def attended(model: Any, kind: str = "o_proj") -> torch.Tensor:
    """What comes into the module of that kind in the first layer."""
    seen: list[torch.Tensor] = []
    for name, module in model.named_modules():
        place = place_of(f"{name}.weight", 2)
        if place.layer == 0 and place.module == kind and hasattr(module, "weight"):
            module.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    with torch.no_grad():
        model(input_ids=torch.arange(3, 11)[None])
    return seen[0]


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("base_model.model.model.layers.3.self_attn.q_proj.base_layer.weight", "layers.3.self_attn.q_proj.weight"),
        ("module._orig_mod.model.layers.3._orig_mod.mlp.up_proj.weight", "layers.3.mlp.up_proj.weight"),
        ("_fsdp_wrapped_module.model.layers.3._checkpoint_wrapped_module.mlp.x.bias", "layers.3.mlp.x.bias"),
        ("model.language_model.layers.3.mlp.up_proj.weight", "layers.3.mlp.up_proj.weight"),
        ("language_model.model.layers.3.mlp.up_proj.weight", "layers.3.mlp.up_proj.weight"),
        ("gpt_neox.layers.11.attention.dense.bias", "layers.11.attention.dense.bias"),
        ("transformer.h.0.mlp.c_fc.weight", "layers.0.mlp.c_fc.weight"),
        ("model.transformer.blocks.7.ff_proj.weight", "layers.7.ff_proj.weight"),
        ("model.vision_tower.encoder.layers.0.mlp.fc1.weight", "vision_tower.encoder.layers.0.mlp.fc1.weight"),
        ("model.embed_tokens.weight", "embed_tokens.weight"),
        ("module.lm_head.weight", "lm_head.weight"),
    ],
)
def test_prefixes_and_wrappers_are_taken_off(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical
    found = place_of(name, 12).layer
    assert found == layer_index(canonical)
    assert (found is None) == (not canonical.startswith("layers."))


EIGHT = Architecture("any", heads=4, kv_heads=4, head_dim=8)
SHARED = Architecture("any", heads=4, kv_heads=2, head_dim=8)


@pytest.mark.parametrize(
    ("name", "outputs", "architecture", "kinds"),
    [
        ("model.layers.0.self_attn.W_pack.weight", 96, EIGHT, ["q_proj", "k_proj", "v_proj"]),  # Baichuan
        ("model.layers.0.attention.wqkv.weight", 64, SHARED, ["q_proj", "k_proj", "v_proj"]),  # InternLM 2
        ("model.layers.0.feed_forward.w1.weight", 48, SHARED, ["gate_proj"]),
        ("model.layers.0.feed_forward.w2.weight", 32, SHARED, ["down_proj"]),
        ("model.layers.0.feed_forward.w3.weight", 48, SHARED, ["up_proj"]),
        ("model.layers.0.attention.wo.weight", 32, SHARED, ["o_proj"]),
        ("transformer.h.0.attn.c_attn.weight", 96, Architecture("qwen", 4, 4, 8), ["q_proj", "k_proj", "v_proj"]),
        ("transformer.h.0.mlp.w1.weight", 48, Architecture("qwen", 4, 4, 8), ["up_proj"]),
        ("transformer.h.0.mlp.w2.weight", 48, Architecture("qwen", 4, 4, 8), ["gate_proj"]),
        ("model.transformer.blocks.0.att_proj.weight", 96, EIGHT, ["q_proj", "k_proj", "v_proj"]),  # OLMo's own
        ("model.transformer.blocks.0.ff_proj.weight", 96, EIGHT, ["up_proj", "gate_proj"]),
        ("model.transformer.blocks.0.ff_out.weight", 32, EIGHT, ["down_proj"]),
        ("model.transformer.ff_out.weight", 64, EIGHT, ["output"]),
        ("embed_out.weight", 64, EIGHT, ["output"]),
        ("model.layers.0.block_sparse_moe.experts.3.w1.weight", 48, EIGHT, ["gate_proj"]),
        ("model.layers.0.self_attn.q_norm.weight", 8, EIGHT, ["norm"]),
        ("model.layers.0.self_attn.qkv_proj.weight", 100, EIGHT, ["qkv_proj"]),  # no size that these heads make
        ("model.layers.0.self_attn.qkv_proj.weight", 96, Architecture(), ["qkv_proj"]),
    ],
)
def test_names_of_families_outside_transformers(
    name: str, outputs: int, architecture: Architecture, kinds: list[str]
) -> None:
    parts = parts_of(name, outputs, architecture)
    assert [place_of(part.name, 1, architecture.family).module for part in parts] == kinds
    if len(parts) > 1:
        rows = sorted(row for part in parts for row in (part.outputs if part.outputs is not None else ()))
        assert rows == list(range(outputs))


def test_masks_and_frequencies_are_no_parameters() -> None:
    assert is_buffer("h.0.attn.bias")
    assert is_buffer("gpt_neox.layers.0.attention.masked_bias")
    assert is_buffer("model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not is_buffer("transformer.h.0.attn.c_attn.bias")
