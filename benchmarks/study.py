"""Time and memory of a whole study and its report: of released scores, and of a simulated sweep of 1,000 trials.

    python benchmarks/study.py benchmarks/results/study.json --released evaluation_result.csv

Each is a process of its own, started anew for each of `--repeats`, and its whole life is timed, imports and writing
included; memory is its peak resident set. The simulated sweep has 10 models x 10 datasets x 2 methods x 5 seeds, 20
tasks, 32 layers, 200 texts and a sketch of every layer's update. There is no peer: nobody else's study takes these
tables.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from machine import circumstances

sys.path.insert(0, str(Path(__file__).parents[1]))
from raysft.store.schema import TABLES
from tests.unit.synthetic_tables import Sweep, synthetic_tables, write_tables

MODELS, DATASETS, SEEDS, LAYERS, TEXTS = 10, 10, 5, 32, 200
SKETCH = 1024

_STUDY = """
import resource, sys, time
from pathlib import Path
started = time.perf_counter()
from raysft.study.run import run_study
tables, study, report = map(Path, sys.argv[1:])
run_study(tables, study)
studied = time.perf_counter()
from raysft.report.sweep_page import write_report
write_report(tables, study, report, "simulated")
done = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(studied - started, done - studied, peak)
"""

_RELEASED = """
import resource, sys, time
from pathlib import Path
started = time.perf_counter()
from raysft.study.released import study_released
csv, out = map(Path, sys.argv[1:])
study_released(csv, out)
studied = time.perf_counter()
from raysft.report.sweep_page import write_report
write_report(out / "sweep", out, out / "report", "released")
done = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(studied - started, done - studied, peak)
"""


def simulated(folder: Path) -> Path:
    """The tables of 1,000 trials in `folder`."""
    sweep = Sweep(
        models=[f"model-{at}" for at in range(MODELS)],
        datasets=[f"skill{at}" for at in range(DATASETS)],
        seeds=range(SEEDS),
        epochs=1,
        layers=LAYERS,
        texts=TEXTS,
        noise=0.05,
    )
    return write_tables({**synthetic_tables(sweep), "weight_sketches": sketches(sweep)}, folder)


def sketches(sweep: Sweep) -> pa.Table:
    """Random sketches of every layer of every trial's update."""
    random = np.random.default_rng(6)
    schema = TABLES["weight_sketches"]
    parts = []
    for trial in sweep.done():
        values = pa.array(random.normal(size=LAYERS * SKETCH).astype(np.float32))
        offsets = pa.array(np.arange(0, LAYERS * SKETCH + 1, SKETCH, dtype=np.int32))
        columns = {
            **{name: pa.array([value] * LAYERS) for name, value in trial.items()},
            "level": pa.array(["layer"] * LAYERS),
            "layer": pa.array(range(LAYERS)),
            "depth": pa.array(np.linspace(0, 1, LAYERS)),
            "change_norm": pa.array(np.full(LAYERS, np.sqrt(SKETCH))),
            "sketch": pa.ListArray.from_arrays(offsets, values),
        }
        arrays = [columns.get(field.name, pa.nulls(LAYERS, field.type)).cast(field.type) for field in schema]
        parts.append(pa.Table.from_arrays(arrays, schema=schema))
    return pa.concat_tables(parts)


def timed(code: str, *words: Path) -> dict[str, float]:
    """Seconds of study and of report, and the peak of memory in MiB, of one process."""
    command = [sys.executable, "-c", code, *map(str, words)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    study, report, peak = map(float, said.split())
    return {"study_s": study, "report_s": report, "peak_mib": peak}


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of each number, and every run."""
    middle = {name: round(median(run[name] for run in runs), 1) for name in runs[0]}
    return {**middle, "runs": [{name: round(value, 1) for name, value in run.items()} for run in runs]}


def main() -> None:
    """Time both and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--released", type=Path, help="the paper's evaluation_result.csv")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    result = circumstances()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        tables = simulated(root / "tables")
        mib = sum(path.stat().st_size for path in tables.iterdir()) / 2**20
        runs = [timed(_STUDY, tables, root / "study", root / "report") for _ in range(options.repeats)]
        page = (root / "report" / "report.html").stat().st_size / 2**20
        trials = MODELS * DATASETS * 2 * SEEDS
        about = {"trials": trials, "tables_mib": round(mib, 1), "page_mib": round(page, 1)}
        result["simulated"] = {**about, **summary(runs)}
        if options.released is not None:
            runs = [timed(_RELEASED, options.released, root / "released") for _ in range(options.repeats)]
            page = (root / "released" / "report" / "report.html").stat().st_size / 2**20
            result["released"] = {"page_mib": round(page, 1), **summary(runs)}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
