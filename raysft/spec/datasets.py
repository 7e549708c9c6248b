"""Instruction datasets of a sweep: where their rows come from, and which of them count."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from raysft.spec.recipe import Frozen, Name, exactly_one, found_twice
from raysft.spec.training import Override


class Columns(Frozen):
    """Which columns of a file hold what; where `instruction` is not given, well-known layouts are recognised."""

    instruction: str | None = None
    input: str | None = None
    response: str | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> Columns:
        if (self.instruction is None) != (self.response is None) or (self.input and not self.instruction):
            raise ValueError("name both instruction and response, or neither")
        return self


class SkillRows(Frozen):
    """Rows of a generated skill (see raysft/corpus/skills.py)."""

    skill: str
    rows: int = Field(256, ge=1)
    seed: int = 0


class Mixture(Frozen):
    """Other datasets of the sweep, `size` rows of each; `without` leaves one of them out."""

    of: tuple[Name, ...] = Field(min_length=1)
    without: Name | None = None

    @field_validator("of")
    @classmethod
    def _distinct(cls, of: tuple[str, ...]) -> tuple[str, ...]:
        if twice := found_twice(of):
            raise ValueError(f"a mixture takes each dataset once, found twice: {twice}")
        return of

    @model_validator(mode="after")
    def _something_left(self) -> Mixture:
        if self.without is not None and self.without not in self.of:
            raise ValueError(f"without: {self.without!r} is not one of: {', '.join(self.of)}")
        if not self.members:
            raise ValueError("without leaves nothing")
        return self

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(name for name in self.of if name != self.without)


class DatasetSpec(Frozen):
    """An instruction dataset: a local file, a hub name with its revision, generated rows, or a mixture."""

    name: Name
    path: Path | None = None
    hub: str | None = Field(None, min_length=1)
    revision: str = "main"
    subset: str | None = None
    split: str = "train"
    generated: SkillRows | None = None
    mixture: Mixture | None = None
    columns: Columns = Columns()
    where: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="keep rows whose column is one of these"
    )
    incomplete_rows: Literal["refuse", "drop"] = Field(
        "refuse", description="rows without instruction or response, or whose turns are not in order"
    )
    turns: Literal["first", "all"] = Field("first", description="of a conversation: its first exchange, or the whole")
    rows: int | None = Field(None, ge=1, description="published number of rows, for planning without the network")
    override: Override = Override()

    @model_validator(mode="after")
    def _one_source(self) -> DatasetSpec:
        exactly_one(self, "path", "hub", "generated", "mixture")
        if self.mixture is not None and self.turns != "first":
            raise ValueError(f"turns belongs to the members of a mixture, found turns: {self.turns} with mixture")
        return self
