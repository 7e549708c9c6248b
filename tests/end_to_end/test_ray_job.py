"""`raysft submit` to a `ray start --head` of this test's own, on loopback, ended by process id."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SMALL
from tests.ray_head import free_port, ray_head

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def head() -> Iterator[str]:
    """Address of the job server of a head node of this test's own."""
    with ray_head("--num-cpus=2") as node:
        yield node.dashboard


def _raysft(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raysft.cli", *words],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=folder,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )


def _submit(folder: Path, head: str, *options: str) -> subprocess.CompletedProcess[str]:
    for _ in range(30):  # the job server answers before the agent that starts jobs does
        done = _raysft(folder, "submit", "sweep.json", "--address", head, *options)
        if "No available agent" not in done.stdout + done.stderr:
            break
        time.sleep(1)
    return done


def test_a_sweep_is_submitted_once_at_a_time_cancelled_and_resumed(head: str, tmp_path: Path) -> None:
    content: dict[str, Any] = {**SMALL, "storage": str(tmp_path / "storage")}
    content["grid"] = [{"sizes": [32], "epochs": [1], "datasets": ["capitals"], "methods": ["full"]}]
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(content))

    first = _submit(folder, head, "--detach")
    assert first.returncode == 0, first.stdout + first.stderr
    name = first.stdout.split()[1]
    assert name.startswith("small-")
    assert name.endswith("-1")
    second = _submit(folder, head)
    assert second.returncode == 2
    assert f"small runs already as {name}" in second.stderr
    cancelled = _raysft(folder, "cancel", "sweep.json", "--address", head)
    assert (cancelled.returncode, cancelled.stdout.strip()) == (0, f"Stopped {name}")
    again = _raysft(folder, "cancel", "sweep.json", "--address", head)
    assert again.returncode == 2
    assert "no submission of small lives" in again.stderr

    third = _submit(folder, head)
    assert third.returncode == 0, third.stdout + third.stderr
    assert f"Submitted {name[:-1]}2 to {head}" in third.stdout
    assert "study and report:" in third.stdout
    assert (tmp_path / "storage" / "report" / "report.html").is_file()


def test_an_address_where_nobody_answers_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({**SMALL, "storage": "s"}))
    done = _raysft(tmp_path, "submit", "sweep.json", "--address", f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 2
    assert done.stderr.startswith("raysft: --address: nobody answers at http://127.0.0.1:")
    assert done.stderr.count("\n") == 1
