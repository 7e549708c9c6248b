"""Sweeps on a Ray cluster of this process's own, each with a fault in its middle.

    python -m tests.chaos.faulty_sweep UNDISTURBED FOLDER FAULT...

`UNDISTURBED` is the storage of the same sweep run without any fault; its base models are used again. For each fault the
sweep runs in `FOLDER/FAULT/storage`. A fault is one of `faults.FAULTS`, or several in turn as `node+drain`, or
`random-SEED`: many, of kinds and at times that the seed decides. Prints one line of JSON for each: what the driver and
the failures table saw, how often each stage ran to its end, what was still reserved, and how long it took from a unit's
death to its end.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

from raysft import measure
from raysft.cluster import sweep as sweep_module
from raysft.cluster import trainable
from raysft.cluster.connect import connected
from raysft.cluster.retries import UnitDeath
from raysft.cluster.sweep import UnitOutcome, run_sweep
from raysft.cluster.trainable import Tasks, UnitTrainable
from raysft.reduce import reduce_sweep
from raysft.spec.plan import make_plan
from raysft.spec.sweep import Sweep, parse_sweep, resolved_yaml
from raysft.store.layout import SPEC_FILE, Storage, open_storage
from tests.chaos.faults import FAULTS, Ground, wait_for
from tests.conftest import SMALL

RANDOM_FAULTS = ("trial", "node", "drain", "refuse")
SETTLE_S = 60.0
LOOK_EVERY_S = 0.5


def sweep_content(storage: str, workers: int = 1, seeds: int = 2) -> dict[str, Any]:
    """Trials of several seconds, two for each seed; with several workers the method is full alone."""
    content = copy.deepcopy(SMALL)
    content["datasets"] = [{"name": "addition", "generated": {"skill": "addition", "rows": 256}}]
    content["grid"] = [{"sizes": [256], "epochs": [6], "measure": [2, 4], "seeds": list(range(seeds))}]
    content["methods"] = content["methods"][: 1 if workers > 1 else 2]
    content["evaluation"] = {"tasks": ["micro_addition_exact"], "limit": 8}
    content["probes"] |= {"intrinsic_dimension": None, "log_likelihood": None}
    content["resources"] = {"workers": workers}
    return {**content, "storage": storage}


class Journalling(UnitTrainable):
    """Writes down every stage that ran to its end, whether or not its result was the first."""

    def setup(self, config: dict[str, Any], sweep: Sweep, tasks: Tasks) -> None:
        write_journal(journal_of(Path(sweep.storage)))
        super().setup(config, sweep, tasks)


def journal_of(storage: Path) -> Path:
    """Beside the folder of the fault, which may be full."""
    return storage.parent.with_suffix(".journal")


def write_journal(journal: Path) -> None:
    """From here on this process, and the worker groups that it starts, write down what they commit."""
    commit, loop = measure.commit_result, trainable._worker_loop

    def journalled(storage: Storage, stage: str, key: str, *rest: Any) -> bool:
        first = commit(storage, stage, key, *rest)
        with journal.open("a") as file:
            file.write(f"{stage} {key}\n")
        return first

    def journalled_loop(config: dict[str, Any]) -> Any:
        write_journal(journal)
        return loop(config)

    measure.commit_result = journalled
    trainable._worker_loop = journalled_loop


@dataclass
class Seen:
    """What the driver was told, with the time: deaths as (seconds, unit, kind), and ends by unit."""

    deaths: list[tuple[float, str, str]] = field(default_factory=list)
    ends: dict[str, float] = field(default_factory=dict)

    def __call__(self, ended: UnitOutcome | UnitDeath) -> None:
        if isinstance(ended, UnitDeath):
            self.deaths.append((time.monotonic(), str(ended.unit), type(ended.death).__name__))
        else:
            self.ends[str(ended.unit)] = time.monotonic()

    def seconds_to_recover(self) -> float:
        """The longest that a unit took from its process's death to its end."""
        return max((self.ends.get(unit, float("inf")) - at for at, unit, _ in self.deaths), default=0.0)


