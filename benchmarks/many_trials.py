"""Ten thousand trials whose training does nothing: what the driver holds, what lies on disk, how soon `status` answers.

    python benchmarks/many_trials.py benchmarks/results/many_trials.json

Everything around a training is real: the plan, Tune, the queue, the processes, one committed result for each trial. The
driver's memory and what Tune and Ray keep on disk are looked at as the trials end; a line is fitted through the second
half, since Python and Ray fill their pools in the first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import yaml
from machine import circumstances

from raysft.spec.plan import make_plan
from raysft.spec.sweep import Sweep, parse_sweep, resolved_yaml
from raysft.store.layout import SPEC_FILE, open_storage
from raysft.store.results import Cost, commit_result
from raysft.store.schema import RESULTS, TRAINING

LOOKS = 100
STATUS_REPEATS = 5
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}


def content_of(storage: str, trials: int) -> dict[str, Any]:
    """So many trials over five base models, ten datasets and two methods, by their seeds."""
    return {
        "name": "many",
        "storage": storage,
        "models": [{"name": f"model-{index}", "hub": f"somebody/model-{index}"} for index in range(5)],
        "datasets": [{"name": f"data-{index}", "path": f"data-{index}.jsonl"} for index in range(10)],
        "methods": [{"name": "full", "kind": "full"}, {"name": "lora", "kind": "lora", "rank": 8, "alpha": 16}],
        "training": {"batch_size": 16, "max_length": 128, "learning_rate": 1e-3},
        "grid": [{"sizes": [64], "epochs": [1], "seeds": list(range(trials // 100)), "measure": "last"}],
        "evaluation": {},
        "probes": dict.fromkeys(("perplexity", "weight_change", "intrinsic_dimension", "log_likelihood")),
        "checkpoints": {"keep": "last"},
    }


def write_sweep(folder: Path, trials: int) -> Path:
    """The sweep and its data files; the path of its YAML."""
    for index in range(10):
        (folder / f"data-{index}.jsonl").write_text(json.dumps({"instruction": str(index), "output": "yes"}) + "\n")
    path = folder / "many.yaml"
    path.write_text(yaml.safe_dump(content_of(str(folder / "storage"), trials)))
    return path


def run_idle(sweep: Sweep, folder: Path) -> dict[str, Any]:
    """Run all trials, on four processes; what was seen."""
    from raysft.cluster import sweep as sweep_module
    from raysft.cluster import trainable
    from raysft.cluster.connect import connected
    from raysft.measure import Report

    def idle(session: Any, unit: Any, works: Any, *_: Any, **__: Any) -> Report:
        table = pa.Table.from_pylist([dict.fromkeys(TRAINING.names)], schema=RESULTS["train"])
        for work in works:
            commit_result(session.storage, work.stage, work.key, table, work.subject.as_row(), Cost(0.0))
        return Report(seconds={"train": 0.0}, committed=len(works))

    class Idle(trainable.UnitTrainable):
        def setup(self, *given: Any, **named: Any) -> None:
            trainable.run_unit = idle
            super().setup(*given, **named)

    sweep_module.UnitTrainable = Idle
    storage = open_storage(sweep.storage)
    storage.write_bytes(resolved_yaml(sweep).encode(), SPEC_FILE)
    plan = make_plan(sweep, storage)
    looks: list[dict[str, float]] = []
    driver, ended, every = psutil.Process(), 0, max(1, len(plan.trials) // LOOKS)

    def watch(_: Any) -> None:
        nonlocal ended
        ended += 1
        if ended % every == 0:
            looks.append({"trials": ended, "at_s": time.monotonic(), "rss_mib": driver.memory_info().rss / 2**20})
            looks[-1] |= {"disk_mib": disk_mib(folder / "scratch")}
            print(
                f"{ended:>6} trials, {looks[-1]['rss_mib']:.0f} MiB, {looks[-1]['disk_mib']:.1f} MiB on disk",
                flush=True,
            )

    with connected(None):
        started = time.monotonic()
        outcome = sweep_module.run_sweep(plan, storage, watch)
        seconds = time.monotonic() - started
    assert not outcome.failed
    assert not make_plan(sweep, storage).missing_units()
    return {"trials": ended, "seconds": round(seconds, 1), "looks": looks}


def disk_mib(folder: Path) -> float:
    """What lies under a folder, in blocks, as it is now."""
    done = subprocess.run(["du", "-sk", str(folder)], capture_output=True, text=True, check=False)
    return int(done.stdout.split()[0]) / 1024


def growth_per_trial(looks: list[dict[str, float]], what: str) -> float:
    """Slope in the second half, in KiB a trial."""
    half = looks[len(looks) // 2 :]
    slope, _ = np.polyfit([look["trials"] for look in half], [look[what] for look in half], 1)
    return round(float(slope) * 1024, 2)


def seconds_of_status(path: Path) -> float:
    """Median of the whole command, from its start to its end."""
    times = []
    for _ in range(STATUS_REPEATS):
        started = time.monotonic()
        command = [sys.executable, "-m", "raysft.cli", "status", str(path)]
        subprocess.run(command, check=True, capture_output=True, cwd=path.parent)
        times.append(time.monotonic() - started)
    return round(median(times), 2)


def main() -> None:
    """Run and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--trials", type=int, default=10_000)
    chosen = parser.parse_args()
    os.environ |= ENVIRONMENT
    facts = circumstances()
    with tempfile.TemporaryDirectory(prefix="many-") as name:
        folder = Path(name)
        (folder / "scratch").mkdir()
        os.environ["TMPDIR"] = os.environ["RAY_TMPDIR"] = str(folder / "scratch")
        tempfile.tempdir = None
        path = write_sweep(folder, chosen.trials)
        os.chdir(folder)
        seen = run_idle(parse_sweep(yaml.safe_load(path.read_text()), "benchmark"), folder)
        status_s = seconds_of_status(path)
        os.chdir("/")
    looks = seen.pop("looks")
    result = {
        **facts,
        **seen,
        "trials_per_s": round(seen["trials"] / seen["seconds"], 1),
        "driver_rss_mib": [round(looks[index]["rss_mib"], 1) for index in (0, len(looks) // 2, -1)],
        "driver_growth_kib_per_trial": growth_per_trial(looks, "rss_mib"),
        "disk_mib": [round(looks[index]["disk_mib"], 1) for index in (0, len(looks) // 2, -1)],
        "disk_growth_kib_per_trial": growth_per_trial(looks, "disk_mib"),
        "status_s": status_s,
    }
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
