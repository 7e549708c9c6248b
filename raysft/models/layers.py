"""Which layer and which kind of module a parameter belongs to, from its name, whatever the family and its wrappers.

A fused projection is taken for what it holds: rows of `qkv_proj` are those of `q_proj`, `k_proj` and `v_proj`. The
table of names is `raysft/models/name_rules.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysft.models.name_rules import (
    BUFFER,
    IN_A_LAYER,
    OF_FAMILY,
    OUTSIDE,
    PREFIXES,
    QKV,
    RENAMED,
    STACK,
    STORED_TRANSPOSED,
    WRAPPERS,
    Rule,
)
from raysft.spec.shape import depth_of

_SUFFIXES = ("weight", "bias")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter sits: layer index (None outside the stack), kind of module, depth = layer / (layers - 1)."""

    layer: int | None
    module: str
    depth: float | None


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a configuration says of how weights are stored: heads and their width (0: unknown), and the family."""

    family: str = ""
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0

    @property
    def transposed(self) -> bool:
        """Whether linear layers store (inputs, outputs)."""
        return self.family in STORED_TRANSPOSED


@dataclass(frozen=True)
class Part:
    """A tensor under its canonical name, or the rows of a fused one: `outputs` are their indices, None for all."""

    name: str
    outputs: npt.NDArray[np.int64] | None = None


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture in the content of a config.json, or of a configuration's `to_dict`."""
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else config
    heads = _first(text, "num_attention_heads", "n_head", "n_heads", "num_heads")
    width = _first(text, "hidden_size", "n_embd", "d_model")
    kv_heads = _first(text, "num_key_value_heads", "n_kv_heads") or heads
    if text.get("new_decoder_architecture"):
        kv_heads = _first(text, "num_kv_heads") or heads
    elif text.get("multi_query"):
        kv_heads = 1
    head_dim = _first(text, "head_dim") or (width // heads if heads else 0)
    return Architecture(str(text.get("model_type", "")), heads, kv_heads, head_dim)


def canonical_name(name: str) -> str:
    """The name without prefixes and wrappers, the stack called `layers`: `layers.3.self_attn.q_proj.weight`."""
    name = WRAPPERS.sub("", name)
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    for theirs, ours in RENAMED.items():
        name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
    stacked = STACK.fullmatch(name)
    return f"layers.{stacked.group(1)}.{stacked.group(2)}" if stacked else name


def is_buffer(name: str) -> bool:
    """Whether a tensor of this name is stored but never trained: a mask, or rotary frequencies."""
    return BUFFER.fullmatch(name) is not None


def layer_index(name: str) -> int | None:
    """Index of the transformer layer in a parameter's or module's name; None outside the stack."""
    stacked = STACK.fullmatch(canonical_name(name))
    return int(stacked.group(1)) if stacked else None


def layer_count(names: Iterable[str]) -> int:
    """Number of transformer layers among parameter names."""
    return 1 + max((index for name in names if (index := layer_index(name)) is not None), default=-1)


def place_of(name: str, layers: int, family: str = "") -> Place:
    """Place of the parameter `name` in a stack of `layers`; `family` is the configuration's model_type."""
    layer, path, _ = _path_of(canonical_name(name))
    rule = _rule_of(layer, path, family)
    kind = rule.kind if rule is not None else path.rsplit(".", 1)[-1]
    return Place(layer, kind, None if layer is None else depth_of(layer, layers))


def parts_of(name: str, outputs: int, architecture: Architecture) -> list[Part]:
    """The tensor `name`, of so many outputs, under its canonical name; a fused one as what it holds.

    One whose outputs are not those that the configuration's heads make, or has no configuration, stays whole.
    """
    canonical = canonical_name(name)
    layer, path, suffix = _path_of(canonical)
    rule = _rule_of(layer, path, architecture.family)
    owners = _owners(rule, outputs, architecture) if rule is not None and rule.parts and suffix else None
    if rule is None or owners is None:
        return [Part(canonical)]
    parent, _, last = canonical.removesuffix(f".{suffix}").rpartition(".")
    assert last
    return [Part(f"{parent}.{part}.{suffix}", np.flatnonzero(owners == index)) for index, part in enumerate(rule.parts)]


def module_of(name: str) -> str:
    """The path of the module that a canonical name's parameter belongs to."""
    head, _, last = name.rpartition(".")
    return head if last in _SUFFIXES else name


def _path_of(canonical: str) -> tuple[int | None, str, str]:
    """(layer, path of the module inside it or in the model, `weight` or `bias`, or nothing for another parameter)."""
    stacked = STACK.fullmatch(canonical)
    layer, inside = (int(stacked.group(1)), stacked.group(2)) if stacked else (None, canonical)
    path = module_of(inside)
    return layer, path, inside[len(path) + 1 :]


def _rule_of(layer: int | None, path: str, family: str) -> Rule | None:
    rules = OUTSIDE if layer is None else (*OF_FAMILY.get(family, ()), *IN_A_LAYER)
    return next((rule for rule in rules if re.fullmatch(rule.pattern, path)), None)


def _owners(rule: Rule, outputs: int, architecture: Architecture) -> npt.NDArray[np.int64] | None:
    """For each output of a fused projection the index of its part; None if the sizes do not fit."""
    if rule.parts != QKV:
        whole, rest = divmod(outputs, len(rule.parts))
        return None if rest else np.repeat(np.arange(len(rule.parts)), whole)
    heads, keys, width = architecture.heads, architecture.kv_heads, architecture.head_dim
    if not heads or heads % keys or outputs != (heads + 2 * keys) * width:
        return None
    if rule.layout == "blocks":
        return np.repeat(np.arange(3), [heads * width, keys * width, keys * width])
    return np.tile(np.repeat(np.arange(3), [heads // keys * width, width, width]), keys)


def _first(config: Mapping[str, Any], *names: str) -> int:
    """The first of the fields that is a whole number; 0 if none is."""
    return next((value for name in names if type(value := config.get(name)) is int and value > 0), 0)
