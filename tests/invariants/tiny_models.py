"""Random models of real architectures, small enough to train in a test, in fp32."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen3Config

from raysft.corpus.tokenize import TokenisedRow
from raysft.models.load import Base
from raysft.spec.grid import Optimisation

VOCABULARY = 97
FAMILIES = ("llama", "qwen3", "gemma2")


def tiny_base(family: str, seed: int = 0) -> Base:
    """A base model of two layers; Gemma 2 with its soft caps and sliding window."""
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    configs = {"llama": LlamaConfig, "qwen3": Qwen3Config, "gemma2": Gemma2Config}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(configs[family](**shape))
    original = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return Base(f"{family}-{seed}", model, None, original)


def random_rows(count: int, seed: int = 0) -> list[TokenisedRow]:
    """Rows of 4 to 20 random tokens, of which the last few are supervised, and in longer ones a few before."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(4, 21, (), generator=generator))
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        last = (int(torch.randint(1, length, (), generator=generator)), length + 2)
        rows.append(TokenisedRow((1, *ids, 2), ((1, 3), last) if last[0] > 4 else (last,)))
    return rows


def optimisation(**changes: Any) -> Optimisation:
    """Settings of a short run."""
    settings: dict[str, Any] = {
        "learning_rate": 1e-2,
        "batch_size": 8,
        "weight_decay": 0.01,
        "warmup_steps": 1,
        "max_length": 64,
        "max_grad_norm": 1.0,
        "schedule": "cosine",
        "dtype": "float32",
        "template": "paper",
    }
    return Optimisation(**{**settings, **changes})
