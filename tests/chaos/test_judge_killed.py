"""An evaluation that is killed while it asks a judge keeps the verdicts that it has, and what they cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raysft.store.layout import open_storage
from tests.judge_server import judge_service

pytestmark = pytest.mark.chaos

KILLED = """
import sys
from tests.unit.test_judge_verdicts import SPEC, _asks
from raysft.evaluation.judge.client import EndpointJudge
from raysft.evaluation.judge.spending import Spending
from raysft.evaluation.judge.verdicts import verdicts
from raysft.spec.judge import TokenPrices
from raysft.store.layout import open_storage
spec = SPEC.model_copy(update={"endpoint": sys.argv[1], "prices": TokenPrices(input=1.0, output=1.0)})
storage = open_storage(sys.argv[2])
with Spending(storage, spec) as spending:
    verdicts(_asks(10), EndpointJudge(spec), storage, spending)
"""


def test_a_killed_evaluation_asks_nothing_twice_but_what_was_in_flight(tmp_path: Path) -> None:
    """Killed while its sixth call is in flight: the five verdicts before it are there."""
    storage = open_storage(str(tmp_path / "storage"))
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    with judge_service() as server:
        held = server.fault("hold", after=5)
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, server.url, storage.uri], cwd=Path(__file__).parents[2], env=environment
        )
        try:
            assert held.reached.wait(timeout=120)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=30)
        held.released.set()
        assert len(server.requests) == 6
        assert len(list(storage.local_path("verdicts").glob("??/*.json"))) == 5
        (left,) = storage.names("verdicts", "spending")
        assert left.endswith(".open.json"), "what it could have spent counts"
        again = subprocess.run(
            [sys.executable, "-c", KILLED, server.url, storage.uri],
            cwd=Path(__file__).parents[2],
            env=environment,
            timeout=120,
            check=False,
        )
        assert again.returncode == 0
        assert len(server.requests) == 6 + 5
