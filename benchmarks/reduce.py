"""Reducing 10,000 results to tables, beside pandas reading and concatenating the same files.

    python benchmarks/reduce.py --folder FOLDER OUT.json

1,000 fine-tunings of 10 base models on 10 datasets, of full and LoRA in 5 seeds, with their results committed by the
store's own code into FOLDER (deleted at the end; `--results` of them): training over 10 epochs, 5 benchmarks of
`--items` items each with answers, weight change of 98 matrices and 14 layers with their sketches, 1,000
log-likelihoods, 5 estimates of the dimension of 15 hidden states, and what the bases and the data give.

In turn, `--repeats` times, from a warm page cache:

reduce         everything that `raysft reduce` does, from the plan to the published tables, with nothing read before
again          the same with nothing new
pandas         `pandas.read_parquet` of each file and `pandas.concat` of each stage's, and no more: no identity, no
               names, no items in rows of their own, nothing sorted or written
pandas_folder  `pandas.read_parquet` of each stage's whole folder: the same, and no longer known which row is whose

and then `incremental`, a reduction after every `--new` results more. Before anything counts, the columns of every table
must equal what pandas read, row by row, and after every reduction its files must equal, byte by byte, those of one that
started from nothing. Peak memory is by how far a fresh process rises above what it has once all is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from machine import circumstances
from reduce_results import Payloads, commit, sweep_of

from raysft.reduce import reduce_sweep
from raysft.reduce.run import wanted_results
from raysft.spec.plan import Work, make_plan
from raysft.spec.sweep import Sweep
from raysft.store.layout import Storage, open_storage

AIM_TIMES, AIM_SECONDS = 5.0, 10.0
PROPERTIES = ("perplexity", "similarity", "text_statistics", "sentence_similarity")

# stage -> table that has its payload row by row
PLAIN = {
    "train": "training",
    "weight_change": "weight_change",
    "log_likelihood": "log_likelihood",
    "intrinsic_dimension": "intrinsic_dimension",
    "contamination": "contamination",
}


def frames_of(storage: Storage, read: Callable[[Path], pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Stage -> what pandas makes of the folder of its results."""
    return {stage: read(storage.local_path("results", stage)) for stage in storage.names("results")}


def each_file(folder: Path) -> pd.DataFrame:
    frames = [pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))]
    return pd.concat(frames, ignore_index=True)


def contenders(sweep: Sweep, storage: Storage) -> dict[str, Callable[[], object]]:
    """What is timed; `reduce` starts from nothing, and `again` from what it left."""
    return {
        "reduce": lambda: reduce_sweep(sweep, storage),
        "again": lambda: reduce_sweep(sweep, storage),
        "pandas": lambda: frames_of(storage, each_file),
        "pandas_folder": lambda: frames_of(storage, pd.read_parquet),
    }


def check_equality(sweep: Sweep, storage: Storage) -> dict[str, int]:
    """Rows of the tables that were found equal to what pandas reads, in the order of the tables."""
    works = [one.work for one in wanted_results(make_plan(sweep, storage))]
    counts = {}
    for stages, name in ((PROPERTIES, "data_properties"), *(((s,), t) for s, t in PLAIN.items())):
        paths = [path_of(storage, work) for work in works if work.stage in stages]
        if not paths:
            continue
        table = pq.read_table(storage.local_path("tables", f"{name}.parquet"))
        counts[name] = check_same(name, table, pd.concat(map(pd.read_parquet, paths), ignore_index=True))
    paths = [path_of(storage, work) for work in works if work.stage == "evaluate"]
    scores = pd.concat(map(pd.read_parquet, paths), ignore_index=True)
    table = pq.read_table(storage.local_path("tables", "scores.parquet"))
    counts["scores"] = check_same("scores", table, scores.drop(columns="samples"))
    items = scores[["task", "metric", "samples"]].explode("samples", ignore_index=True)
    nested = pd.DataFrame(items.pop("samples").tolist())
    table = pq.read_table(storage.local_path("tables", "samples.parquet"))
    counts["samples"] = check_same("samples", table, pd.concat([items, nested], axis=1))
    return counts


def check_same(name: str, table: pa.Table, frame: pd.DataFrame) -> int:
    """Every column of the table that the results have equals pandas' one."""
    names = [column for column in table.column_names if column in frame.columns]
    schema = pa.schema([table.schema.field(column) for column in names])
    theirs = pa.Table.from_pandas(frame[names], schema=schema, preserve_index=False)
    if not table.select(names).equals(theirs):
        raise RuntimeError(f"the table {name} is not what pandas read")
    return table.num_rows


