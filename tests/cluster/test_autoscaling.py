"""A sweep on a cluster that is only a head at first: it grows to what the trials ask for, and shrinks to the head."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raysft.spec.plan import make_plan
from raysft.spec.sweep import parse_sweep
from raysft.store.layout import open_storage
from tests.cluster.autoscaling import LOOK_EVERY_S, Watch, autoscaling_cluster, running_types
from tests.conftest import SMALL

pytestmark = pytest.mark.cluster

SPOT = {"ray.io/market-type": "spot"}
TYPES: dict[str, dict[str, Any]] = {
    "cpu": {"resources": {"CPU": 1}, "max_workers": 2},
    "one-gpu-spot": {"resources": {"CPU": 1, "GPU": 1}, "labels": SPOT, "max_workers": 1},
}
IDLE_S = 2.0
SHRINK_LOOKS = 240
TIMEOUT_S = 400


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with autoscaling_cluster(TYPES, IDLE_S) as address:
        yield address


def _content(storage: Path, gpus: int) -> dict[str, Any]:
    """Two trials of one epoch: one on any CPU, one on a GPU of a spot node."""
    content = copy.deepcopy(SMALL)
    content["datasets"] = content["datasets"][:1]
    content["grid"] = [{"sizes": [32], "epochs": [1]}]
    content["evaluation"] = {}
    content["probes"] = {"perplexity": None, "intrinsic_dimension": None, "log_likelihood": None}
    on_spot = {"methods": ["lora"], "gpus_per_worker": gpus, "labels": SPOT}
    return {**content, "storage": str(storage), "resources": {"rules": [on_spot]}}


def _run(content: dict[str, Any], folder: Path, address: str) -> subprocess.CompletedProcess[str]:
    file = folder / "sweep.json"
    file.write_text(json.dumps(content))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "raysft.cli", "run", str(file), "--address", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environment)


def _workers(types: Counter[str]) -> dict[str, int]:
    return {name: types[name] for name in TYPES if types[name]}


def test_what_no_node_could_ever_hold_is_refused_and_nothing_is_added(cluster: str, tmp_path: Path) -> None:
    with Watch(cluster) as watch:
        done = _run(_content(tmp_path / "storage", gpus=8), tmp_path, cluster)
    assert done.returncode == 2
    # Its own node has no CPU; the others are those that the autoscaler could add.
    assert "needs 1 CPU, 8 GPU on ray.io/market-type=spot, the cluster has 3 CPU, 1 GPU on 4 nodes" in done.stderr
    assert all(not _workers(types) for types in watch.seen)


def test_a_sweep_makes_the_cluster_grow_and_it_shrinks_to_the_head_after(cluster: str, tmp_path: Path) -> None:
    assert (sum(running_types(cluster).values()), _workers(running_types(cluster))) == (1, {})
    content = _content(tmp_path / "storage", gpus=1)
    with Watch(cluster) as watch:
        done = _run(content, tmp_path, cluster)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    sweep = parse_sweep(content, "test")
    plan = make_plan(sweep, open_storage(sweep.storage))
    assert all(plan.is_done(work) for work in plan.works())

    grown = [_workers(types) for types in watch.seen]
    assert any("cpu" in types for types in grown)
    assert any("one-gpu-spot" in types for types in grown)
    assert all(types[name] <= TYPES[name]["max_workers"] for types in grown for name in types)

    for _ in range(SHRINK_LOOKS):
        left = running_types(cluster)
        if not _workers(left):
            break
        time.sleep(LOOK_EVERY_S)
    assert (sum(left.values()), _workers(left)) == (1, {})
