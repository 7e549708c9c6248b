"""Trials of one base and method one after another, together over one base, and side by side: tokens a second, memory.

    python benchmarks/adapters.py benchmarks/results/adapters.json --data FOLDER
    python benchmarks/adapters.py OUT --data FOLDER --device cuda --dtype bfloat16 --cases 0.5b:32:8 0.5b:4:32

FOLDER is that of `training.py`, whose material this takes. Trial k has the k-th dataset in turn, a seed and a learning
rate of its own, LoRA of rank 8 on all linear layers. A run is one or more processes of their own, which load the base,
take one step of each trial to warm up, and start together when all are ready:

- sequence: one process, raysft's own `train` for one trial after another
- together: one process, `adapters_together.py`, all trials in common micro-batches
- concurrent: a process a trial, the cores shared out among them, raysft's own `train`

Runs take turns and ratios are of medians. Tokens are the real ones of the rows. In fp32 every loss of every trial, and
its adapter in the end, must agree between the first two (`TOLERANCE`), or there is no result. Memory is what all
processes of a run held at most, and of that what is beyond one copy of the base and the libraries before it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from adapters_together import TERMS, Adapters, train_together
from machine import circumstances
from safetensors.numpy import load_file
from safetensors.torch import save_file
from training import ENVIRONMENT, run_script
from training_contenders import METHODS
from training_material import DATASETS, MAX_LENGTH, TEMPLATE

from raysft.corpus.batching import cut, global_batch
from raysft.corpus.example import Example
from raysft.corpus.tokenize import tokenise_examples
from raysft.models.load import BaseCache, pad_id
from raysft.models.methods import apply_method, prepare
from raysft.spec.grid import Optimisation
from raysft.spec.sweep import ModelSpec
from raysft.store.layout import open_storage
from raysft.training.loop import EpochStats, Hooks, Job, Progress, train
from raysft.training.parallel import DataParallel

# Relative, in fp32. The first steps of AdamW divide a gradient by itself, so that in an adapter the rounding of small
# gradients is as large as a step; what the model says with it is not touched by that.
TOLERANCE = {"losses": 1e-5, "adapters": 1e-4}


@dataclass(frozen=True)
class Case:
    """A model's size, the rows of a trial's global batch, and the optimiser steps of a trial."""

    size: str
    batch: int
    steps: int

    @staticmethod
    def parse(text: str) -> Case:
        size, batch, steps = text.split(":")
        return Case(size, int(batch), int(steps))


@dataclass(frozen=True)
class Request:
    """One process: how it trains which trials. `term` is a way of the low-rank term in `adapters_together.TERMS`."""

    way: str
    trials: list[int]
    case: dict[str, Any]
    folder: str
    device: str
    dtype: str
    token_budget: int
    learning_rate: float
    threads: int
    term: str


@dataclass
class Outcome:
    """Monotonic seconds, tokens, micro-batches, bytes, and each trial's loss at every step."""

    start: float = 0.0
    stop: float = 0.0
    setup_s: float = 0.0
    tokens: int = 0
    micro_batches: int = 0
    loaded_bytes: int = 0
    peak_bytes: int = 0
    losses: list[list[float]] = field(default_factory=list)


