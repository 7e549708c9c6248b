"""Seconds to the first step of the second trial on a base: with the base kept in memory, or everything loaded anew.

    python benchmarks/second_trial.py benchmarks/results/second_trial.json --data FOLDER

FOLDER is that of `training.py`. The second trial has another seed than the first and is started in three ways:

- `warm`: where the first one ended, in a process that keeps the base and the tokenised rows (what raysft does). Counted
  from the end of the first one's last step, so taking its method off the base (original weights copied back, or the
  adapter removed) is in it.
- `reloaded`: in the same process, with the base loaded again from its folder; the tokenised rows are kept.
- `new_process`: in a process of its own that imports, loads and tokenises, counted from its start.

Each runs `raysft.trial.run_unit` with a session, as a worker of a sweep does. The clock stops when the loop asks its
first question before the first step. Losses of the first steps must be the same in all three ways to the last bit, or
there is no result. Nothing is evaluated, and Ray is not started: its share of a trial is in the quickstart's time.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import circumstances
from training import ENVIRONMENT, run_script

from raysft import trial
from raysft.session import Session
from raysft.spec.plan import Unit, make_plan
from raysft.spec.sweep import Sweep, parse_sweep
from raysft.training.loop import Hooks, Job, Progress, train
from raysft.training.parallel import Engine

IMPORTED_AT = time.monotonic()  # one clock for all processes of a machine
TIMEOUT_S = 600
NOTES = {
    "files": "weights and rows are in the page cache: a node that reads them for the first time takes longer",
    "new_process": "without starting Ray, and without a first look at the digest of the weights, which is remembered",
    "imports_s": "of the new process, from its start until this script has imported what it needs",
}


class Enough(BaseException):
    """Ends a trial as a kill does: nothing is committed, so that every repeat is the same trial."""


@dataclass
class Start:
    """When (monotonic seconds) the first step of a trial began and its last one ended, and the losses of the steps."""

    first_step_at: float = 0.0
    ended_at: float = 0.0
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Material:
    """What a process is told of the benchmark, as Ray tells a worker: the sweep, and the two trials of a method."""

    sweep: Sweep
    units: dict[str, tuple[Unit, Unit]]
    steps: int


def start_trial(session: Session, unit: Unit, steps: int) -> Start:
    """Run a trial of a session to the end of its step `steps`."""
    seen = Start()

    def asked() -> bool:
        if not seen.first_step_at:
            seen.first_step_at = time.monotonic()
        return True

    def told(progress: Progress) -> None:
        if progress.running is not None:
            seen.losses.append(progress.running.last_loss)
        if len(seen.losses) == steps:
            seen.ended_at = time.monotonic()
            raise Enough

    def watched(engine: Engine, job: Job, hooks: Hooks, start: Progress) -> bool:
        return train(engine, job, Hooks(should_save=asked, save=told), start)

    trial.train = watched
    try:
        report = trial.run_unit(session, unit, unit.works)
    except Enough:
        return seen
    raise SystemExit(f"{unit} ended before its step {steps}: {report.failures}")


def start_alone(material: Material, method: str) -> dict[str, Any]:
    """What a process of its own says of the second trial."""
    session = Session(material.sweep, torch.device("cpu"))
    return {**asdict(start_trial(session, material.units[method][1], material.steps)), "imported_at": IMPORTED_AT}


class Ways:
    """The three ways to start the second trial. Each gives (seconds to its first step, what it said)."""

    def __init__(self, material: Material, pickled: Path) -> None:
        self.material = material
        self.pickled = pickled
        self.session = Session(material.sweep, torch.device("cpu"))

    def warm(self, method: str) -> tuple[float, dict[str, Any]]:
        first, second = self.material.units[method]
        before = start_trial(self.session, first, 1)
        seen = start_trial(self.session, second, self.material.steps)
        return seen.first_step_at - before.ended_at, asdict(seen)

    def reloaded(self, method: str) -> tuple[float, dict[str, Any]]:
        started = time.monotonic()
        self.session.bases.drop()
        seen = start_trial(self.session, self.material.units[method][1], self.material.steps)
        return seen.first_step_at - started, asdict(seen)

    def new_process(self, method: str) -> tuple[float, dict[str, Any]]:
        request = json.dumps({"pickled": str(self.pickled), "method": method})
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, __file__, request], stdout=subprocess.PIPE, text=True, check=True, timeout=TIMEOUT_S
        )
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return said["first_step_at"] - started, {**said, "imports_s": said["imported_at"] - started}

    def all(self) -> dict[str, Callable[[str], tuple[float, dict[str, Any]]]]:
        return {"warm": self.warm, "reloaded": self.reloaded, "new_process": self.new_process}


def sweep_of(folder: Path, options: argparse.Namespace) -> Sweep:
    """Both methods with two seeds on one base and one dataset; nothing is measured."""
    content = {
        "name": "second-trial",
        "storage": str(folder / "storage"),
        "models": [{"name": "base", "path": str(folder / "model")}],
        "datasets": [{"name": "rows", "path": str(folder / "rows.jsonl")}],
        "methods": [{"name": "full", "kind": "full"}, {"name": "lora", "kind": "lora", "rank": 8, "alpha": 16}],
        "training": {"learning_rate": 1e-3, "batch_size": options.batch_size, "max_length": 512},
        "grid": [{"epochs": [1], "seeds": [0, 1]}],
        "probes": dict.fromkeys(("perplexity", "weight_change", "intrinsic_dimension", "log_likelihood")),
    }
    return parse_sweep(content, "benchmark")


def make_material(folder: Path, size: str, options: argparse.Namespace) -> Material:
    """Write base and rows into the folder and plan the trials."""
    request = {"folder": str(folder), "data": options.data, "datasets": ["all"], "size": size, "rows": options.rows}
    run_script("training_material.py", request)
    pairs = json.loads((folder / "all.json").read_text())
    lines = [json.dumps({"instruction": instruction, "response": response}) for instruction, response in pairs]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    sweep = sweep_of(folder, options)
    trials = [unit for unit in make_plan(sweep).units if unit.trial is not None]
    units = {}
    for method in options.methods:
        first, second = (unit for unit in trials if unit.subject.method == method)
        units[method] = (first, second)
    return Material(sweep, units, options.steps)


def measure_size(size: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All repeats of one size of model, methods and ways taking turns."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # where digests of large files are remembered
        material = make_material(folder, size, options)
        pickled = folder / "material.pickle"
        pickled.write_bytes(pickle.dumps(material))
        ways = Ways(material, pickled)
        seconds: dict[tuple[str, str], list[float]] = {}
        imports: list[float] = []
        losses: dict[str, list[float]] = {}
        for _ in range(options.repeats):
            for method in options.methods:
                for way, start in ways.all().items():
                    took, said = start(method)
                    check_losses(losses.setdefault(method, said["losses"]), said["losses"], f"{size}, {method}, {way}")
                    seconds.setdefault((method, way), []).append(took)
                    imports += [said["imports_s"]] if "imports_s" in said else []
                    print(f"  {size}, {method}, {way}: {took:.3f} s", flush=True)
        parameters = ways.session.base("base").model.num_parameters()
    about = {"model_size": size, "parameters": parameters, "imports_s": round(median(imports), 3)}
    return [
        {**about, "method": method, "losses": losses[method]}
        | compared({way: seconds[method, way] for way in ways.all()})
        for method in options.methods
    ]


def check_losses(expected: list[float], found: list[float], where: str) -> None:
    """Equal to the last bit, or there is nothing to compare."""
    if found != expected:
        raise SystemExit(f"{where}: losses {found}, in the first run {expected}: nothing to compare")


def compared(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of the ways, and how many times the warm one's they are."""
    medians = {way: median(values) for way, values in seconds.items()}
    return {
        "seconds": {way: round(value, 4) for way, value in medians.items()},
        "all_seconds": {way: [round(value, 4) for value in values] for way, values in seconds.items()},
        "times_the_warm_seconds": {
            way: round(value / medians["warm"], 1) for way, value in medians.items() if way != "warm"
        },
    }


