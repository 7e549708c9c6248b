"""Fixtures of every tier: a small valid sweep to change, tiny random models, and one Ray for all cluster tests."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything imports Ray or tqdm: tests leave no token file in the home directory and no bars in the log.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("TQDM_DISABLE", "1")
# Nor do they tell anyone that they ran, as TRL's trainer does.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Models of a test are so small that threads only wait for each other, most of all beside other processes.
os.environ["OMP_NUM_THREADS"] = "1"

SMALL: dict[str, Any] = {
    "name": "small",
    "models": [{"name": "tiny", "micro": {"family": "llama", "corpus": {"capitals": 1.0}, "steps": 8}}],
    "datasets": [
        {"name": "capitals", "generated": {"skill": "capitals", "rows": 64}},
        {"name": "addition", "generated": {"skill": "addition", "rows": 64}},
    ],
    "methods": [
        {"name": "full", "kind": "full", "override": {"learning_rate": 1e-3}},
        {"name": "lora", "kind": "lora", "rank": 4, "alpha": 8, "override": {"learning_rate": 5e-3}},
    ],
    "training": {"batch_size": 16, "max_length": 128},
    "grid": [{"sizes": [32], "epochs": [2], "measure": "every"}],
    "evaluation": {"tasks": ["micro_capitals_choice", "micro_addition_exact"], "limit": 16},
    "probes": {
        "perplexity": {"rows": 16},
        "intrinsic_dimension": {"texts": 32, "neighbours": 4},
        "log_likelihood": {"texts": "skills"},
    },
}


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    """The content of a small, valid sweep, free to change."""
    return {**copy.deepcopy(SMALL), "storage": str(tmp_path / "storage")}


@pytest.fixture
def write_sweep(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Write a sweep's content to a file (JSON is YAML) and return its path."""

    def write(content: dict[str, Any]) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One Ray of two CPUs for the whole run; stopped at its end, and no other is touched."""
    import ray

    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
    environment = {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        runtime_env={"env_vars": environment},
    )
    yield
    ray.shutdown()