class Process:
    """The material of a request, loaded, and the two ways to train it."""

    def __init__(self, request: Request) -> None:
        self.request, self.case, self.outcome = request, Case(**request.case), Outcome()
        self.device = torch.device(request.device)
        self.method = METHODS["lora"]
        before = psutil.Process().memory_info().rss
        spec = ModelSpec(name="base", path=Path(request.folder) / "model")
        self.base = BaseCache().get(open_storage(request.folder), spec, "float32", self.device)
        weights = sum(parameter.numel() * parameter.element_size() for parameter in self.base.model.parameters())
        self.outcome.loaded_bytes = weights if self.device.type == "cuda" else before + weights
        self.jobs = [self._job(trial) for trial in request.trials]

    def _job(self, trial: int) -> Job:
        content = json.loads((Path(self.request.folder) / f"{DATASETS[trial % len(DATASETS)]}.json").read_text())
        examples = [Example(*pair) for pair in content][: self.case.steps * self.case.batch]
        settings = Optimisation(
            learning_rate=self.request.learning_rate * (1 + trial / 4),
            batch_size=self.case.batch,
            weight_decay=0.0,
            warmup_steps=0,
            max_length=MAX_LENGTH,
            max_grad_norm=1.0,
            schedule="cosine",
            dtype=self.request.dtype,
            template=TEMPLATE.name,
        )
        rows = tokenise_examples(examples, self.base.tokenizer, TEMPLATE, MAX_LENGTH)
        pad = pad_id(self.base.tokenizer)
        return Job(rows, settings, trial, 1, pad, self.request.token_budget, self.device, packed=True)

    def run(self) -> Outcome:
        """Warm up, wait for the word to start, train, and say what it took."""
        train_all = self._together if self.request.way == "together" else self._sequence
        train_all([replace(job, rows=job.rows[: self.case.batch]) for job in self.jobs])
        self.outcome.losses, self.outcome.setup_s = [], 0.0
        print("ready", flush=True)
        sys.stdin.readline()
        self.outcome.start = time.monotonic()
        adapters = train_all(self.jobs)
        self.outcome.stop = self._now()
        self.outcome.peak_bytes = self._peak()
        self._account()
        if self.request.way != "concurrent":
            save_file(adapters, Path(self.request.folder) / f"{self.request.way}.safetensors")
        return self.outcome

    def _sequence(self, jobs: list[Job]) -> dict[str, torch.Tensor]:
        adapters = {}
        for trial, job in zip(self.request.trials, jobs, strict=True):
            began = self._now()
            losses: list[float] = []

            def keep(progress: Progress | EpochStats, losses: list[float] = losses) -> None:
                stats = progress.running if isinstance(progress, Progress) else progress
                if stats is not None:
                    losses.append(stats.last_loss)

            tuned = apply_method(self.base, self.method, job.seed)
            prepare(tuned, activation_checkpointing=False, compiled=False, packed=True)
            engine = DataParallel(tuned.model, tuned.trainable(), job.settings)
            self.outcome.setup_s += self._now() - began
            train(engine, job, Hooks(epoch_ended=keep, should_save=lambda: True, save=keep))
            self.outcome.losses.append(losses)
            for name, module in tuned.lora_modules():
                adapters[f"{trial}.{name}.A"] = module.lora_A["default"].weight.detach().clone()
                adapters[f"{trial}.{name}.B"] = module.lora_B["default"].weight.detach().clone()
            tuned.detach()
        return adapters

    def _together(self, jobs: list[Job]) -> dict[str, torch.Tensor]:
        began = self._now()
        seeds = [job.seed for job in jobs]
        together = Adapters(self.base, self.method, seeds, TERMS[self.request.term], self.device)
        self.outcome.setup_s += self._now() - began
        self.outcome.losses = [history.losses for history in train_together(together, jobs)]
        adapters = {}
        for place, trial in enumerate(self.request.trials):
            adapters.update({f"{trial}.{name}": matrix for name, matrix in together.of_trial(place).items()})
        together.remove()
        return adapters

    def _account(self) -> None:
        """Count tokens and micro-batches."""
        for lengths in self._batches():
            self.outcome.tokens += sum(lengths)
            self.outcome.micro_batches += len(cut(lengths, self.request.token_budget, packed=True))

    def _batches(self) -> Iterator[list[int]]:
        """Lengths from the longest of the rows that may share micro-batches."""
        for step in range(self.case.steps):
            of_trials = [
                [len(job.rows[index].ids) for index in global_batch(len(job.rows), self.case.batch, job.seed, 1, step)]
                for job in self.jobs
            ]
            shared = (
                [[length for lengths in of_trials for length in lengths]]
                if self.request.way == "together"
                else of_trials
            )
            yield from (sorted(lengths, reverse=True) for lengths in shared)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    def _peak(self) -> int:
        """Most bytes that the process (or, on a GPU, torch's allocator) ever held."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def requests_of(way: str, adapters: int, request: Request) -> list[Request]:
    """The processes of a run."""
    trials = list(range(adapters))
    if way != "concurrent":
        return [replace(request, way=way, trials=trials)]
    threads = max(1, request.threads // adapters)
    return [replace(request, way=way, trials=[trial], threads=threads) for trial in trials]


def run(requests: list[Request]) -> list[Outcome]:
    """The outcomes of processes that start to train together."""
    processes = []
    for request in requests:
        command = [sys.executable, __file__, json.dumps(asdict(request))]
        environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(request.threads)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    for process in processes:
        while process.stdout.readline().strip() not in ("ready", ""):
            pass
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    found = []
    for process, request in zip(processes, requests, strict=True):
        output = process.communicate()[0]
        if process.returncode != 0:
            raise SystemExit(f"exit code {process.returncode} on {request}")
        found.append(Outcome(**json.loads(output.splitlines()[-1])))
    return found


def tokens_per_second(outcomes: list[Outcome]) -> float:
    """Real tokens of all processes, from the first start to the last stop less the time to make adapters."""
    seconds = max(one.stop for one in outcomes) - min(one.start for one in outcomes)
    return sum(one.tokens for one in outcomes) / (seconds - max(one.setup_s for one in outcomes))


def loss_difference(together: Outcome, sequence: Outcome) -> float:
    """Largest relative difference of a trial's loss at a step."""
    return max(
        abs(mine - theirs) / abs(theirs)
        for ours, others in zip(together.losses, sequence.losses, strict=True)
        for mine, theirs in zip(ours, others, strict=True)
    )


def adapter_difference(folder: Path) -> float:
    """Largest difference of a trained adapter, all its matrices as one vector, relative to its norm."""
    together, sequence = (load_file(folder / f"{way}.safetensors") for way in ("together", "sequence"))
    assert together.keys() == sequence.keys(), "adapters have other names"
    squares: dict[str, list[tuple[float, float]]] = {}
    for name, matrix in sequence.items():
        pair = (np.linalg.norm(together[name] - matrix) ** 2, np.linalg.norm(matrix) ** 2)
        squares.setdefault(name.partition(".")[0], []).append(pair)
    return max(float(np.sqrt(np.divide(*np.sum(pairs, axis=0)))) for pairs in squares.values())