def path_of(storage: Storage, work: Work) -> Path:
    return storage.local_path("results", work.stage, f"{work.key}.parquet")


def table_bytes(storage: Storage) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in storage.local_path("tables").glob("*.parquet")}


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(sweep: Sweep, storage: Storage, repeats: int) -> dict[str, list[float]]:
    """Seconds of each contender, in turn; every reduction must publish the same bytes."""
    seconds: dict[str, list[float]] = {}
    reduce_sweep(sweep, storage)
    expected = table_bytes(storage)
    for _ in range(repeats):
        storage.delete_tree("packs")
        for name, work in contenders(sweep, storage).items():
            seconds.setdefault(name, []).append(timed(work))
            if table_bytes(storage) != expected:
                raise RuntimeError(f"{name} changed the tables")
    return seconds


def measure_new(sweep: Sweep, storage: Storage, late: list[Work], payloads: Payloads, new: int) -> list[float]:
    """Seconds of a reduction after each `new` results of `late`."""
    seconds = []
    for start in range(0, len(late), new):
        commit(storage, late[start : start + new], payloads)
        seconds.append(timed(lambda: reduce_sweep(sweep, storage)))
    incremental = table_bytes(storage)
    storage.delete_tree("packs")
    reduce_sweep(sweep, storage)
    if table_bytes(storage) != incremental:
        raise RuntimeError("tables made bit by bit are others than those made at once")
    return seconds


def peak_memory(folder: Path, name: str) -> int:
    """MiB by which a process of its own rises in doing this once."""
    command = [sys.executable, __file__, "--peak", str(folder), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout.split()[-1])


def own_peak(folder: str, name: str) -> None:
    """What the process of `peak_memory` does."""
    sweep, storage = sweep_of(Path(folder)), open_storage(folder)
    pd.DataFrame({"a": [1]}).to_parquet(os.devnull)  # the libraries load what they need
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    contenders(sweep, storage)[name]()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print((int(peak.split()[1]) * 1024 - before) >> 20)


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Make the results, check and measure."""
    folder = chosen.folder / "reduce"
    sweep, payloads = sweep_of(folder), Payloads(chosen.items)
    storage = open_storage(str(folder))
    works = list(make_plan(sweep).works())
    random.Random(0).shuffle(works)  # as they come in
    late = works[chosen.results : chosen.results + chosen.repeats * chosen.new]
    if len(late) < chosen.repeats * chosen.new:
        raise SystemExit(f"--results: the sweep has {len(works)}, and {chosen.repeats * chosen.new} are to come later")
    started = time.perf_counter()
    commit(storage, works[: chosen.results], payloads)
    print(f"{chosen.results} results in {time.perf_counter() - started:.0f} s", flush=True)
    rows = reduce_sweep(sweep, storage).rows
    found: dict[str, Any] = {"results": chosen.results, "rows": rows, "rows_equal": check_equality(sweep, storage)}
    found["bytes"] = {name: size_of(folder / name) for name in ("results", "tables", "packs")}
    seconds = measure(sweep, storage, chosen.repeats)
    found["peak_mib"] = {"again": peak_memory(folder, "again")}
    storage.delete_tree("packs")
    found["peak_mib"] |= {name: peak_memory(folder, name) for name in ("reduce", "pandas")}
    seconds["incremental"] = measure_new(sweep, storage, late, payloads, chosen.new)
    medians = {name: median(values) for name, values in seconds.items()}
    found["seconds"] = {name: [round(value, 2) for value in values] for name, values in seconds.items()}
    found["median_seconds"] = {name: round(value, 2) for name, value in medians.items()}
    found["times_faster_than_pandas"] = {name: round(medians["pandas"] / value, 1) for name, value in medians.items()}
    found["aim"] = {"times": AIM_TIMES, "seconds": AIM_SECONDS}
    return found


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to be measured; needs 2 GB")
    parser.add_argument("--results", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--new", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    about = circumstances("pandas", "pyarrow")
    try:
        found = run(chosen)
    finally:
        shutil.rmtree(chosen.folder / "reduce", ignore_errors=True)
    settings = {key: value for key, value in vars(chosen).items() if key not in ("out", "folder")}
    result = {**about, "arrow_threads": pa.cpu_count(), "settings": settings, **found}
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    if sys.argv[1] == "--peak":
        own_peak(*sys.argv[2:])
    else:
        main()
