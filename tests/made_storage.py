"""A storage as a run leaves it, without the run: made checkpoints of every kept epoch, base models and tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysft.spec.grid import Trial, expand
from raysft.spec.plan import model_key, trial_subject
from raysft.spec.sweep import Sweep, resolved_yaml
from raysft.store.checkpoints import write_folder
from raysft.store.layout import Storage, checkpoint_folder, model_folder, open_storage
from raysft.store.schema import TABLES

Row = dict[str, Any]
MACHINE = "/home/somebody/where-it-was-trained"
CHANCE = 0.25


def make_storage(sweep: Sweep) -> Storage:
    """Write everything; weights are bytes that name their checkpoint."""
    storage = open_storage(sweep.storage)
    trials = expand(sweep)[0]
    for model in sweep.models:
        if model.micro is not None:
            write_folder(storage, model_folder(model_key(model)), _base, {})
    for trial in trials:
        for epoch in trial.measured:
            write_folder(storage, checkpoint_folder(trial.key, epoch), _checkpoint(sweep, trial, epoch), {})
    write_tables(storage, sweep, list(score_rows(sweep)))
    storage.write_bytes(resolved_yaml(sweep).encode(), "sweep.yaml")
    return storage


def score_rows(sweep: Sweep) -> Iterator[Row]:
    """The base scores 0.2 on every task; a checkpoint more with every epoch, the first of the sweep's trials most."""
    for task in sweep.evaluation.tasks:
        yield from (_score({"model": model.name, "epoch": 0}, task, 0.2) for model in sweep.models)
        for at, trial in enumerate(expand(sweep)[0]):
            for epoch in trial.measured:
                yield _score(trial_subject(trial, epoch).as_row(), task, round(0.5 + 0.1 * epoch - 0.02 * at, 4))


def write_tables(storage: Storage, sweep: Sweep, scores: list[Row], **more: list[Row]) -> None:
    """Every table of the sweep; `more` are rows of others by name."""
    rows = {"scores": scores, **_records(sweep), **more}
    for name, schema in TABLES.items():
        table = pa.Table.from_pylist(rows.get(name, []), schema=schema)
        folder = storage.local_path("tables")
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / f"{name}.parquet")


def _records(sweep: Sweep) -> dict[str, list[Row]]:
    trials, training, costs = [], [], []
    for model in sweep.models:
        trials.append({"model": model.name, "epoch": 0, "kind": "base", "state": "done", "diverged": False})
    for trial in expand(sweep)[0]:
        row = trial_subject(trial, trial.epochs).as_row()
        trials.append({**row, "kind": "fine-tuning", "state": "done", "diverged": False, "rows": 32})
        for epoch in range(1, trial.epochs + 1):
            losses = {"at_epoch": epoch, "step": 2 * epoch, "loss": 3.0 / epoch, "rows": 32, "supervised_tokens": 64}
            training.append({**row, **losses})
        costs.append({**row, "stage": "train", "key": trial.key, "wall_s": 1.0, "host": "a-host-of-nobody"})
    failure = {
        **costs[0],
        "attempt": 1,
        "error": "OSError",
        "message": f"no {MACHINE}",
        "log": "1.log",
        "resolved": True,
    }
    failure = {name: failure[name] for name in failure if name in TABLES["failures"].names}
    return {"trials": trials, "training": training, "costs": costs, "failures": [failure]}


def _score(subject: Row, task: str, value: float) -> Row:
    choice = task.endswith("choice")
    return {
        **subject,
        "task": task,
        "metric": "acc,none" if choice else "exact_match,strip",
        "value": value,
        "stderr": 0.04,
        "n": 100,
        "higher_is_better": True,
        "chance": CHANCE if choice else None,
        "unextracted": 0.0,
        "bits_per_byte": 1.5,
    }


def _base(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"base " * 4000)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "tokenizer_config.json").write_text("{}")


def _checkpoint(sweep: Sweep, trial: Trial, epoch: int) -> Any:
    weights = f"{trial.key} {epoch} ".encode() * 1000

    def save(folder: Path) -> None:
        if sweep.method(trial.method).kind == "full":
            (folder / "config.json").write_text(json.dumps({"model_type": "llama", "_name_or_path": MACHINE}))
            (folder / "generation_config.json").write_text("{}")
            (folder / "model.safetensors").write_bytes(weights)
        else:
            config = {"peft_type": "LORA", "base_model_name_or_path": MACHINE, "revision": None}
            (folder / "adapter_config.json").write_text(json.dumps(config))
            (folder / "adapter_model.safetensors").write_bytes(weights)
            (folder / "README.md").write_text(f"peft's own card, of {MACHINE}")

    return save
