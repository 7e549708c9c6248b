"""vLLM as what answers the benchmarks, in a process of its own for each checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from raysft.spec.recipe import Frozen

Backend = Literal["transformers", "vllm"]

# Of `vllm.LLM`, given by this package -> the field that decides it, where there is one.
_GIVEN = {
    "model": None,
    "tokenizer": None,
    "skip_tokenizer_init": None,
    "generation_config": None,
    "seed": None,
    "logprobs_mode": None,
    "dtype": "dtype",
    "max_model_len": "max_model_len",
    "tensor_parallel_size": "tensor_parallel",
    "gpu_memory_utilization": "gpu_memory_utilization",
}
# Of those that `options` may hold, what computes other numbers; the rest is speed and memory.
_CHANGING = ("quantization", "quantization_config", "kv_cache_dtype", "calculate_kv_scales", "hf_overrides")


class VllmSpec(Frozen):
    """How vLLM is started. `dtype` and options that change numbers are part of the key, all else is not."""

    python: str | None = Field(
        None, description="an interpreter that has vLLM, on every node; the one that runs this when left out"
    )
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    tensor_parallel: int = Field(1, ge=1, description="GPUs of a model, of those that the measuring process holds")
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="share of a GPU's memory; what is free, less a tenth, when left out"
    )
    max_model_len: int | None = Field(
        None, ge=1, description="most tokens of a request with its answer; the model's own window when left out"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="more arguments of vllm.LLM")

    @field_validator("python")
    @classmethod
    def _is_found_from_anywhere(cls, python: str | None) -> str | None:
        """Not made absolute, as other paths of a sweep are: a virtual environment's interpreter is a link."""
        if python is not None and not python:
            raise ValueError("a path, or the name of a command")
        if python is not None and "/" in python and not Path(python).is_absolute() and not python.startswith("~"):
            raise ValueError("an absolute path, or the name of a command")
        return python

    @field_validator("options")
    @classmethod
    def _others_only(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in options:
            if name in _GIVEN:
                instead = f"; give evaluation.vllm.{_GIVEN[name]}" if _GIVEN[name] else ""
                raise ValueError(f"{name} is not given here{instead}")
        try:
            json.dumps(options, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"plain data only ({error})") from error
        return options

    @property
    def identity(self) -> dict[str, Any]:
        """What of it changes numbers."""
        changing = {name: self.options[name] for name in _CHANGING if name in self.options}
        return {"dtype": self.dtype, **({"options": changing} if changing else {})}
