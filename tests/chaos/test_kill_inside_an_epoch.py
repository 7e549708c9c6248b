"""`kill -9` of a training, inside an epoch and on its boundary, then the same trial in a new process, to its end.

Whatever the kill left behind, the end is that of an undisturbed run to the last bit, and nothing is committed twice.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
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

pytestmark = pytest.mark.chaos

# Three epochs of four steps: 6 is inside the second, 4 and 8 are boundaries.
# For each method the kills in turn: when, with how many steps done, the step of the newest state, the measured epochs.
KILLS = {
    "full": [("stepped", 6, 5, [1]), ("kept", 8, 8, [1, 2])],
    "lora": [("writing", 6, 5, [1]), ("stepped", 8, 7, [1, 2])],
}
TIMEOUT_S = 120


def _write_sweep(folder: Path, method: str) -> Path:
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
def _child(sweep: Path, *stop: str) -> Iterator[subprocess.Popen[str]]:
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


def _finish(sweep: Path) -> int:
    """Run to the end; the step from which the training went on."""
    with _child(sweep) as process:
        said, _ = process.communicate()
    assert process.returncode == 0, said[-4000:]
    return _first_step(said.splitlines())


def _kill_at(sweep: Path, moment: str, steps: int) -> int:
    """Run until the process stands still there, and kill it; the step from which the training had gone on."""
    said: list[str] = []
    with _child(sweep, moment, str(steps)) as process:
        assert process.stdout is not None
        for line in process.stdout:  # ends with the process, which the watchdog bounds
            said.append(line.strip())
            if said[-1] == f"stopped {moment} {steps}":
                os.kill(process.pid, signal.SIGKILL)
                break
        else:
            pytest.fail("\n".join(said)[-4000:])
    assert process.returncode == -signal.SIGKILL
    return _first_step(said)


def _first_step(said: list[str]) -> int:
    return next(int(line.removeprefix("from ")) for line in said if line.startswith("from "))


def _unit(sweep: Path) -> Unit:
    """The fine-tuning of the sweep."""
    return next(unit for unit in make_plan(load_sweep(sweep)).units if unit.kind == "fine_tune")


def _storage(sweep: Path) -> Storage:
    return open_storage(load_sweep(sweep).storage)


def _stamps(sweep: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every committed result and every file of a finished checkpoint, by path."""
    root = sweep.parent / "storage"
    files = [*root.glob("results/*/*.parquet"), *root.glob("checkpoints/*/epoch-*/*")]
    return {str(file): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def _measured_epochs(sweep: Path) -> list[int | None]:
    storage = _storage(sweep)
    works = [work for work in _unit(sweep).works if storage.exists(result_path(work.stage, work.key))]
    return [work.subject.epoch for work in works]


def _assert_same_outcome(killed: Path, straight: Path) -> None:
    """Results equal but for when and where they were made, and weights of every epoch, to the last bit."""
    for work in _unit(straight).works:
        mine, theirs = (read_result(_storage(sweep), work.stage, work.key) for sweep in (killed, straight))
        assert mine.replace_schema_metadata() == theirs.replace_schema_metadata(), (work.stage, work.subject.epoch)
    for epoch in (1, 2, 3):
        folders = [
            _storage(sweep).local_path(checkpoint_folder(_unit(sweep).key, epoch)) for sweep in (killed, straight)
        ]
        names = [sorted(path.name for path in folder.glob("*.safetensors")) for folder in folders]
        assert names[0] == names[1] != []
        for name in names[0]:
            mine, theirs = (load_file(folder / name) for folder in folders)
            assert mine.keys() == theirs.keys()
            assert [tensor for tensor in theirs if not torch.equal(mine[tensor], theirs[tensor])] == [], (epoch, name)


@pytest.mark.parametrize("method", KILLS)
def test_a_killed_training_ends_as_if_undisturbed(method: str, tmp_path: Path) -> None:
    straight, killed = (_write_sweep(tmp_path / name, method) for name in ("straight", "killed"))
    assert _finish(straight) == 0
    for part in ("models", "results/pretrain"):
        shutil.copytree(straight.parent / "storage" / part, killed.parent / "storage" / part)

    began, stamps = 0, _stamps(killed)
    for moment, steps, kept, measured in KILLS[method]:
        assert _kill_at(killed, moment, steps) == began
        assert _storage(killed).names("checkpoints", _unit(killed).key)[-1] == f"resume-{kept:08d}-0of1"
        assert _measured_epochs(killed) == measured
        assert stamps.items() <= _stamps(killed).items(), "something finished was written again"
        began, stamps = kept, _stamps(killed)

    assert _finish(killed) == began
    assert stamps.items() <= _stamps(killed).items(), "something finished was written again"
    _assert_same_outcome(killed, straight)
    assert _storage(killed).names("checkpoints", _unit(killed).key) == ["epoch-0001", "epoch-0002", "epoch-0003"]
