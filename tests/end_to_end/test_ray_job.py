"""`raysft submit` to a `ray start --head` of this test's own, on loopback, ended by process id."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import SMALL

pytestmark = pytest.mark.end_to_end

RAY = str(Path(sys.executable).parent / "ray")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """Address of the job server of a head node that blocks in a process of ours."""
    # Every port is free: the other tests' Ray of this machine has the default ones.
    dashboard, gcs, agent, metrics = (_free_port() for _ in range(4))
    words = ["start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--include-dashboard=true"]
    words += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
    words += ["--object-store-memory=104857600", "--disable-usage-stats"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where jobs find their python
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PATH": path}
    process = subprocess.Popen([RAY, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        for _ in range(120):
            if _answers(f"{address}/api/version"):
                break
            assert process.poll() is None, "the head node ended"
            time.sleep(0.5)
        yield address
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        _, left = psutil.wait_procs([psutil.Process(process.pid), *started], timeout=20)
        for one in left:
            one.kill()
        process.wait(timeout=20)


def _raysft(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raysft.cli", *words],
        capture_output=True,
        text=True,
        timeout=240,
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
    done = _raysft(tmp_path, "submit", "sweep.json", "--address", f"http://127.0.0.1:{_free_port()}")
    assert done.returncode == 2
    assert done.stderr.startswith("raysft: no job server at http://127.0.0.1:")
    assert done.stderr.count("\n") == 1
