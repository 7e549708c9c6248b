"""Sizes of a decoder and what follows from them: its matrices by name, its parameters, the layers of a depth range.

Everything here is arithmetic on a configuration: no weights, no torch, no network. Names and conventions are those of
the `transformers` classes that load these families.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from raysft.spec.mistakes import describe, shown
from raysft.spec.recipe import Frozen, MicroRecipe

FamilyName = Literal[
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "olmo", "olmo2", "olmo3", "phi",
    "phi3", "smollm3",
]  # fmt: skip


@dataclass(frozen=True)
class Family:
    """What the layers of a family hold beside their matrices, and what its configuration means where it is silent.

    `norms`: normalisations of a layer. `norm_vectors`: weight vectors of each, 0 where it has none, 2 with a bias.
    `query_key_norm`: queries and keys are normalised, by head or over their whole width. `soft_caps`: scores and logits
    are capped by a tanh, which no fused attention does, so that the scores are in memory.
    """

    norms: int = 2
    norm_vectors: int = 1
    query_key_norm: Literal["head", "width"] | None = None
    biased: tuple[str, ...] = ()
    fused: bool = False
    gated: bool = True
    tied: bool = False
    soft_caps: bool = False
    kv_heads: int | None = None
    head_dim: int | None = None


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(kv_heads=8),
    "qwen2": Family(biased=("q_proj", "k_proj", "v_proj"), kv_heads=32),
    "qwen3": Family(query_key_norm="head", kv_heads=32, head_dim=128),
    "gemma": Family(tied=True, kv_heads=16, head_dim=256),
    "gemma2": Family(norms=4, tied=True, soft_caps=True, kv_heads=4, head_dim=256),
    "gemma3_text": Family(norms=4, query_key_norm="head", tied=True, kv_heads=4, head_dim=256),
    "granite": Family(),
    "olmo": Family(norm_vectors=0),
    "olmo2": Family(query_key_norm="width"),
    "olmo3": Family(query_key_norm="width"),
    "phi": Family(norms=1, norm_vectors=2, biased=("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"), gated=False),
    "phi3": Family(fused=True),
    "smollm3": Family(tied=True, kv_heads=4),
}


@dataclass(frozen=True)
class Matrix:
    """A linear module by its name in the model or layer, with the sizes of its input and output.

    `reads` names its input: modules that read the same one share it.
    """

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    reads: str = ""

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


class ModelShape(Frozen):
    """Published sizes of a base model, for planning without the network; never part of a key.

    `kv_heads`, `head_dim` and `tied` are the family's where they are left out. `parameters` replaces the count that
    follows from the other sizes, for a model that differs from its family in something else.
    """

    family: FamilyName
    layers: int = Field(ge=1, le=1000)
    hidden: int = Field(ge=1, description="width of the residual stream")
    intermediate: int = Field(ge=1, description="width of the feed-forward layer")
    heads: int = Field(ge=1, description="query heads")
    kv_heads: int | None = Field(None, ge=1, description="key and value heads")
    head_dim: int | None = Field(None, ge=1)
    vocabulary: int = Field(ge=1, description="rows of the embedding matrix")
    tied: bool | None = Field(None, description="input and output embedding are one matrix")
    attention_bias: bool = False
    mlp_bias: bool = False
    parameters: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _whole_heads(self) -> ModelShape:
        if self.head_dim is None and self.about.head_dim is None and self.hidden % self.heads:
            raise ValueError(f"hidden must be a multiple of heads, found hidden {self.hidden} and heads {self.heads}")
        return self

    @property
    def about(self) -> Family:
        return FAMILIES[self.family]

    @property
    def head_width(self) -> int:
        return self.head_dim or self.about.head_dim or self.hidden // self.heads

    @property
    def query_width(self) -> int:
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        return (self.kv_heads or self.about.kv_heads or self.heads) * self.head_width

    @property
    def is_tied(self) -> bool:
        return self.about.tied if self.tied is None else self.tied

    def layer_matrices(self) -> list[Matrix]:
        """Linear modules of one layer, by their names inside it, as `transformers` has them."""
        hidden, inner, query, key = self.hidden, self.intermediate, self.query_width, self.key_width
        if self.about.fused:
            attention = [("qkv_proj", hidden, query + 2 * key), ("o_proj", query, hidden)]
            feed = [("gate_up_proj", hidden, 2 * inner), ("down_proj", inner, hidden)]
        elif self.about.gated:
            attention = [("q_proj", hidden, query), ("k_proj", hidden, key), ("v_proj", hidden, key)]
            attention += [("o_proj", query, hidden)]
            feed = [("gate_proj", hidden, inner), ("up_proj", hidden, inner), ("down_proj", inner, hidden)]
        else:
            attention = [("q_proj", hidden, query), ("k_proj", hidden, key), ("v_proj", hidden, key)]
            attention += [("dense", query, hidden)]
            feed = [("fc1", hidden, inner), ("fc2", inner, hidden)]
        return [*self._matrices("self_attn", attention), *self._matrices("mlp", feed)]

    def _matrices(self, part: str, sizes: list[tuple[str, int, int]]) -> Iterator[Matrix]:
        """Modules of a part of the layer; its last one reads what the part made, the others what came into it."""
        option = self.attention_bias if part == "self_attn" else self.mlp_bias
        # With one norm a layer, attention and feed-forward read the same.
        came = "layer" if self.about.norms == 1 else part
        for name, inputs, outputs in sizes:
            reads = f"{part} result" if name == sizes[-1][0] else came
            yield Matrix(f"{part}.{name}", inputs, outputs, option or name in self.about.biased, reads)

    def output_matrix(self) -> Matrix:
        """The output layer; the same weights as the embedding where the two are tied."""
        return Matrix("lm_head", self.hidden, self.vocabulary, self.family == "phi")

    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        norms = self.about.norms * self.about.norm_vectors * self.hidden
        by_head = 2 * self.head_width
        norms += {None: 0, "head": by_head, "width": self.query_width + self.key_width}[self.about.query_key_norm]
        return norms + sum(matrix.parameters for matrix in self.layer_matrices())

    def parameter_count(self) -> int:
        """Parameters of the whole model, each once: exact for the families, unless `parameters` says another number."""
        if self.parameters is not None:
            return self.parameters
        embedding = self.vocabulary * self.hidden
        output = self.output_matrix()
        head = output.parameters - (embedding if self.is_tied else 0)
        return embedding + self.layers * self.layer_parameters() + self.about.norm_vectors * self.hidden + head


def recipe_shape(recipe: MicroRecipe) -> ModelShape:
    """Sizes of the base that a recipe pretrains (`raysft/models/micro.py`), if its tokenizer fills its vocabulary."""
    grouped = recipe.heads // 2 if recipe.heads % 2 == 0 else recipe.heads
    return ModelShape(
        family=recipe.family,
        layers=recipe.layers,
        hidden=recipe.width,
        intermediate=32 * round(recipe.width * 8 / 3 / 32),
        heads=recipe.heads,
        kv_heads=recipe.heads if recipe.family == "olmo2" else grouped,
        head_dim=recipe.width // recipe.heads,
        vocabulary=recipe.vocabulary,
        tied=True,
    )


def folder_shape(folder: Path) -> ModelShape | None:
    """Sizes in a local model's config.json; None if its family is not one of `FAMILIES`, or a size is missing.

    Raises ValueError for a file that is not a JSON object, or holds sizes that are none.
    """
    try:
        content: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(content, dict):
        raise ValueError("expected an object")
    text: Any = content.get("text_config") or content
    if not isinstance(text, dict):
        raise ValueError("text_config: expected an object")
    family = text.get("model_type")
    required = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    about = FAMILIES.get(family) if isinstance(family, str) else None
    if about is None or any(text.get(name) is None for name in required) or text.get("qk_layernorm"):
        return None
    layers, hidden, intermediate, heads, vocabulary = (_size(text, name) for name in required)
    # A null means "follow from the others", an absent field the default of the family's class.
    sizes = {
        "family": family,
        "layers": layers,
        "hidden": hidden,
        "intermediate": intermediate,
        "heads": heads,
        "kv_heads": text.get("num_key_value_heads", about.kv_heads) or heads,
        "head_dim": text.get("head_dim", about.head_dim) or hidden // heads,
        "vocabulary": vocabulary,
        "tied": text.get("tie_word_embeddings", content.get("tie_word_embeddings")),
        "attention_bias": bool(text.get("attention_bias")),
        "mlp_bias": bool(text.get("mlp_bias")),
    }
    try:
        return ModelShape.model_validate(sizes)
    except ValidationError as error:
        raise ValueError(describe(error, ModelShape)) from error


def _size(config: dict[str, Any], name: str) -> int:
    size = config[name]
    if type(size) is not int or size < 1:
        raise ValueError(f"{name}: expected a whole number above 0, found {shown(size, 80)}")
    return size


def depth_of(layer: int, layers: int) -> float:
    """layer / (layers - 1), 0 for the first and 1 for the last; 0 if there is one layer only."""
    return layer / (layers - 1) if layers > 1 else 0.0


def layers_within(depth: tuple[float, float] | None, layers: int) -> list[int]:
    """Layers whose depth lies in the closed range; all for None. ValueError if there is none."""
    low, high = depth if depth is not None else (0.0, 1.0)
    chosen = [layer for layer in range(layers) if low - 1e-9 <= depth_of(layer, layers) <= high + 1e-9]
    if not chosen:
        raise ValueError(f"depth [{low}, {high}] holds none of the model's {layers} layers")
    return chosen
