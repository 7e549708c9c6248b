"""The whole Ray head dies in the middle of a sweep; the same command on a new cluster goes on to the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raysft.store.lease import LEASE_FILE
from tests.chaos.faulty_sweep import sweep_content
from tests.ray_head import Head, ray_head

pytestmark = pytest.mark.chaos

TIMEOUT_S = 600

# A driver waits a minute for its head to come back; here, where it does not, less.
PATIENCE = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5", "RAY_AUTH_MODE": "disabled"}


def _start(sweep: Path, head: Head) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "raysft.cli", "run", str(sweep), "--address", head.address]
    environment = {**os.environ, **PATIENCE}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _stamps(storage: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in storage.glob("results/*/*.parquet")}


def test_a_sweep_outlives_the_head(tmp_path: Path) -> None:
    storage, sweep = tmp_path / "storage", tmp_path / "sweep.json"
    sweep.write_text(json.dumps(sweep_content(str(storage), seeds=1)))
    with ray_head("--num-cpus=2", **PATIENCE) as head:
        driver = _start(sweep, head)
        for _ in range(TIMEOUT_S * 4):
            if len(list(storage.glob("results/weight_change/*.parquet"))) >= 1:
                break
            assert driver.poll() is None, driver.communicate()[0]
            time.sleep(0.25)
        head.kill()
        said, _ = driver.communicate(timeout=TIMEOUT_S)
    assert driver.returncode != 0, said
    stamps = _stamps(storage)
    assert (storage / LEASE_FILE).exists()

    with ray_head("--num-cpus=2", **PATIENCE) as head:
        driver = _start(sweep, head)
        said, _ = driver.communicate(timeout=TIMEOUT_S)
    assert driver.returncode == 0, said
    assert "died; this run goes on from what it committed" in said
    assert stamps.items() <= _stamps(storage).items(), "something committed was written again"
    trials = pq.read_table(storage / "tables" / "trials.parquet")
    assert set(trials["state"].to_pylist()) == {"done"}
    failures = pq.read_table(storage / "tables" / "failures.parquet").to_pylist()
    assert [(row["stage"], row["error"], row["resolved"]) for row in failures] == [("driver", "DriverDiedError", True)]
    assert not (storage / LEASE_FILE).exists()
