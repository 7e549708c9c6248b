"""A head node of a test's own: `ray start --head` on loopback and free ports, ended by process id."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_RAY = Path(sys.executable).parent / "ray"
_STARTS_WITHIN_S = 90
_ENDS_WITHIN_S = 20


@dataclass(frozen=True)
class Head:
    """Addresses of the dashboard and of the Prometheus endpoint, the session's folder, and Ray's main process."""

    dashboard: str
    metrics: str
    session: Path
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """Of the cluster, as Ray writes it last: it puts the machine's own IP for 127.0.0.1 where it has one."""
        written = self.session.parent / "ray_current_cluster"
        for _ in range(2 * _STARTS_WITHIN_S):
            if written.is_file() and (address := written.read_text().strip()):
                return address
            time.sleep(0.5)
        raise AssertionError(f"no {written}")

    def kill(self) -> None:
        """SIGKILL to all processes of the node."""
        folder = str(self.session.parent)
        started = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait(timeout=_ENDS_WITHIN_S)
        # A child of a process that died is no descendant any longer, but its command line names the node's folder.
        started += [one for one in psutil.process_iter(["cmdline"]) if folder in " ".join(one.info["cmdline"] or [])]
        for one in started:
            with suppress(psutil.NoSuchProcess):  # many end with another
                one.kill()
        psutil.wait_procs(started, timeout=_ENDS_WITHIN_S)

    def json(self, path: str) -> Any:
        """What the dashboard's server answers."""
        return json.loads(fetch(f"{self.dashboard}{path}"))


def fetch(url: str) -> str:
    """The body of an answer. OSError if there is none."""
    with urllib.request.urlopen(url, timeout=20) as response:
        return str(response.read().decode())


@contextmanager
def ray_head(*options: str, **environment: str) -> Iterator[Head]:
    """Inside, a head node runs with these options of `ray start`; its processes get the environment."""
    dashboard, gcs, agent, metrics = (free_port() for _ in range(4))
    with tempfile.TemporaryDirectory(prefix="raysft-", ignore_cleanup_errors=True) as folder:  # sockets: a short path
        words = [str(_RAY), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
        words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--include-dashboard=true"]
        words += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
        words += ["--object-store-memory=104857600", "--disable-usage-stats", f"--temp-dir={folder}", *options]
        path = f"{_RAY.parent}{os.pathsep}{os.environ['PATH']}"  # where jobs find their python
        everything = {**os.environ, "RAY_AUTH_MODE": "disabled", "PATH": path, **environment}
        everything.pop("RAY_ADDRESS", None)
        process = subprocess.Popen(words, env=everything, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        session = Path(folder) / "session_latest"
        head = Head(f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}", session, process)
        try:
            _wait(head, process)
            yield head
        finally:
            _end(process)


def _wait(head: Head, process: subprocess.Popen[bytes]) -> None:
    for _ in range(2 * _STARTS_WITHIN_S):
        assert process.poll() is None, "the head node ended"
        try:
            fetch(f"{head.dashboard}/api/version")
            fetch(f"{head.metrics}/metrics")  # of the agent, which also starts jobs
            return
        except (OSError, urllib.error.URLError):
            time.sleep(0.5)
    raise AssertionError(f"no dashboard at {head.dashboard}")


def _end(process: subprocess.Popen[bytes]) -> None:
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    _, left = psutil.wait_procs(started, timeout=5)
    for one in left:
        one.kill()
    process.wait(timeout=_ENDS_WITHIN_S)


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
