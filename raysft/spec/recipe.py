"""Recipe of a tiny base model that the project pretrains itself, and what every spec class is made of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raysft.spec.reading import WHOLE_NUMBERS

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


class Frozen(BaseModel):
    """Immutable, and refuses fields it does not know and numbers that no table can hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _whole_numbers_fit(self) -> Frozen:
        for name in type(self).model_fields:
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int) and number not in WHOLE_NUMBERS:
                    raise ValueError(f"{name}: a whole number has at most 64 bits, found one of {number.bit_length()}")
        return self


def exactly_one(entry: Frozen, *fields: str) -> None:
    """ValueError unless one of the fields is given, and no other."""
    given = [field for field in fields if getattr(entry, field) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(fields)}; found {', '.join(given) or 'none'}")


def found_twice(entries: Iterable[Any]) -> str:
    """What stands more than once among the entries, for a message; empty where all differ."""
    return ", ".join(sorted(str(entry) for entry, count in Counter(entries).items() if count > 1))


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
        shares = self.corpus.values()
        if self.corpus and (min(shares) < 0 or not 0 < sum(shares) < math.inf):
            raise ValueError(f"shares in corpus must be at least 0 and not all 0, found {self.corpus}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, found width {self.width} and heads {self.heads}")
        return self