def random_faults(seed: int, pause: float) -> Iterator[str]:
    """Each kind in an order that the seed decides, and one of them again, with pauses in which processes start."""
    draw = random.Random(seed)
    faults = draw.sample(RANDOM_FAULTS, len(RANDOM_FAULTS))
    for fault in [*faults, draw.choice(RANDOM_FAULTS)]:
        yield fault
        time.sleep(pause * draw.uniform(0.5, 1.5))


def run_disturbed(ground: Ground, sweep: Sweep, faults: Iterable[str]) -> dict[str, Any]:
    """Run the sweep to its end, under faults from when a trial has committed a checkpoint; what was seen.

    The sweep is in a thread, since only the main one may start nodes.
    """
    seen, storage, injected = Seen(), open_storage(sweep.storage), list[str]()
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(run_sweep, make_plan(sweep, storage), storage, seen)
        checkpoints = ground.storage / "checkpoints"
        wait_for("a checkpoint", lambda: run.done() or any(checkpoints.glob("*/epoch-*")), 300)
        for fault in faults:
            if run.done():
                break
            FAULTS[fault](ground)
            injected.append(fault)
        outcome = run.result()
    reduced = reduce_sweep(sweep, storage)
    again = len(make_plan(sweep, storage).missing_units())
    journal = Counter(journal_of(ground.storage).read_text().splitlines())
    return {
        "injected": injected,
        "deaths": [kind for _, _, kind in seen.deaths],
        "seconds_to_recover": round(seen.seconds_to_recover(), 1),
        "failed": outcome.failed,
        "unreadable": list(reduced.unreadable),
        "missing": again,
        "executions": len(journal),
        "repeated": {line: count for line, count in journal.items() if count > 1},
        "held": still_held(),
    }


def still_held() -> dict[str, Any]:
    """CPUs, GPUs and placement groups that are reserved although nothing runs; a while is given to let go."""
    for _ in range(int(SETTLE_S / LOOK_EVERY_S)):
        total, free = ray.cluster_resources(), ray.available_resources()
        held = {name: total[name] - free.get(name, 0.0) for name in ("CPU", "GPU") if name in total}
        groups = [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
        if not any(held.values()) and not groups:
            return {}
        time.sleep(LOOK_EVERY_S)
    return {**held, "groups": groups}


def faults_of(name: str, pause: float = 6.0) -> Iterable[str]:
    """The faults, one after the other, random ones with pauses of so many seconds."""
    return random_faults(int(name.removeprefix("random-")), pause) if name.startswith("random-") else name.split("+")


def sweep_of(fault: str, storage: Path) -> dict[str, Any]:
    """The sweep that this fault is injected into."""
    if fault == "rank":
        return sweep_content(str(storage), workers=2, seeds=1)
    return sweep_content(str(storage), seeds=2 if fault in FAULTS else 4)


def main(undisturbed: Path, folder: Path, faults: list[str]) -> None:
    """One sweep for each fault."""
    sweep_module.UnitTrainable = Journalling
    os.environ["RAY_health_check_period_ms"] = "500"  # noqa: SIM112  Ray spells it so
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20})
    ground = Ground(cluster, folder)
    ground.add_node()
    ground.add_node()
    try:
        with connected(cluster.address):
            for fault in faults:
                ground.storage = folder / fault / "storage"
                for part in ("models", "results/pretrain"):
                    shutil.copytree(undisturbed / part, ground.storage / part)
                sweep = parse_sweep(sweep_of(fault, ground.storage), "test")
                open_storage(sweep.storage).write_bytes(resolved_yaml(sweep).encode(), SPEC_FILE)
                print(json.dumps({"fault": fault, **run_disturbed(ground, sweep, faults_of(fault))}), flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
