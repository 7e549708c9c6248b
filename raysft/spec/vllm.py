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
# Of those that `options` may hold, what is known to be speed, memory and logs alone; what is not known to be so may
# compute other numbers.
_NOT_CHANGING = frozenset(
    {
        "async_scheduling",
        "block_size",
        "cpu_offload_gb",
        "disable_custom_all_reduce",
        "disable_log_stats",
        "distributed_executor_backend",
        "download_dir",
        "enable_chunked_prefill",
        "enable_prefix_caching",
        "enforce_eager",
        "kv_cache_memory_bytes",
        "long_prefill_token_threshold",
        "max_long_partial_prefills",
        "max_num_batched_tokens",
        "max_num_partial_prefills",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "num_gpu_blocks_override",
        "pipeline_parallel_size",
        "scheduling_policy",
        "swap_space",
    }
)


class VllmSpec(Frozen):
    """How vLLM is started. `dtype` and options beyond speed, memory and logs are part of the key, all else is not."""

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
        """What of it changes numbers, or may."""
        changing = {name: value for name, value in self.options.items() if name not in _NOT_CHANGING}
        return {"dtype": self.dtype, **({"options": changing} if changing else {})}
