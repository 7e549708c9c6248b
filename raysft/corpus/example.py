"""One row of an instruction dataset."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """What the model is asked and what it should answer, before any template."""

    instruction: str
    response: str
