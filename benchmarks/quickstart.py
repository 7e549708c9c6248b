"""Time of the quickstart, from an empty storage to the report, and of running it again.

    python benchmarks/quickstart.py benchmarks/results/quickstart.json [STORAGE]

Wall seconds of the whole command, as a user waits for it; installing is not in them. One run: these are minutes, to be
read as such.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from raysft.store.results import git_revision, package_versions

SWEEP = Path(__file__).parents[1] / "sweeps" / "quickstart.yaml"


def timed(command: list[str]) -> tuple[float, str]:
    """(wall seconds, output) of a command that must succeed."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - started, done.stdout


def main(out: Path, kept: Path | None = None) -> None:
    """Run the quickstart twice in a storage of its own, or in the empty folder `kept`, and write what it took."""
    with tempfile.TemporaryDirectory() as scratch:
        storage = str(kept or scratch)
        command = [sys.executable, "-m", "raysft.cli", "run", str(SWEEP), "--storage", storage]
        first, said = timed(command)
        second, _ = timed(command)
        costs = pq.read_table(Path(storage) / "tables" / "costs.parquet", columns=["stage", "wall_s"])
        summary = json.loads((Path(storage) / "study" / "summary.json").read_text())
    by_stage = costs.group_by("stage").aggregate([("wall_s", "sum")]).sort_by([("wall_s_sum", "descending")])
    overhead = re.search(r"(\d+) trials: ([\d.]+) s each were neither training nor measuring.*longest ([\d.]+)", said)
    assert overhead is not None
    checks = summary["checks"]
    result = {
        "command": "python benchmarks/quickstart.py",
        "hardware": {"cpu_cores": os.cpu_count(), "machine": platform.machine(), "gpu": None},
        "versions": package_versions(),
        "git_revision": git_revision(),
        "first_run_s": round(first, 1),
        "second_run_s": round(second, 2),
        "process_seconds_by_stage": {row["stage"]: round(row["wall_s_sum"], 1) for row in by_stage.to_pylist()},
        "trials": int(overhead[1]),
        "overhead_median_s": float(overhead[2]),
        "overhead_longest_s": float(overhead[3]),
        "own_skill_gains": [checks["own_skill_gains"]["value"], checks["own_skill_gains"]["of"]],
        "synergies": [checks["synergies"]["value"], checks["synergies"]["of"]],
        "losses": [checks["losses"]["value"], checks["losses"]["of"]],
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
