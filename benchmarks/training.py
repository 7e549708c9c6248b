"""Tokens a second and peak memory of raysft's trainer beside TRL's SFTTrainer and `transformers.Trainer`.

    python benchmarks/training.py benchmarks/results/training.json --data FOLDER
    python benchmarks/training.py OUT --data FOLDER --device cuda --dtype bfloat16 --model-size 0.5b --peak-tflops 989

FOLDER holds alpaca_en_1k, code_alpaca_2k and gsm8k_train as json or jsonl. The model has random weights, its tokenizer
is trained on the rows; nothing comes from a hub. Every run is a process of its own, contenders take turns, and ratios
are of medians. In fp32 the losses of every step must agree to 1e-5 with raysft's, or there is no result. Tokens are the
real ones of the rows, so padding counts for nobody. TRL computes activations a second time by default (gradient
checkpointing); `trl_no_checkpointing` and `trl_packing_no_checkpointing` are TRL without it. Needs neither Ray nor, if
it is told so or finds none, TRL.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from machine import circumstances

HERE = Path(__file__).parent
TOLERANCE = 1e-5  # of a step's loss in fp32, relative
PEERS = ("trl", "trl_packing", "transformers", "trl_no_checkpointing", "trl_packing_no_checkpointing")
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
NOTES = {
    "trl": "SFTTrainer with its defaults: micro-batches of 8 padded rows, 4 accumulated, gradient checkpointing",
    "trl_packing": "its own batches of about as many tokens a step; without flash attention (CPU) one pack of 512 "
    "tokens a micro-batch under SDPA, because end to end they would attend quadratically",
    "transformers": "Trainer with DataCollatorForSeq2Seq, 8 x 4, no gradient checkpointing: its defaults",
    "memory": "peak of the process less what it held before the model and less one copy of the weights; raysft's "
    "includes the original weights that the next trial starts from",
}

Outcome = dict[str, Any]


def run_script(name: str, request: dict[str, Any]) -> str:
    """Output of a script of this folder in a process of its own; its errors are shown."""
    command = [sys.executable, str(HERE / name), json.dumps(request)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT})
    if done.returncode != 0:
        raise SystemExit(f"{name} failed with exit code {done.returncode} on {request}")
    return done.stdout


def run_contender(request: dict[str, Any]) -> Outcome:
    """The outcome of one run; see `training_contenders.Outcome`."""
    outcome: Outcome = json.loads(run_script("training_contenders.py", request).splitlines()[-1])
    return outcome


def tokens_per_second(outcome: Outcome, warmup: int) -> float:
    """Real tokens a second of the steps after the warm-up."""
    first, last = min(warmup, len(outcome["at"]) - 1) - 1, len(outcome["at"]) - 1
    return float((outcome["tokens"][last] - outcome["tokens"][first]) / (outcome["at"][last] - outcome["at"][first]))


def loss_difference(outcome: Outcome, reference: Outcome) -> float:
    """Largest relative difference of the losses of a step."""
    pairs = zip(outcome["losses"], reference["losses"], strict=True)
    return float(max(abs(theirs - ours) / abs(ours) for theirs, ours in pairs))


def measure_case(options: argparse.Namespace, request: dict[str, Any], contenders: list[str]) -> dict[str, Any]:
    """All repeats of one dataset and method, contenders taking turns."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in contenders}
    equality = {name: 0.0 for name in contenders if name != "raysft" and "packing" not in name}
    for repeat in range(options.repeats):
        for name in contenders:
            outcomes[name].append(run_contender({**request, "contender": name}))
            if name in equality:
                equality[name] = max(equality[name], loss_difference(outcomes[name][-1], outcomes["raysft"][0]))
                if options.dtype == "float32" and equality[name] > TOLERANCE:
                    print_losses(outcomes, request)
                    raise SystemExit(f"losses of {name} differ by {equality[name]:.1e}: nothing to compare")
            speed = tokens_per_second(outcomes[name][-1], options.warmup)
            print(f"  {repeat + 1}/{options.repeats} {name}: {speed:,.0f} tokens/s", flush=True)
        if repeat == 0:
            print_losses(outcomes, request)
    return summary(outcomes, equality, options, request)


