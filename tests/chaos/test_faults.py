"""Faults in the middle of sweeps on a real cluster: each ends by itself with the tables of an undisturbed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysft.store.schema import TABLES
from tests.chaos.faults import filesystems
from tests.chaos.faulty_sweep import faults_of
from tests.chaos.undisturbed import run_undisturbed

TIMEOUT_S = 1500  # of four sweeps, most of which is waiting for processes to start

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(TIMEOUT_S + 300)]

# When and where something ran differs between any two runs.
SAME = sorted(set(TABLES) - {"costs", "failures"})

# What the driver calls the deaths of processes under these faults; more than one may die of each.
DEATHS = {
    "full": {"StorageLostError"},
    "hang": set[str](),  # whoever writes waits, and that is all
    "rank": {"ProcessDiedError"},
    "random-0": {"ProcessDiedError", "NodeLostError", "StorageLostError"},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed"), seeds=4)


@pytest.fixture(scope="module")
def disturbed(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder of one cluster's disturbed sweeps, and by fault what was seen of each."""
    folder = tmp_path_factory.mktemp("disturbed")
    with filesystems(folder) as impossible:
        faults = [fault for fault in DEATHS if fault not in impossible]
        command = [sys.executable, "-m", "tests.chaos.faulty_sweep", str(undisturbed), str(folder), *faults]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr[-6000:]
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        yield folder, {line["fault"]: line for line in lines}


@pytest.mark.parametrize("fault", DEATHS)
def test_a_sweep_survives(fault: str, disturbed: tuple[Path, dict[str, Any]], undisturbed: Path) -> None:
    folder, seen = disturbed
    if fault not in seen:
        pytest.skip("only root can give the storage a filesystem of its own")
    _assert_unharmed(folder / fault / "storage", undisturbed, seen[fault])
    assert seen[fault]["injected"] == list(faults_of(fault, pause=0))
    assert set(seen[fault]["deaths"]) == DEATHS[fault]
    recorded = pq.read_table(folder / fault / "storage" / "tables" / "failures.parquet").to_pylist()
    assert sorted(row["error"] for row in recorded) == sorted(seen[fault]["deaths"])
    assert all(row["resolved"] and len(row["message"]) > 20 for row in recorded)


def _assert_unharmed(storage: Path, undisturbed: Path, seen: dict[str, Any]) -> None:
    """All is done, once, with the numbers of the undisturbed sweep, and nothing is held."""
    assert (seen["failed"], seen["missing"], seen["unreadable"]) == (False, 0, [])
    assert seen["repeated"] == {}
    assert seen["held"] == {}
    for table in SAME:
        mine, theirs = (pq.read_table(root / "tables" / f"{table}.parquet") for root in (storage, undisturbed))
        trials = set(mine["trial"].to_pylist()) if "trial" in mine.column_names else None
        if trials is not None:
            theirs = theirs.filter(pa.array([row in trials for row in theirs["trial"].to_pylist()], pa.bool_()))
        assert mine.num_rows == theirs.num_rows, table
        if seen["fault"] != "rank":  # the sums of two ranks are rounded in another order
            assert mine.equals(theirs), table