def measure(adapters: int, options: argparse.Namespace, request: Request) -> dict[str, Any]:
    """All repeats of one case and number of adapters, ways taking turns."""
    ways = ["sequence", "together", *(["concurrent"] if adapters in options.concurrent else [])]
    runs: dict[str, list[list[Outcome]]] = {way: [] for way in ways}
    equality: dict[str, float] = {}
    for _ in range(options.repeats):
        for way in ways:
            runs[way].append(run(requests_of(way, adapters, request)))
        if not equality:
            losses = loss_difference(runs["together"][0][0], runs["sequence"][0][0])
            equality = {"losses": losses, "adapters": adapter_difference(Path(request.folder))}
            if options.dtype == "float32" and any(equality[what] > most for what, most in TOLERANCE.items()):
                raise SystemExit(f"together differs from one after another by {equality}: nothing to compare")
    return {**request.case, "adapters": adapters, "largest_difference": equality, **summary(runs)}


def summary(runs: dict[str, list[list[Outcome]]]) -> dict[str, Any]:
    """Medians of each way, and what together is beside the others."""
    measured = {}
    for way, repeats in runs.items():
        speeds = [tokens_per_second(outcomes) for outcomes in repeats]
        peaks = [sum(one.peak_bytes for one in outcomes) for outcomes in repeats]
        loaded = median(repeats[0][0].loaded_bytes for repeats in runs.values())
        first = repeats[0]
        measured[way] = {
            "tokens_per_s": round(median(speeds), 1),
            "all_tokens_per_s": [round(speed, 1) for speed in speeds],
            "peak_gib": round(median(peaks) / 2**30, 3),
            "memory_gib": round((median(peaks) - loaded) / 2**30, 3),
            "micro_batches": sum(one.micro_batches for one in first),
            "setup_s": round(median(max(one.setup_s for one in outcomes) for outcomes in repeats), 3),
        }
    mine = measured["together"]
    others = {way: values for way, values in measured.items() if way != "together"}
    return {
        "tokens": sum(one.tokens for one in runs["sequence"][0]),
        "measured": measured,
        "times_the_tokens_per_s_of": {
            way: round(mine["tokens_per_s"] / values["tokens_per_s"], 3) for way, values in others.items()
        },
        "times_the_peak_of": {way: round(mine["peak_gib"] / values["peak_gib"], 3) for way, values in others.items()},
    }


def print_line(result: dict[str, Any]) -> None:
    """One line of the table a case and number of adapters."""
    cells = [f"{result['size']:6}{result['batch']:6}{result['adapters']:4}"]
    for way in ("sequence", "together", "concurrent"):
        values = result["measured"].get(way)
        if values is not None:
            ratio = result["times_the_tokens_per_s_of"].get(way)
            shown = f" (x{ratio:.2f})" if ratio else ""
            cells.append(f"{way} {values['tokens_per_s']:7,.0f}/s{shown:8} {values['memory_gib']:6.2f} GiB")
    print("   ".join(cells) + f"   differ by {max(result['largest_difference'].values()):.0e}", flush=True)


def main(options: argparse.Namespace) -> None:
    """Measure every case and write the result."""
    about = circumstances("tokenizers")
    print("size   batch   K   tokens/s (together has x times as many), memory beyond one base")
    results = []
    for size in dict.fromkeys(case.size for case in options.cases):
        cases = [case for case in options.cases if case.size == size]
        with tempfile.TemporaryDirectory() as folder:
            rows = max(case.batch * case.steps for case in cases)
            material = {"folder": folder, "data": options.data, "datasets": DATASETS, "size": size, "rows": rows}
            run_script("training_material.py", material)
            for case in cases:
                for adapters in options.adapters:
                    shared = {name: getattr(options, name) for name in ("device", "dtype", "token_budget", "term")}
                    settings = {"learning_rate": options.learning_rate, "threads": options.threads}
                    request = Request("", [], asdict(case), folder, **shared, **settings)
                    results.append(measure(adapters, options, request))
                    print_line(results[-1])
    chosen = {name: value for name, value in vars(options).items() if name not in ("out", "data", "cases")}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**about, "settings": chosen, "cases": results}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True, help="folder of the three instruction datasets")
    default = [Case("small", 32, 2), Case("small", 4, 8)]
    parser.add_argument("--cases", nargs="+", type=Case.parse, default=default, help="SIZE:BATCH:STEPS")
    parser.add_argument("--adapters", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--concurrent", nargs="*", type=int, default=[2], help="of them, measured side by side as well")
    parser.add_argument("--term", default="masked", choices=list(TERMS))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of a run, shared out among its processes")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--token-budget", type=int, default=4096)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1].startswith("{"):
        print(json.dumps(asdict(Process(Request(**json.loads(sys.argv[1]))).run())))
    else:
        main(parse())