def summary(
    outcomes: dict[str, list[Outcome]], equality: dict[str, float], options: argparse.Namespace, request: dict[str, Any]
) -> dict[str, Any]:
    """Medians, ratios and equality of a case."""
    ours = outcomes["raysft"][0]
    flops_per_token = ours["rows_flops"] / ours["rows_tokens"]
    measured = {}
    for name, runs in outcomes.items():
        speeds = [tokens_per_second(run, options.warmup) for run in runs]
        measured[name] = {
            "tokens_per_s": round(median(speeds), 1),
            "all_tokens_per_s": [round(speed, 1) for speed in speeds],
            "peak_gib": round(median(run["peak_bytes"] for run in runs) / 2**30, 3),
            "memory_gib": round(median(run["peak_bytes"] - run["loaded_bytes"] for run in runs) / 2**30, 3),
        }
        if options.peak_tflops:
            measured[name]["mfu"] = round(median(speeds) * flops_per_token / options.peak_tflops / 1e12, 4)
    best = measured["raysft"]
    return {
        "dataset": request["dataset"],
        "method": request["method"],
        "tokens": ours["rows_tokens"],
        "supervised_share": round(ours["rows_supervised"] / ours["rows_tokens"], 3),
        "flops_per_token": round(flops_per_token),
        "largest_loss_difference": equality,
        "losses": {name: outcomes[name][0]["losses"] for name in ("raysft", *equality)},
        "measured": measured,
        "times_the_tokens_per_s_of": {
            name: round(best["tokens_per_s"] / peer["tokens_per_s"], 2)
            for name, peer in measured.items()
            if name != "raysft"
        },
        "share_of_the_memory_of": {
            name: round(best["memory_gib"] / peer["memory_gib"], 2)
            for name, peer in measured.items()
            if name != "raysft" and peer["memory_gib"] > 0
        },
    }


def print_losses(outcomes: dict[str, list[Outcome]], request: dict[str, Any]) -> None:
    """Losses of each step of the first run, side by side."""
    shown = [name for name, runs in outcomes.items() if runs and "packing" not in name]
    print(f"loss of each step, {request['dataset']}, {request['method']}")
    print("  step " + "".join(f"{name:>22}" for name in shown))
    for step, losses in enumerate(zip(*(outcomes[name][0]["losses"] for name in shown), strict=True), start=1):
        print(f"  {step:4} " + "".join(f"{loss:22.7f}" for loss in losses))


def print_table(cases: list[dict[str, Any]]) -> None:
    """One line a case and contender."""
    print(f"{'dataset':16}{'method':8}{'contender':30}{'tokens/s':>10}{'ours is':>9}{'memory GiB':>12}{'MFU':>8}")
    for case in cases:
        for name, values in case["measured"].items():
            ratio = case["times_the_tokens_per_s_of"].get(name)
            shown = f"{ratio:.2f}x" if ratio else ""
            mfu = f"{values['mfu']:.1%}" if "mfu" in values else ""
            print(
                f"{case['dataset']:16}{case['method']:8}{name:30}{values['tokens_per_s']:10,.0f}{shown:>9}"
                f"{values['memory_gib']:12.2f}{mfu:>8}"
            )


def contenders_of(options: argparse.Namespace) -> list[str]:
    """raysft and the peers that are asked for and there."""
    there = importlib.util.find_spec("trl") is not None
    if not there:
        print("TRL is not installed: measuring raysft and transformers.Trainer")
    return ["raysft", *(name for name in options.peers if there or not name.startswith("trl"))]


def main(options: argparse.Namespace) -> None:
    """Measure every case and write the result."""
    about = circumstances("trl", "accelerate", "datasets", "tokenizers")
    contenders = contenders_of(options)
    steps = options.warmup + options.steps
    with tempfile.TemporaryDirectory() as folder:
        material = {"folder": folder, "data": options.data, "datasets": options.datasets, "size": options.model_size}
        run_script("training_material.py", {**material, "rows": steps * 32})
        shared = {"folder": folder, "steps": steps, "device": options.device, "dtype": options.dtype}
        settings = {"token_budget": options.token_budget, "learning_rate": options.learning_rate}
        cases = []
        for dataset in options.datasets:
            for method in options.methods:
                print(f"{dataset}, {method}")
                request = {**shared, **settings, "dataset": dataset, "method": method}
                cases.append(measure_case(options, request, contenders))
    chosen = {name: value for name, value in vars(options).items() if name not in ("out", "data")}
    result = {**about, "settings": {**chosen, "batch_size": 32, "max_length": 512}, "notes": NOTES, "cases": cases}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print_table(cases)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True, help="folder of the three instruction datasets")
    parser.add_argument("--datasets", nargs="+", default=["all"], help="all, or names of single datasets")
    parser.add_argument("--methods", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--model-size", default="small", choices=["tiny", "small", "0.5b", "1.5b"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps that are timed")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them, at least 1")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--token-budget", type=int, default=4096)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="of the device in that dtype: prints MFU")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
