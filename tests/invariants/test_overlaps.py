"""Overlap of training sets with benchmarks in real files, and as a reader of the report sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pytest

from raysft.report import write_report
from raysft.store.schema import TABLES
from raysft.study import run_study
from tests.unit.synthetic_tables import Sweep, synthetic_tables, write_tables
from tests.unit.test_contamination import _overlap

pytestmark = pytest.mark.invariants

DATA = Path(__file__).parents[3] / "shared/data"


@pytest.mark.skipif(not DATA.is_dir(), reason="the real benchmark files are not beside the checkout")
def test_gsm8k_is_hardly_in_its_training_split_and_wholly_in_itself() -> None:
    def texts(name: str) -> list[str]:
        rows = map(json.loads, (DATA / name).read_text(encoding="utf-8").splitlines())
        return [f"{row['question']}\n{row['answer']}" for row in rows]

    test, train = texts("bench/gsm8k_test.jsonl"), texts("instruct/gsm8k_train.jsonl")
    real = _overlap(test, train)
    assert (real["items"], len(real["matched"]), real["longest_match"]) == (1319, 10, 25)
    planted = _overlap(test, [*train[:500], *test[:100]])
    assert len(planted["matched"]) >= 100
    assert {hit["doc"] for hit in planted["matched"] if hit["ngram_overlap"] == 1.0} == set(range(100))


def _report(folder: Path, rows: list[dict[str, Any]]) -> str:
    tables = synthetic_tables(
        Sweep(models=["m", "n"], datasets=["addition", "capitals", "reverse"], epochs=1, layers=2)
    )
    schema = TABLES["contamination"]
    whole = [dict.fromkeys(schema.names) | row for row in rows]
    tables["contamination"] = pa.Table.from_pylist(whole, schema=schema)
    write_tables(tables, folder / "tables")
    run_study(folder / "tables", folder / "study")
    return write_report(folder / "tables", folder / "study", folder, title="overlaps").read_text(encoding="utf-8")


def test_marked_pairs_are_seen_in_figures_and_listed(tmp_path: Path) -> None:
    shared = {"dataset": "capitals", "size": 64, "task": "micro_addition_exact", "overlap": 0.25, "longest_match": 31}
    below = {**shared, "dataset": "reverse", "overlap": 0.002}
    page = _report(tmp_path, [shared, below])
    assert (
        "1 pairs of training set and task share text with 1% of the task&#39;s items or more (sets: capitals)" in page
    )
    assert (
        page.count("†: the training set holds text of 1% of the task&#39;s items or more.") == 4
    )  # gain, bits; 2 variants
    listed = pacsv.read_csv(tmp_path / "data/contamination.csv").to_pylist()
    assert [(row["dataset"], row["task"], row["overlap"]) for row in listed] == [
        ("capitals", "micro_addition_exact", 0.25)
    ]


def test_without_overlap_nothing_is_marked(tmp_path: Path) -> None:
    row = {"dataset": "capitals", "size": 64, "task": "micro_addition_exact", "overlap": 0.0, "longest_match": 0}
    page = _report(tmp_path, [row])
    assert "†" not in page
    assert "None of 1 pairs of training set and task shares text with 1% of the task&#39;s items or more." in page
