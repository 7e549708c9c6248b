"""The process that answers for a checkpoint: it starts once, says what is wrong, and never outlives who asked it."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from raysft.evaluation import vllm_engine
from raysft.evaluation.vllm_engine import Sampled, VllmEngine, VllmError, last_error, why_missing
from raysft.evaluation.vllm_lm import Served
from raysft.spec.vllm import VllmSpec
from tests.invariants.vllm_interpreters import STAND_IN

pytestmark = pytest.mark.invariants

# Arguments of an engine of zeros, which starts at once.
DUMMY = {"dtype": "float32", "max_model_len": 1000, "tensor_parallel_size": 1, "seed": 0, "load_format": "dummy"}
ENDLESS = 10**8  # tokens, which it is still at when it is killed
PARENT = f"""
import time
from raysft.evaluation.vllm_engine import VllmEngine
from raysft.spec.vllm import VllmSpec
engine = VllmEngine(VllmSpec(), {DUMMY | {"tensor_parallel_size": 2}}, lambda folder: None)
print(engine.pid, engine.folder, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def _weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "config.json").write_text("{}")


def _row(is_over: Any, most: int = 500) -> Sampled:
    return Sampled(np.array([1, 2], dtype=np.int32), most, is_over, sampling={"temperature": 0.0})


def _gone(pids: list[int]) -> bool:
    """Whether none of them is there within half a minute; one that nobody waits for may stay as a zombie."""
    for _ in range(300):
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.1)
    return False


def test_its_interpreter_needs_nothing_but_vllm() -> None:
    imports = [node for node in ast.walk(ast.parse(vllm_engine._WORKER.read_text())) if isinstance(node, ast.Import)]
    froms = [node for node in ast.walk(ast.parse(vllm_engine._WORKER.read_text())) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names} | {str(node.module) for node in froms}
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {"vllm"}


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    engine = VllmEngine(VllmSpec(), DUMMY | {"tensor_parallel_size": 2}, _weights)
    assert engine.pid is not None
    pids = [engine.pid, *(child.pid for child in psutil.Process(engine.pid).children(recursive=True))]
    assert len(pids) == 2
    assert not list(engine.folder.glob("*.safetensors")), "they are loaded, and need no disk any more"
    rows = [_row(lambda added, most=most: len(added) == most) for most in range(1, 200)]
    engine.generate(rows)
    assert [row.added for row in rows] == [[0] * most for most in range(1, 200)]
    engine.end()
    assert _gone(pids)
    assert not list(tmp_path.iterdir())


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split()
        pids = [int(pid), *(child.pid for child in psutil.Process(int(pid)).children(recursive=True))]
        assert len(pids) == 2
        parent.kill()
    assert _gone(pids)
    assert not Path(folder).exists()
    assert not list(tmp_path.iterdir())


def test_one_that_is_killed_is_an_error_and_the_next_one_answers(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with Served(model, VllmSpec(options={"load_format": "dummy"})) as served:
        first = served.engine(ENDLESS)
        killed = first.pid
        assert killed is not None

        def kill(added: list[int]) -> bool:
            if len(added) == 3:
                os.kill(killed, signal.SIGKILL)
            return False

        with pytest.raises(VllmError, match="vLLM ended by signal 9"):
            first.generate([_row(kill, most=ENDLESS - 2)])
        row = _row(lambda added: len(added) == 2)
        served.engine(ENDLESS).generate([row])
        assert row.added == [0, 0]
        second = served.engine(ENDLESS).pid
        assert second != killed
    assert second is not None
    assert _gone([second])
    assert not list(tmp_path.iterdir())


def test_one_that_does_not_start_says_why_and_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(1, 1)
    model.device = torch.device("cpu")  # type: ignore[assignment]  # as of a model of transformers
    model.save_pretrained = lambda *_, **__: None  # type: ignore[assignment]
    with Served(model, VllmSpec(gpu_memory_utilization=0.001)) as served:
        with pytest.raises(VllmError, match=r"^vLLM failed: ValueError: Free memory on device is less"):
            served.engine(100)
        monkeypatch.setattr(vllm_engine, "_WORKER", Path("nowhere"))
        with pytest.raises(VllmError, match="Free memory on device"):
            served.engine(100)


def test_an_interpreter_without_vllm_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert why_missing(VllmSpec()) == ""
    (tmp_path / "vllm.py").write_text("raise ModuleNotFoundError('no module named vllm')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(VllmError, match=r"^vLLM failed: ModuleNotFoundError: no module named vllm$"):
        VllmEngine(VllmSpec(), DUMMY, _weights)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    assert why_missing(VllmSpec(python=str(python))) == f"evaluation.vllm.python: {python} has no vLLM"
    assert why_missing(VllmSpec(python="/nowhere/python")) == "evaluation.vllm.python: no interpreter /nowhere/python"


def test_a_request_that_is_refused_is_an_error() -> None:
    engine = VllmEngine(VllmSpec(), DUMMY, _weights)
    with pytest.raises(VllmError, match="vLLM refused a request: ValueError: a prompt of 1001 tokens"):
        engine.score([([1] * 1002, 1)])
    assert not engine.lives, "it may hold what was asked beside it"


def test_one_that_says_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = VllmEngine(VllmSpec(), DUMMY, _weights)
    monkeypatch.setattr(vllm_engine, "_SILENCE_S", 0.1)
    monkeypatch.setattr(vllm_engine, "_LOOK_S", 0.1)
    monkeypatch.setattr(engine, "_send", lambda message: None)
    assert engine.pid is not None
    with pytest.raises(VllmError, match="vLLM said nothing for 0 s"):
        engine.generate([_row(lambda added: True)])
    assert not engine.lives


def test_weights_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(VllmError, match=r"could not be written to .* \(TMPDIR says where .*No space left on device"):
        VllmEngine(VllmSpec(), DUMMY, full)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", ""),
        ("loading\nSegmentation fault\n", "Segmentation fault"),
        (
            "(Worker pid=1) ERROR 11-21 18:31:02 [core.py:402] ValueError: 5 heads on 2 GPUs\n"
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n",
            "ValueError: 5 heads on 2 GPUs",
        ),
        ("(Main pid=1) WARNING 11-21 18:31:02 [base.py:380] ValueError: no tokenizer\nKilled\n", "Killed"),
    ],
)
def test_the_last_error_of_a_log(log: str, said: str) -> None:
    assert last_error(log) == said
