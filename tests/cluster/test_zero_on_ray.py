"""ZeRO-3 over the two workers of a trial, through Ray: the tables and checkpoints of one worker.

That ranks and strategies give equal numbers is tested by `invariants/test_ranks.py`, for every strategy and method.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from raysft.cluster.pipeline import run_everything
from raysft.spec.plan import make_plan
from raysft.spec.sweep import Sweep, parse_sweep
from raysft.store.layout import open_storage
from tests.conftest import SMALL

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]

Content = dict[str, Any]


def _content(storage: Path, **resources: Any) -> Content:
    """A full fine-tuning of one epoch of four steps, measured by its weight change alone.

    A rank's four rows of a step take several micro-batches, and not always as many as the other's.
    """
    content = copy.deepcopy(SMALL)
    content["datasets"] = content["datasets"][:1]
    content["methods"] = [method for method in content["methods"] if method["kind"] == "full"]
    content["training"] |= {"batch_size": 8, "token_budget": 64}
    content["grid"] = [{"sizes": [32], "epochs": [1]}]
    content["evaluation"] = {}
    content["probes"] = {"perplexity": None, "intrinsic_dimension": None, "log_likelihood": None}
    return {**content, "storage": str(storage), "resources": resources}


def _sweep(content: Content) -> Sweep:
    return parse_sweep(content, "test")


def _rows(content: Content, table: str) -> list[dict[str, Any]]:
    return pq.read_table(Path(content["storage"]) / "tables" / f"{table}.parquet").to_pylist()


def _checkpoints(content: Content) -> dict[Path, dict[str, torch.Tensor]]:
    """Tensors by name, by path of the file in the storage."""
    root = Path(content["storage"])
    files = root.glob("checkpoints/*/*/*.safetensors")
    return {file.relative_to(root): load_file(file) for file in files}


@pytest.fixture(scope="module")
def alone(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Content:
    """The sweep with one worker a trial, which holds everything."""
    content = _content(tmp_path_factory.mktemp("alone"), workers=1)
    assert run_everything(_sweep(content), say=lambda _: None).failures == ()
    return content


@pytest.fixture(scope="module")
def divided(alone: Content, tmp_path_factory: pytest.TempPathFactory) -> Content:
    """The sweep with two workers a trial, on the base of the other: that one would take a worker group of its own."""
    storage = tmp_path_factory.mktemp("divided")
    for part in ("models", "results/pretrain"):
        shutil.copytree(Path(alone["storage"]) / part, storage / part)
    content = _content(storage, workers=2, strategy="zero3")
    assert run_everything(_sweep(content), say=lambda _: None).failures == ()
    return content


@pytest.mark.parametrize("table", ["training", "weight_change"])
def test_the_tables_are_those_of_one_worker(alone: Content, divided: Content, table: str) -> None:
    expected, found = _rows(alone, table), _rows(divided, table)
    if table == "training":
        assert [row["step"] for row in expected] == [4]
    for mine, theirs in zip(found, expected, strict=True):
        for column, value in theirs.items():
            # The first steps of AdamW divide by the gradient itself, so what is rounding in a small one is more here.
            wanted = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert mine[column] == wanted, column


def test_the_checkpoints_are_those_of_one_worker(alone: Content, divided: Content) -> None:
    expected, found = _checkpoints(alone), _checkpoints(divided)
    assert found.keys() == expected.keys()
    assert sorted(path.name for path in found) == ["model.safetensors"]
    for path, theirs in expected.items():
        assert found[path].keys() == theirs.keys(), path
        for name, tensor in theirs.items():
            assert found[path][name].dtype == tensor.dtype, (path, name)
            torch.testing.assert_close(
                found[path][name], tensor, rtol=1e-4, atol=5e-5, msg=lambda text, at=f"{path}: {name}": f"{at}: {text}"
            )


def test_nothing_is_missing_afterwards(divided: Content) -> None:
    storage = open_storage(divided["storage"])
    plan = make_plan(_sweep(divided), storage)
    assert all(plan.is_done(work) for work in plan.works())
    assert not plan.missing_units()
    assert {tuple(storage.names("checkpoints", trial.key)) for trial in plan.trials} == {("epoch-0001",)}
    said: list[str] = []
    assert run_everything(_sweep(divided), say=said.append).units == 0
    assert said[0].startswith("Nothing is missing")
