"""Which layer and which kind of module a parameter belongs to, from its name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from raysft.spec.shape import depth_of

# Decoder stacks of every family number their blocks under one of these.
_LAYER = re.compile(r"\b(?:layers|h|blocks|block)\.(\d+)\.")
_MODULES = (
    ("embedding", re.compile(r"embed|\bwte\b|\bwpe\b")),
    ("output", re.compile(r"\blm_head\b|\bembed_out\b")),
    ("norm", re.compile(r"norm|\bln_\w+")),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter sits: layer index (None outside the stack), kind of module, depth = layer / (layers - 1)."""

    layer: int | None
    module: str
    depth: float | None


def layer_index(name: str) -> int | None:
    """Index of the transformer layer in a parameter's or module's name; None outside the stack."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def layer_count(names: Iterable[str]) -> int:
    """Number of transformer layers among parameter names."""
    return 1 + max((index for name in names if (index := layer_index(name)) is not None), default=-1)


def place_of(name: str, layers: int) -> Place:
    """Place of the parameter `name` in a stack of `layers`."""
    layer = layer_index(name)
    depth = None if layer is None else depth_of(layer, layers)
    for module, pattern in _MODULES:
        if pattern.search(name):
            return Place(layer, module, depth)
    return Place(layer, name.rsplit(".", 2)[-2] if "." in name else name, depth)
