"""A model outside the sweep is measured as the sweep measures its own, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from raysft.cli import app
from raysft.console.forward_passes import in_sweep, measure
from raysft.publish import make_study
from raysft.reduce import reduce_sweep
from raysft.session import Session
from raysft.spec.plan import make_plan
from raysft.spec.sweep import SpecError, load_sweep
from raysft.store.layout import open_storage
from raysft.store.schema import TABLES
from raysft.study.tables import write_table
from raysft.trial import run_unit
from tests.unit.planted_studies import gains

pytestmark = pytest.mark.invariants


@pytest.fixture
def measured(content: dict[str, Any], write_sweep: Callable[[dict[str, Any]], Path]) -> Path:
    """The YAML of a sweep whose two tiny bases are made and measured, and of whose study the gains are planted."""
    other = {"name": "other", "micro": {**content["models"][0]["micro"], "family": "qwen3", "seed": 3}}
    content["models"] = [*content["models"], other]
    content["evaluation"]["limit"] = 4
    content["probes"] = {**content["probes"], "perplexity": {"rows": 8}, "intrinsic_dimension": None}
    path = write_sweep(content)
    sweep = load_sweep(path)
    storage = open_storage(sweep.storage)
    session = Session(sweep, torch.device("cpu"))
    for unit in make_plan(sweep, storage).missing_units():
        if unit.kind in ("pretrain", "base"):
            run_unit(session, unit, [work for work in unit.works if work.stage != "evaluate"])
    reduce_sweep(sweep, storage)
    make_study(storage)
    pairs = [(model, dataset) for model in ("tiny", "other") for dataset in ("capitals", "addition")]
    made = gains(pairs, {task: 0.1 * torch.arange(4.0).numpy() for task in sweep.evaluation.tasks})
    write_table(made, Path(sweep.storage) / "study/tables/gains.parquet")
    return path


def test_forward_passes_are_those_of_the_sweep(measured: Path) -> None:
    sweep = load_sweep(measured)
    storage = Path(sweep.storage)
    before = {path: path.stat().st_mtime_ns for path in storage.rglob("*")}
    folder = next(path for path in (storage / "models").iterdir() if "qwen3" in (path / "config.json").read_text())
    told: list[str] = []
    found = measure(sweep, str(folder), ["capitals", "addition"], sweep.evaluation.tasks, told.append)
    assert len(told) == 3
    for name, ours in (("data_properties", found.data_properties), ("log_likelihood", found.log_likelihood)):
        theirs = pq.read_table(storage / f"tables/{name}.parquet", schema=TABLES[name])
        rows = {_place(row): row for row in theirs.to_pylist() if row["model"] == "other"}
        assert len(rows) == ours.num_rows > 0
        for row in ours.to_pylist():
            assert {**row, "model": "other"} == rows[_place(row)]
    assert {path: path.stat().st_mtime_ns for path in storage.rglob("*")} == before
    words = ["recommend", str(measured), "--model", str(folder), "--tasks", sweep.evaluation.tasks[0], "--json"]
    printed = CliRunner().invoke(app, words)
    assert printed.exit_code == 0, printed.output
    facts = json.loads(printed.stdout)
    assert facts["other_models"] == ["other", "tiny"]
    assert "2 other models, 4 needed" in facts["why"]


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("dataset", "property", "about", "statistic", "layer", "text")
    return tuple(row.get(name) for name in names)


def test_a_model_that_is_nowhere_is_refused(
    content: dict[str, Any], write_sweep: Callable[[dict[str, Any]], Path]
) -> None:
    sweep = load_sweep(write_sweep(content))
    assert in_sweep(sweep, "tiny") is sweep
    with pytest.raises(SpecError, match=r"model nowhere: neither a model of the sweep \(tiny\) nor a folder with a"):
        in_sweep(sweep, "nowhere")
    content["probes"] = {**content["probes"], "perplexity": None}
    with pytest.raises(SpecError, match="the sweep does not measure it"):
        measure(load_sweep(write_sweep(content)), "tiny", ["capitals"], [], lambda _: None)
