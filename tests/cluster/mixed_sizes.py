"""A sweep of trials of two sizes on a Ray of its own with two pretended GPUs; a process, as tests share one Ray.

Two trials have two workers with a GPU each, one under DDP and one under ZeRO-3; one has half a GPU. Two large ones at
once would take twice the GPUs that there are.

    python -m tests.cluster.mixed_sizes STORAGE

Prints, as its last line, JSON: the order in which units ended, the most GPUs that were held at a time, and the longest
that a placement group waited for GPUs, in seconds.
"""

from __future__ import annotations

import copy
import json
import sys
import threading
import time
from typing import Any

import ray

from raysft.cluster.pipeline import run_everything
from raysft.spec.sweep import parse_sweep
from tests.conftest import SMALL

LOOK_EVERY_S = 0.25


RESOURCES: dict[str, Any] = {
    "gpus_per_worker": 0.5,
    "rules": [
        {"methods": ["full", "upper"], "workers": 2, "gpus_per_worker": 1},
        {"methods": ["upper"], "strategy": "zero3"},
    ],
}


def sweep_content(storage: str, resources: dict[str, Any]) -> dict[str, Any]:
    """Three trials of one epoch of four steps, measured by their weight change alone.

    A rank's four rows of a step take several micro-batches, and not always as many as the other's.
    """
    content = copy.deepcopy(SMALL)
    content["datasets"] = content["datasets"][:1]
    content["methods"].append({**content["methods"][0], "name": "upper", "depth": [0.5, 1.0]})
    content["training"] |= {"batch_size": 8, "token_budget": 64}
    content["grid"] = [{"sizes": [32], "epochs": [1]}]
    content["evaluation"] = {}
    content["probes"] = {"perplexity": None, "intrinsic_dimension": None, "log_likelihood": None}
    return {**content, "storage": storage, "resources": resources}


class Watch(threading.Thread):
    """Looks at the cluster's GPUs and at placement groups that wait for some."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most_held = 0.0
        self.longest_wait_s = 0.0
        self._waiting: dict[str, float] = {}

    def run(self) -> None:
        while True:
            free = ray.available_resources().get("GPU", 0.0)
            self.most_held = max(self.most_held, ray.cluster_resources()["GPU"] - free)
            groups = ray.util.placement_group_table()
            pending = {
                key
                for key, group in groups.items()
                if group["state"] == "PENDING" and any("GPU" in bundle for bundle in group["bundles"].values())
            }
            now = time.monotonic()
            self._waiting = {key: self._waiting.get(key, now) for key in pending}
            self.longest_wait_s = max([self.longest_wait_s, *(now - since for since in self._waiting.values())])
            time.sleep(LOOK_EVERY_S)


def main(storage: str) -> None:
    """Run the sweep and say what happened."""
    ray.init(
        address="local",
        num_cpus=8,
        num_gpus=2,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}},
    )
    watch, ended = Watch(), list[str]()
    watch.start()
    result = run_everything(
        parse_sweep(sweep_content(storage, RESOURCES), "test"), say=lambda _: None, advance=ended.append
    )
    said = {
        "failures": result.failures,
        "ended": ended,
        "most_held": watch.most_held,
        "longest_wait_s": watch.longest_wait_s,
        "held_after": ray.cluster_resources()["GPU"] - ray.available_resources().get("GPU", 0.0),
        "groups_after": [
            group["state"] for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"
        ],
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1])
