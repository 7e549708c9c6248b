"""Texts a second through Ray Data beside a plain batched loop in one process, over several checkpoints of one base.

    python benchmarks/embed.py --data FOLDER OUT.json

FOLDER holds gsm8k_train.jsonl, code_alpaca_2k and alpaca_en_1k. The model is a random Llama of 6 x 256, its checkpoints
differ in one norm. Each contender embeds the same texts under each checkpoint, every layer, mean over tokens, and
writes them as Parquet; each in a process of its own with one thread for the model, in turn, `--repeats` times:

- `raysft`: `raysft.cluster.embed` on a Ray of two CPUs, one for the actor and one for what writes;
- `sorted loop`: what the actor does, in a loop without Ray: batches of nearly one length, layers pooled as they pass;
- `plain loop`: batches of 64 in the data's order, all hidden states of a batch held and then pooled.

Counted is what comes once streaming, which is what more texts cost: the seconds of all checkpoints less the seconds of
the first alone, each from the call to the last committed result. (Moments at which single checkpoints are done would
flatter Ray Data, in which several are under way at a time.) The plain loop takes part once. All must have the same
states to 1e-4, or there is no result.
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
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from machine import circumstances

from raysft.models.load import pad_id
from raysft.models.methods import apply_method
from raysft.probes.pooling import pooled_layers
from raysft.session import Session
from raysft.spec.plan import Plan, make_plan
from raysft.spec.sweep import parse_sweep
from raysft.store.checkpoints import delete_folder, local_folder, write_folder
from raysft.store.layout import checkpoint_folder, embeddings_folder, open_storage
from raysft.store.parts import read_parts

AIM = 1.15  # times the seconds of the sorted loop
BATCH = 64
CONTENDERS = ("raysft", "sorted loop", "plain loop")


def plan_of(folder: Path, texts: int, checkpoints: int) -> Plan:
    """The plan of a sweep whose trials differ in their seed, on the material in `folder`."""
    content = {
        "name": "embed",
        "storage": str(folder / "storage"),
        "models": [{"name": "small", "path": str(folder / "model")}],
        "datasets": [{"name": "rows", "path": str(folder / "rows.jsonl")}],
        "methods": [{"name": "full", "kind": "full"}],
        "training": {"batch_size": 32, "max_length": 512, "learning_rate": 1e-5},
        "grid": [{"sizes": [texts], "epochs": [1], "seeds": list(range(checkpoints))}],
        "evaluation": {},
        "probes": {
            **dict.fromkeys(("perplexity", "weight_change", "log_likelihood", "contamination")),
            "intrinsic_dimension": {"texts": texts, "batch_size": BATCH},
        },
    }
    sweep = parse_sweep(content, "benchmark")
    return make_plan(sweep, open_storage(sweep.storage))


def make_material(folder: Path, data: Path, texts: int, checkpoints: int) -> None:
    """Model, rows, tokens and checkpoints."""
    request = {"folder": str(folder), "data": str(data), "datasets": ["all"], "size": "small", "rows": texts}
    subprocess.run([sys.executable, Path(__file__).with_name("training_material.py"), json.dumps(request)], check=True)
    rows = json.loads((folder / "all.json").read_text())
    lines = [json.dumps({"instruction": asked, "output": reply}) for asked, reply in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    plan = plan_of(folder, texts, checkpoints)
    session = Session(plan.sweep, torch.device("cpu"))
    base = session.base("small")
    for number, trial in enumerate(plan.trials):
        session.rows(trial, base)
        tuned = apply_method(base, plan.sweep.method("full"), 0)
        with torch.no_grad():
            next(p for name, p in tuned.model.named_parameters() if "norm" in name).mul_(1 + number / 8)
        write_folder(session.storage, checkpoint_folder(trial.key, 1), tuned.save, {})
        tuned.detach()


def through_ray(plan: Plan) -> float:
    """Seconds of the stream, on a Ray that has started."""
    import ray

    from raysft.cluster.embed import embed
    from raysft.cluster.subjects import subjects_of

    environment = {"RAY_AUTH_MODE": "disabled", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": environment},
    )
    storage = open_storage(plan.sweep.storage)
    works = [work for work in plan.missing_geometry() if work.subject.trial is not None]
    failures: list[dict[str, Any]] = []
    started = time.perf_counter()
    ((shape, subjects),) = subjects_of(plan, storage, works, failures)
    failures += embed(plan.sweep, storage, subjects, shape)
    assert not failures, failures
    return time.perf_counter() - started


def in_a_loop(plan: Plan, plain: bool, out: Path) -> float:
    """Seconds of a loop without Ray."""
    started = time.perf_counter()
    session = Session(plan.sweep, torch.device("cpu"))
    base = session.base("small")
    rows = list(session.rows(plan.trials[0], base))
    for trial in plan.trials:
        tuned = apply_method(base, plan.sweep.method("full"), 0)
        tuned.load(local_folder(session.storage, checkpoint_folder(trial.key, 1)))
        tuned.model.eval()
        if plain:
            states = plainly_pooled(tuned.model, rows, pad_id(base.tokenizer))
        else:
            budget = plan.sweep.training.token_budget
            states = pooled_layers(tuned.model, rows, pad_id(base.tokenizer), budget)
        tuned.detach()
        columns = [pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(s)) for s in states.swapaxes(0, 1)]
        names = [f"layer_{layer:03d}" for layer in range(len(columns))]
        pq.write_table(pa.table(columns, names=names), out / f"{trial.key}.parquet", compression="none")
    return time.perf_counter() - started


@torch.inference_mode()
def plainly_pooled(model: Any, rows: list[Any], pad: int) -> np.ndarray:
    """What one writes first: pad a batch, ask for all hidden states, take masked means."""
    parts = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        longest = max(len(row.ids) for row in batch)
        ids = torch.tensor([[*row.ids.tolist(), *[pad] * (longest - len(row.ids))] for row in batch])
        mask = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in batch])
        output = model.get_decoder()(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        weights = mask.unsqueeze(-1).float()
        pooled = [(state * weights).sum(dim=1) / weights.sum(dim=1) for state in output.hidden_states]
        parts.append(torch.stack(pooled, dim=1).numpy())
    return np.concatenate(parts)


def states_of(plan: Plan, out: Path, streamed: bool) -> list[np.ndarray]:
    """The first, middle and last layer of every checkpoint, in the order of the data."""
    found = []
    storage = open_storage(plan.sweep.storage)
    works = [work for work in plan.geometry if work.stage == "embed" and work.subject.trial is not None]
    keys = {work.subject.trial: work.key for work in works}
    for trial in plan.trials:
        for layer in ("layer_000", "layer_003", "layer_006"):
            if streamed:
                table = read_parts(storage, embeddings_folder(keys[trial.key]), ["text", layer])
                states = table[layer].combine_chunks().to_numpy_ndarray()[np.argsort(table["text"].to_numpy())]
            else:
                states = pq.read_table(out / f"{trial.key}.parquet")[layer].combine_chunks().to_numpy_ndarray()
            found.append(states)
    return found


def contend(name: str, folder: Path, texts: int, checkpoints: int) -> None:
    """One run of one contender: prints its seconds."""
    torch.set_num_threads(1)
    plan, out = plan_of(folder, texts, checkpoints), folder / name
    out.mkdir(exist_ok=True)
    print(through_ray(plan) if name == "raysft" else in_a_loop(plan, name == "plain loop", out))


def seconds(name: str, folder: Path, texts: int, checkpoints: int) -> float:
    """Seconds of one contender in a process of its own, from an empty storage."""
    forget(plan_of(folder, texts, checkpoints))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, __file__, "--contender", name, str(folder), str(texts), str(checkpoints)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return float(done.stdout.splitlines()[-1])


def forget(plan: Plan) -> None:
    """Take away what a stream left, for the next one."""
    storage = open_storage(plan.sweep.storage)
    for name in storage.names("embeddings"):
        delete_folder(storage, f"embeddings/{name}")
    storage.delete_tree("results", "embed")


def main(arguments: argparse.Namespace) -> None:
    runs: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_material(folder, arguments.data, arguments.texts, arguments.checkpoints)
        plan = plan_of(folder, arguments.texts, arguments.checkpoints)
        about = circumstances()
        states: dict[str, list[np.ndarray]] = {}
        for repeat in range(arguments.repeats):
            for name in CONTENDERS if repeat == 0 else CONTENDERS[:-1]:
                first = seconds(name, folder, arguments.texts, 1)
                every = seconds(name, folder, arguments.texts, arguments.checkpoints)
                runs[name].append(arguments.texts * (arguments.checkpoints - 1) / (every - first))
                states[name] = states_of(plan, folder / name, name == "raysft")
        off = {
            name: max(float(np.abs(a - b).max()) for a, b in zip(states[name], states["plain loop"], strict=True))
            for name in CONTENDERS
        }
    assert max(off.values()) < 1e-4, f"states differ: {off}"
    rates = {name: median(values) for name, values in runs.items()}
    result = {
        **about,
        "what": f"{arguments.texts} texts under each of {arguments.checkpoints} checkpoints",
        "largest_difference_of_states": off,
        "texts_per_second": {name: [round(value, 1) for value in values] for name, values in runs.items()},
        "median_texts_per_second": {name: round(value, 1) for name, value in rates.items()},
        "times_the_seconds_of_the_sorted_loop": round(rates["sorted loop"] / rates["raysft"], 3),
        "aim": AIM,
        "times_the_texts_per_second_of_the_plain_loop": round(rates["raysft"] / rates["plain loop"], 2),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    if sys.argv[1] == "--contender":
        contend(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("out", type=Path)
        parser.add_argument("--data", type=Path, required=True)
        parser.add_argument("--texts", type=int, default=600)
        parser.add_argument("--checkpoints", type=int, default=5)
        parser.add_argument("--repeats", type=int, default=3)
        main(parser.parse_args())
