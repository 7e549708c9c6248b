"""A sweep of one trial in a process that can be stopped at a given step, and what it left in the storage."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raysft.spec.plan import Unit, make_plan
from raysft.spec.sweep import load_sweep
from raysft.store.layout import Storage, checkpoint_folder, open_storage
from raysft.store.results import read_result, result_path
from tests.conftest import SMALL

TIMEOUT_S = 120


def write_sweep(folder: Path, method: str) -> Path:
    """One trial of three epochs of four steps, its weight change measured at the end of each."""
    content: dict[str, Any] = {**copy.deepcopy(SMALL), "storage": str(folder / "storage")}
    content["datasets"] = content["datasets"][:1]
    content["methods"] = [entry for entry in content["methods"] if entry["name"] == method]
    if method == "lora":
        content["methods"][0]["dropout"] = 0.1
    content["training"]["batch_size"] = 8
    content["grid"] = [{"sizes": [32], "epochs": [3], "measure": "every"}]
    content["evaluation"] = {}
    content["probes"] = {"perplexity": None, "intrinsic_dimension": None, "log_likelihood": None}
    folder.mkdir(parents=True)
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(content))
    return path


@contextmanager
def child(sweep: Path, *stop: str) -> Iterator[subprocess.Popen[str]]:
    """A process that works on the sweep; it is gone afterwards, and in any case after `TIMEOUT_S`."""
    command = [sys.executable, "-m", "tests.chaos.trial_to_kill", str(sweep), *stop]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        watchdog = threading.Timer(TIMEOUT_S, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def finish(sweep: Path) -> int:
    """Run to the end; the step from which the training went on."""
    with child(sweep) as process:
        said, _ = process.communicate()
    assert process.returncode == 0, said[-4000:]
    return _first_step(said.splitlines())


def kill_at(sweep: Path, moment: str, steps: int) -> int:
    """Run until the process stands still there, and kill it; the step from which the training had gone on."""
    with child(sweep, moment, str(steps)) as process:
        said = wait_until_still(process, moment, steps)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    return _first_step(said)


def wait_until_still(process: subprocess.Popen[str], moment: str, steps: int) -> list[str]:
    """Wait until the process stands still at that moment; what it said."""
    said: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:  # ends with the process, which the watchdog bounds
        said.append(line.strip())
        if said[-1] == f"stopped {moment} {steps}":
            return said
    pytest.fail("\n".join(said)[-4000:])


def _first_step(said: list[str]) -> int:
    return next(int(line.removeprefix("from ")) for line in said if line.startswith("from "))


def unit_of(sweep: Path) -> Unit:
    """The fine-tuning of the sweep."""
    return next(unit for unit in make_plan(load_sweep(sweep)).units if unit.kind == "fine_tune")


def storage_of(sweep: Path) -> Storage:
    return open_storage(load_sweep(sweep).storage)


def stamps_of(sweep: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every committed result and every file of a finished checkpoint, by path."""
    root = sweep.parent / "storage"
    files = [*root.glob("results/*/*.parquet"), *root.glob("checkpoints/*/epoch-*/*")]
    return {str(file): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def measured_epochs(sweep: Path) -> list[int | None]:
    storage = storage_of(sweep)
    works = [work for work in unit_of(sweep).works if storage.exists(result_path(work.stage, work.key))]
    return [work.subject.epoch for work in works]


def assert_same_outcome(killed: Path, straight: Path) -> None:
    """Results equal but for when and where they were made, and weights of every epoch, to the last bit."""
    for work in unit_of(straight).works:
        mine, theirs = (read_result(storage_of(sweep), work.stage, work.key) for sweep in (killed, straight))
        assert mine.replace_schema_metadata() == theirs.replace_schema_metadata(), (work.stage, work.subject.epoch)
    for epoch in (1, 2, 3):
        folders = [
            storage_of(sweep).local_path(checkpoint_folder(unit_of(sweep).key, epoch)) for sweep in (killed, straight)
        ]
        names = [sorted(path.name for path in folder.glob("*.safetensors")) for folder in folders]
        assert names[0] == names[1] != []
        for name in names[0]:
            mine, theirs = (load_file(folder / name) for folder in folders)
            assert mine.keys() == theirs.keys()
            assert [tensor for tensor in theirs if not torch.equal(mine[tensor], theirs[tensor])] == [], (epoch, name)
