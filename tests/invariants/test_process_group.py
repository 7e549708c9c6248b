"""Ending a process that started others: it takes as long as the last of them lives, and no longer than is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from raysft.evaluation import process_group, vllm_engine
from raysft.evaluation.process_group import end_group
from raysft.evaluation.vllm_engine import VllmEngine, VllmError
from raysft.spec.vllm import VllmSpec
from tests.invariants.vllm_interpreters import STAND_IN

pytestmark = pytest.mark.invariants

LEADER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process and the number of its child, which outlives it: SIGKILL to the group reaches the leader alone, as if
    the child were slow to let go of what it holds."""
    leader = subprocess.Popen([sys.executable, "-c", LEADER], stdout=subprocess.PIPE, start_new_session=True)
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    real = os.killpg
    monkeypatch.setattr(process_group.os, "killpg", lambda pid, by: os.kill(pid, by) if by else real(pid, by))
    yield leader, child
    leader.kill()
    if _runs(child):
        os.kill(child, signal.SIGKILL)
    leader.wait(60)


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_it_is_over_when_the_last_of_the_group_is(group: tuple[subprocess.Popen[bytes], int]) -> None:
    leader, child = group
    later = threading.Timer(0.5, os.kill, (child, signal.SIGKILL))
    later.start()
    end_group(leader)
    assert leader.returncode == -signal.SIGKILL
    assert not _runs(child)
    later.join()


def test_one_that_goes_on_is_named(group: tuple[subprocess.Popen[bytes], int], monkeypatch: pytest.MonkeyPatch) -> None:
    leader, _ = group
    monkeypatch.setattr(process_group, "_END_S", 0.2)
    with pytest.raises(TimeoutError, match=f"process {leader.pid}, or one that it started, goes on after SIGKILL"):
        end_group(leader)


def test_the_folder_of_an_engine_goes_even_if_its_process_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    arguments = {"dtype": "float32", "max_model_len": 9, "tensor_parallel_size": 1, "seed": 0, "load_format": "dummy"}
    engine = VllmEngine(VllmSpec(), arguments, lambda folder: None)

    def goes_on(process: subprocess.Popen[bytes]) -> None:
        end_group(process)
        raise TimeoutError("process 7 goes on")

    monkeypatch.setattr(vllm_engine, "end_group", goes_on)
    with pytest.raises(VllmError, match="vLLM does not end: process 7 goes on"):
        engine.end()
    assert not list(tmp_path.iterdir())