def print_table(cases: list[dict[str, Any]]) -> None:
    """One line a case and way."""
    print(f"{'model':8}{'method':8}{'way':14}{'to first step, s':>18}{'lowest':>9}{'highest':>9}{'of warm':>9}")
    for case in cases:
        for way, value in case["seconds"].items():
            every = case["all_seconds"][way]
            ratio = case["times_the_warm_seconds"].get(way)
            shown = f"{ratio:.1f}x" if ratio else ""
            name = f"{case['model_size']:8}{case['method']:8}{way:14}"
            print(f"{name}{value:18.3f}{min(every):9.3f}{max(every):9.3f}{shown:>9}")


def main(options: argparse.Namespace) -> None:
    """Measure every size and write the result."""
    os.environ.update(ENVIRONMENT)
    about = circumstances("tokenizers", "safetensors")
    cases = [case for size in options.model_sizes for case in measure_size(size, options)]
    chosen = {name: value for name, value in vars(options).items() if name not in ("out", "data")}
    settings = {**chosen, "threads": torch.get_num_threads()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**about, "settings": settings, "notes": NOTES, "cases": cases}, indent=1) + "\n")
    print_table(cases)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True, help="folder of the three instruction datasets")
    parser.add_argument("--model-sizes", nargs="+", default=["small", "110m"], choices=["tiny", "small", "110m"])
    parser.add_argument("--methods", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    parser.add_argument("--rows", type=int, default=1000, help="training rows, which are tokenised")
    parser.add_argument("--batch-size", type=int, default=2, help="rows of a step; steps are not timed")
    parser.add_argument("--steps", type=int, default=2, help="steps whose losses must be the same")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1].startswith("{"):
        asked_for = json.loads(sys.argv[1])
        print(json.dumps(start_alone(pickle.loads(Path(asked_for["pickled"]).read_bytes()), asked_for["method"])))
    else:
        main(parse())
