"""Blocks of a grid: full factorials over the axes of a sweep."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raysft.spec.recipe import Frozen, Name, found_twice

Schedule = Literal["cosine", "constant"]


class Block(Frozen):
    """A full factorial of its axes; a sweep's grid is the union of its blocks. An axis left out takes every name."""

    name: Name = "grid"
    models: tuple[Name, ...] | None = Field(None, min_length=1)
    datasets: tuple[Name, ...] | None = Field(None, min_length=1)
    methods: tuple[Name, ...] | None = Field(None, min_length=1)
    sizes: tuple[Annotated[int, Field(ge=1)] | Literal["all"], ...] = Field(("all",), min_length=1)
    schedules: tuple[Schedule, ...] = Field(("cosine",), min_length=1)
    epochs: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(None, min_length=1)
    measure: Literal["last", "every"] | tuple[Annotated[int, Field(ge=1)], ...] = "last"

    @field_validator("models", "datasets", "methods", "sizes", "schedules", "epochs", "seeds", "learning_rates")
    @classmethod
    def _distinct(cls, axis: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if twice := found_twice(axis or ()):
            raise ValueError(f"an axis holds each value once, found twice: {twice}")
        return axis

    @model_validator(mode="after")
    def _measured_epochs_exist(self) -> Block:
        if isinstance(self.measure, tuple):
            first = min(self.epochs)
            late = [epoch for epoch in self.measure if epoch > first]
            if late:
                raise ValueError(f"measure: epoch {late[0]} is never reached by epochs: {list(self.epochs)}")
        return self

    def count(self, models: int, datasets: int, methods: int) -> tuple[int, int]:
        """(trials, checkpoints) of the whole factorial, counted and not made; an axis left out takes so many names."""
        pairs = len(self.models or range(models)) * len(self.datasets or range(datasets))
        pairs *= len(self.methods or range(methods)) * len(self.sizes) * len(self.schedules) * len(self.seeds)
        pairs *= len(self.learning_rates or (None,))
        measured = {"every": sum(self.epochs), "last": len(self.epochs)}
        of_each = measured[self.measure] if isinstance(self.measure, str) else len(self.measure) * len(self.epochs)
        return pairs * len(self.epochs), pairs * of_each
