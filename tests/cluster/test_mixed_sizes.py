"""Trials of different sizes in one sweep, on GPUs that do not hold all at once, with the numbers of one process.

That ranks and strategies give equal numbers is tested by `invariants/test_ranks.py`, for every strategy and method;
here the way through Ray is.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from raysft.reduce import reduce_sweep
from raysft.session import Session
from raysft.spec.plan import make_plan
from raysft.spec.sweep import Sweep, parse_sweep
from raysft.store.layout import open_storage
from raysft.trial import run_unit
from tests.cluster.mixed_sizes import RESOURCES, sweep_content

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]

TIMEOUT_S = 400


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, dict[str, Any]]:
    """The sweep as Ray ran it, and what was seen of the cluster meanwhile."""
    storage = str(tmp_path_factory.mktemp("mixed") / "storage")
    environment = {**os.environ, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.mixed_sizes", storage],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return parse_sweep(sweep_content(storage, RESOURCES), "test"), json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def alone(mixed: tuple[Sweep, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """The same trials on the same base, each by this process."""
    storage = tmp_path_factory.mktemp("alone")
    for part in ("models", "results/pretrain"):
        shutil.copytree(Path(mixed[0].storage) / part, storage / part)
    sweep = parse_sweep(sweep_content(str(storage), {}), "test")
    plan, session = make_plan(sweep, open_storage(sweep.storage)), Session(sweep, torch.device("cpu"))
    for unit in plan.missing_units():
        assert run_unit(session, unit, plan.missing_works(unit)).failures == []
    reduce_sweep(sweep, open_storage(sweep.storage))
    return sweep


def test_everything_is_done_and_no_gpu_is_taken_twice_or_kept(mixed: tuple[Sweep, dict[str, Any]]) -> None:
    sweep, said = mixed
    assert said["failures"] == []
    plan = make_plan(sweep, open_storage(sweep.storage))
    assert all(plan.is_done(work) for work in plan.works())
    kinds = [next(unit.kind for unit in plan.units if str(unit) == name) for name in said["ended"]]
    assert sorted(kinds) == ["checkpoint", "checkpoint", "fine_tune", "fine_tune", "fine_tune", "pretrain"]
    assert kinds[0] == "pretrain"
    assert kinds.index("checkpoint") > kinds.index("fine_tune")
    assert said["most_held"] <= 2
    assert said["longest_wait_s"] < 60  # what was let in found its GPUs free, or in the hands of an idle process
    assert (said["held_after"], said["groups_after"]) == (0, [])


@pytest.mark.parametrize("table", ["training", "weight_change"])
def test_the_tables_are_those_of_one_process(mixed: tuple[Sweep, dict[str, Any]], alone: Sweep, table: str) -> None:
    found, expected = (
        pq.read_table(Path(sweep.storage) / "tables" / f"{table}.parquet").to_pylist() for sweep in (mixed[0], alone)
    )
    assert {row["method"] for row in expected} == {"full", "upper", "lora"}
    for mine, theirs in zip(found, expected, strict=True):
        for column, value in theirs.items():
            # The first steps of AdamW divide by the gradient itself, so what is rounding in a small one is more here.
            assert mine[column] == _nearly(value), (theirs["method"], column)


def _nearly(value: Any) -> Any:
    """What is found to a ten-thousandth: of a number its own, of a list its largest number's."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-4)
    if isinstance(value, list) and value:
        return pytest.approx(value, rel=1e-4, abs=1e-4 * max(map(abs, value)))
    return value


def test_the_checkpoints_are_those_of_one_process(mixed: tuple[Sweep, dict[str, Any]], alone: Sweep) -> None:
    found, expected = (_checkpoints(Path(sweep.storage)) for sweep in (mixed[0], alone))
    assert found.keys() == expected.keys()
    for path, theirs in expected.items():
        assert found[path].keys() == theirs.keys(), path
        for name, tensor in theirs.items():
            assert found[path][name].dtype == tensor.dtype, (path, name)
            torch.testing.assert_close(
                found[path][name], tensor, rtol=1e-4, atol=5e-5, msg=lambda text, at=f"{path}: {name}": f"{at}: {text}"
            )


def _checkpoints(root: Path) -> dict[Path, dict[str, torch.Tensor]]:
    """Tensors by name, by path of the file in the storage."""
    return {file.relative_to(root): load_file(file) for file in root.glob("checkpoints/*/*/*.safetensors")}
