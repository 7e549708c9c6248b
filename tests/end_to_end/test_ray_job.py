"""`ray job submit` against a `ray start --head` of this test's own, on loopback, ended by process id."""

from __future__ import annotations

import json
import os
import shutil
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

REPOSITORY = Path(__file__).parents[2]
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
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
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


def test_a_sweep_runs_as_a_ray_job(head: str, tmp_path: Path) -> None:
    content: dict[str, Any] = {**SMALL, "storage": str(tmp_path / "storage")}
    content["grid"] = [{"sizes": [32], "epochs": [1], "datasets": ["capitals"], "methods": ["full"]}]
    code = tmp_path / "code"  # what a user's checkout holds, without environments and outputs
    for part in ("raysft", "jobs", "pyproject.toml"):
        source = REPOSITORY / part
        shutil.copytree(source, code / part) if source.is_dir() else shutil.copy(source, code / part)
    (code / "sweep.json").write_text(json.dumps(content))
    words = ["job", "submit", "--address", head, "--working-dir", str(code), "--", sys.executable, "jobs/sweep.py"]
    for _ in range(30):  # the job server answers before the agent that starts jobs does
        done = subprocess.run(
            [RAY, *words, "sweep.json"], capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path
        )
        if "No available agent" not in done.stdout + done.stderr:
            break
        time.sleep(1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert (tmp_path / "storage" / "report" / "report.html").is_file()
