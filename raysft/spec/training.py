"""Optimisation settings: a sweep's own, and what a model, a dataset or a method overrides of them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from raysft.spec.recipe import Frozen


class Override(Frozen):
    """Optimisation settings that one model, dataset or method has of its own."""

    learning_rate: float | None = Field(None, gt=0)
    batch_size: int | None = Field(None, ge=1)
    weight_decay: float | None = Field(None, ge=0)
    warmup_steps: int | None = Field(None, ge=0)
    max_length: int | None = Field(None, ge=8)
    max_grad_norm: float | None = Field(None, gt=0)


class Training(Frozen):
    """Optimisation defaults; the overrides of model, dataset and method go before them, in this order of strength."""

    learning_rate: float = Field(1e-5, gt=0)
    batch_size: int = Field(32, ge=1, description="examples of a global batch")
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(
        0, ge=0, description="steps of linear warm-up; in steps, so that longer runs contain shorter ones"
    )
    max_length: int = Field(1024, ge=8, description="tokens; longer rows are cut at the end")
    max_grad_norm: float = Field(1.0, gt=0)
    dtype: Literal["float32", "bfloat16", "pure_bfloat16"] = Field(
        "float32",
        description="bfloat16 computes in it and keeps fp32 weights; pure_bfloat16 holds the base's weights in it too",
    )
    template: str = Field("paper", description="paper, alpaca, chat, or a text with {instruction} and {response}")
    chat_template: Path | None = Field(None, description="a Jinja file for template: chat, instead of each base's own")
    overlong_rows: Literal["refuse", "drop"] = Field(
        "refuse", description="rows that max_length leaves without a supervised token; the number dropped is recorded"
    )
    token_budget: int = Field(4096, ge=8, description="tokens of a micro-batch, padding counted; not part of any key")
    packing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="rows end to end instead of padded, attention within each; auto: where it pays and the "
        "model's numbers stay the same; not part of any key",
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations again in backward: less memory, a third more work; not part of any key"
    )
    compile: bool = Field(
        False, description="torch.compile each layer, a minute or more at the start; not part of any key"
    )


SPEED_ONLY = {"token_budget", "packing", "activation_checkpointing", "compile"}
"""Settings of training that change its speed and memory, and no numbers."""
