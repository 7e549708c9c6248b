"""Where tests find a vLLM: the stand-in of `tests/vllm_stand_in`, and a real one, of the interpreter that
RAYSFT_VLLM_PYTHON names, if it names one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

VLLMS = ("stand-in", "real") if "RAYSFT_VLLM_PYTHON" in os.environ else ("stand-in",)
STAND_IN = Path(__file__).parents[1] / "vllm_stand_in"
# A small share of the memory of whatever vLLM runs on, a CPU included, and no compilation.
_REAL = {
    "python": os.environ.get("RAYSFT_VLLM_PYTHON"),
    "gpu_memory_utilization": 0.1,
    "options": {"enforce_eager": True},
}


def vllm_settings(which: str, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`evaluation.vllm` of a sweep whose scores are those of `transformers` in fp32."""
    if which == "real":
        return {"dtype": "float32", **_REAL}
    patch.setenv("PYTHONPATH", str(STAND_IN))
    return {"dtype": "float32"}
