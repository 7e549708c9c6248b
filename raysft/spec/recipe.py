"""Recipe of a tiny base model that the project pretrains itself, and the frozen model that every spec class is."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Frozen(BaseModel):
    """Immutable, and refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class MicroRecipe(Frozen):
    """How to pretrain a base model of about a million parameters; the whole of it is the model's identity.

    Exactly one of `corpus` (skill -> share of the generated statements) and `texts` (files of plain text, or jsonl with
    a `text` field) says what it reads.
    """

    family: Literal["llama", "qwen3", "gemma2", "olmo2"]
    corpus: dict[str, float] = Field(default_factory=dict)
    texts: tuple[str, ...] = ()
    layers: int = Field(4, ge=1, le=64)
    width: int = Field(128, ge=16, le=4096)
    heads: int = Field(4, ge=1, le=64)
    vocabulary: int = Field(1280, ge=300, le=65536)
    steps: int = Field(1400, ge=1)
    batch_size: int = Field(8, ge=1, description="sequences of a step")
    sequence_length: int = Field(32, ge=8)
    learning_rate: float = Field(3e-3, gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _one_source(self) -> MicroRecipe:
        if bool(self.corpus) == bool(self.texts):
            raise ValueError("give exactly one of corpus (skill: share) and texts (list of files)")
        if any(share < 0 for share in self.corpus.values()) or (self.corpus and sum(self.corpus.values()) <= 0):
            raise ValueError(f"shares in corpus must be at least 0 and not all 0, found {self.corpus}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, found width {self.width} and heads {self.heads}")
        return self
