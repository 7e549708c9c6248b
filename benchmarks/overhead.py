"""Seconds around a trial that are not training: raysft's driver beside Ray's documented recipe, in one run.

    python benchmarks/overhead.py benchmarks/results/overhead.json

The recipe is the one of Ray's user guide for tuning with Ray Train: a Tune function trial that calls
`TorchTrainer(...).fit()` with one worker. Both run the same trials (`raysft.trial.run_unit`: a full fine-tuning of a
tiny pretrained base on generated rows, nothing measured) one after another on a Ray of their own with two CPUs, and
take turns. A trial's seconds are those from the end of the trial before to its own end; of these, its training is what
`run_unit` says. The first trial of each run starts processes and is not counted. Losses of both must be the same to the
last bit, or there is no result.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq
import torch
from machine import circumstances

from raysft.session import Session
from raysft.spec.plan import Plan, make_plan
from raysft.spec.sweep import Sweep, parse_sweep
from raysft.store.layout import open_storage
from raysft.trial import run_unit

AIM = 15.0  # times less
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "TQDM_DISABLE": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


def sweep_of(storage: str, trials: int) -> Sweep:
    """So many trials that differ in their seed."""
    content = {
        "name": "overhead",
        "storage": storage,
        "models": [{"name": "tiny", "micro": {"family": "llama", "corpus": {"capitals": 1.0}, "steps": 8}}],
        "datasets": [{"name": "capitals", "generated": {"skill": "capitals", "rows": 64}}],
        "methods": [{"name": "full", "kind": "full"}],
        "training": {"batch_size": 16, "max_length": 128, "learning_rate": 1e-3},
        "grid": [{"sizes": [64], "epochs": [4], "seeds": list(range(trials)), "measure": "last"}],
        "evaluation": {},
        "probes": dict.fromkeys(("perplexity", "weight_change", "intrinsic_dimension", "log_likelihood")),
        "checkpoints": {"keep": "last"},
        "resources": {"cpus_per_worker": 2},
    }
    return parse_sweep(content, "benchmark")


def plan_of(storage: str, trials: int) -> Plan:
    """The plan of a storage in which the base is pretrained."""
    sweep = sweep_of(storage, trials)
    opened = open_storage(sweep.storage)
    plan, session = make_plan(sweep, opened), Session(sweep, torch.device("cpu"))
    for unit in plan.missing_units():
        if unit.kind == "pretrain":
            run_unit(session, unit, unit.works)
    return make_plan(sweep, opened)


def start_ray() -> None:
    """A Ray of two CPUs."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
        runtime_env={"env_vars": ENVIRONMENT},
    )


def run_ours(plan: Plan) -> list[dict[str, float]]:
    """End and training seconds of each trial, by the driver of a sweep."""
    from raysft.cluster.retries import UnitDeath
    from raysft.cluster.sweep import UnitOutcome, run_sweep

    ended: list[dict[str, float]] = []

    def watch(outcome: UnitOutcome | UnitDeath) -> None:
        assert isinstance(outcome, UnitOutcome)
        assert not outcome.failures
        ended.append({"at": time.monotonic(), "train_s": outcome.seconds["train"]})

    start_ray()
    run_sweep(plan, open_storage(plan.sweep.storage), watch)
    return ended


def run_recipe(plan: Plan) -> list[dict[str, float]]:
    """End and training seconds of each trial, by Ray's recipe."""
    from ray import train, tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    units = {unit.key: unit for unit in plan.missing_units()}
    ended: list[dict[str, float]] = []

    def trained_in(unit: str) -> Path:
        return Path(plan.sweep.storage) / f"{unit}.seconds"

    def loop(config: Mapping[str, Any]) -> None:
        unit = units[config["unit"]]
        torch.set_num_threads(2)
        report = run_unit(Session(plan.sweep, torch.device("cpu")), unit, unit.works)
        assert not report.failures
        trained_in(unit.key).write_text(str(report.seconds["train"]))
        train.report({})

    def trial(config: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            TorchTrainer(
                loop,
                train_loop_config=config,
                scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
                run_config=RunConfig(storage_path=scratch, name=config["unit"]),
                torch_config=TorchConfig(backend="gloo"),
            ).fit()
        tune.report({"train_s": float(trained_in(config["unit"]).read_text())})

    class Clock(tune.Callback):  # type: ignore[misc]  # Ray ships no types
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ended.append({"at": time.monotonic(), "train_s": trial.last_result["train_s"]})

    start_ray()
    with tempfile.TemporaryDirectory() as scratch:
        tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            param_space={"unit": tune.grid_search(list(units))},
            tune_config=tune.TuneConfig(max_concurrent_trials=1),
            run_config=tune.RunConfig(storage_path=scratch, name="recipe", verbose=0, callbacks=[Clock()]),
        ).fit()
    return ended


WAYS = {"raysft": run_ours, "recipe": run_recipe}


def overheads(ended: list[dict[str, float]]) -> list[float]:
    """Seconds of each trial but the first that are not its training."""
    return [after["at"] - before["at"] - after["train_s"] for before, after in itertools.pairwise(ended)]


def losses(storage: Path) -> list[float]:
    """Loss of the last epoch of every trial, in the order of their keys."""
    files = sorted((storage / "results" / "train").glob("*.parquet"))
    return [pq.read_table(file).column("loss").to_pylist()[-1] for file in files]


def measure(options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """(overheads by way, training seconds by way) of all repeats, ways taking turns."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    training: dict[str, list[float]] = {way: [] for way in WAYS}
    expected: list[float] | None = None
    for repeat in range(options.repeats):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as storage:
                command = [
                    sys.executable,
                    __file__,
                    "--way",
                    way,
                    "--storage",
                    storage,
                    "--trials",
                    str(options.trials),
                ]
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **ENVIRONMENT}
                )
                ended = json.loads(done.stdout.splitlines()[-1])
                mine = losses(Path(storage))
            expected = expected or mine
            if mine != expected or len(ended) != options.trials:
                raise SystemExit(f"{way}: losses {mine}, expected {expected}: nothing to compare")
            found[way] += overheads(ended)
            training[way] += [one["train_s"] for one in ended[1:]]
            print(f"  {repeat + 1}/{options.repeats} {way}: {median(overheads(ended)):.2f} s", flush=True)
    return found, training


def main(options: argparse.Namespace) -> None:
    """Measure and write the result."""
    about = circumstances()
    found, training = measure(options)
    medians = {way: median(values) for way, values in found.items()}
    result = {
        **about,
        "settings": {"trials": options.trials, "repeats": options.repeats},
        "seconds_not_training": {way: round(value, 3) for way, value in medians.items()},
        "seconds_of_training": {way: round(median(values), 3) for way, values in training.items()},
        "all_seconds_not_training": {way: [round(value, 3) for value in values] for way, values in found.items()},
        "times_less_than_the_recipe": round(medians["recipe"] / medians["raysft"], 1),
        "aim": AIM,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for way, value in medians.items():
        print(f"{way:8}{value:8.2f} s of a warm trial are not training (lowest {min(found[way]):.2f})")
    print(f"{result['times_less_than_the_recipe']} times less (aim {AIM})")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--trials", type=int, default=5, help="of each run; the first is not counted")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--storage", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    asked = parse()
    if asked.way:
        print(json.dumps(WAYS[asked.way](plan_of(asked.storage, asked.trials))))
    else:
        main(asked)
