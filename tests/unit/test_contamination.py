"""Overlap of training sets with benchmarks: planted, none, known numbers, its place in plan, tables and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from raysft.measure import Bench, Report, _Overlaps
from raysft.probes.data import contamination
from raysft.probes.data.contamination import BenchmarkGrams, Item, contamination_tables, words
from raysft.reduce import reduce_sweep
from raysft.session import Session
from raysft.spec.plan import Plan, make_plan
from raysft.spec.sweep import load_sweep
from raysft.store.layout import open_storage
from raysft.store.schema import TABLES

pytestmark = pytest.mark.unit

Content = dict[str, Any]


def _numbered(start: int, count: int) -> str:
    """A text of so many words, none of which is in one that starts elsewhere."""
    return " ".join(f"word{number}" for number in range(start, start + count))


def _overlap(items: list[str], training: list[str], ngram: int = 13, task: str = "quiz") -> dict[str, Any]:
    grams = BenchmarkGrams([Item(task, doc, text) for doc, text in enumerate(items)], ngram)
    [row] = contamination_tables({task: grams}, training)[task].to_pylist()
    return row


def test_a_planted_passage_is_found_and_measured() -> None:
    items = [_numbered(0, 40), _numbered(100, 40), _numbered(200, 5)]
    planted = f"Something else. {_numbered(10, 20).upper().replace(' ', ', ')}! And more."
    row = _overlap(items, ["nothing of it", planted, _numbered(300, 100)])
    assert (row["ngram"], row["items"], row["too_short"]) == (8, 3, 1)  # 13, but for the item of five words
    assert row["overlap"] == pytest.approx(1 / 3)
    assert row["ngram_overlap"] == pytest.approx((20 - 8 + 1) / (2 * (40 - 8 + 1)))
    assert row["longest_match"] == 20
    assert [(hit["task"], hit["doc"]) for hit in row["matched"]] == [("quiz", 0)]
    assert row["matched"][0]["ngram_overlap"] == pytest.approx(13 / 33)


def test_without_a_common_passage_nothing_is_found() -> None:
    """Twelve words in a row are in both, and all words of the item are in the training set."""
    item = _numbered(0, 40)
    training = [_numbered(5, 12), *(f"word{number} alone" for number in range(40))]
    row = _overlap([item], training)
    assert (row["overlap"], row["ngram_overlap"], row["longest_match"], row["matched"]) == (0.0, 0.0, 0, [])
    assert _overlap([item], [_numbered(5, 13)])["overlap"] == 1.0


def test_a_passage_that_two_rows_make_together_is_none() -> None:
    item = _numbered(0, 26)
    assert _overlap([item], [_numbered(0, 12), _numbered(12, 14)])["longest_match"] == 14
    assert _overlap([item], [_numbered(0, 12), _numbered(12, 12)])["overlap"] == 0.0


def test_chunks_of_any_size_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [_numbered(start, 30) for start in range(0, 300, 30)]
    training = [_numbered(start, 7 + start % 40) for start in range(0, 280, 3)] + ["", "short"]
    whole = _overlap(items, training)
    assert whole["overlap"] > 0
    assert 0 < whole["ngram_overlap"] < 1
    for size in (1, 50):
        monkeypatch.setattr(contamination, "_CHUNK", size)
        assert _overlap(items, training) == whole


@pytest.mark.parametrize(("asked", "taken"), [(13, 11), (10, 10), (50, 11), (5, 5)])
def test_n_is_what_nearly_all_items_reach(asked: int, taken: int) -> None:
    """The fifth percentile of the items' lengths, from 8 up to what is asked for (Brown et al. 2020)."""
    items = [_numbered(0, 3)] * 4 + [_numbered(0, 11)] * 6 + [_numbered(0, 60)] * 90
    assert _overlap(items, [], asked)["ngram"] == taken


def test_words_are_normalised_and_characters_are_words_where_nothing_parts_them() -> None:
    assert words("The CAT's “ﬁne”, 1,000 times.") == ["the", "cat", "s", "fine", "1", "000", "times"]
    assert words("東京タワーは333m。") == [*"東京タワ", *"ーは", "333m"]
    chinese = "水的化学式是什么由氢和氧组成的分子"
    assert _overlap([chinese], [f"问：{chinese[2:16]}？"])["longest_match"] == 14


def test_a_group_has_a_row_for_each_member_and_one_for_all() -> None:
    items = [Item("law", 0, _numbered(0, 20)), Item("law", 1, _numbered(50, 20)), Item("art", 0, _numbered(100, 20))]
    table = contamination_tables({"exam": BenchmarkGrams(items, 13)}, [_numbered(50, 20)])["exam"]
    rows = {row["task"]: row for row in table.to_pylist()}
    assert {task: row["overlap"] for task, row in rows.items()} == {
        "law": 0.5,
        "art": 0.0,
        "exam": pytest.approx(1 / 3),
    }
    assert [(hit["task"], hit["doc"]) for hit in rows["exam"]["matched"]] == [("law", 1)]


def test_benchmarks_of_different_n_share_one_pass_over_the_data() -> None:
    long, short = (
        BenchmarkGrams([Item("a", 0, _numbered(0, 40))], 13),
        BenchmarkGrams([Item("b", 0, _numbered(0, 9))], 13),
    )
    passes = iter([_numbered(0, 9)])  # can be read once
    tables = contamination_tables({"a": long, "b": short}, passes)
    assert [tables[name].to_pylist()[0]["overlap"] for name in "ab"] == [0.0, 1.0]


# in a sweep


def _plan(content: Content, folder: Path) -> Plan:
    (folder / "sweep.yaml").write_text(json.dumps(content))
    sweep = load_sweep(folder / "sweep.yaml")
    return make_plan(sweep, open_storage(sweep.storage))


def _keys(plan: Plan) -> dict[tuple[str | None, int | None, str | None], str]:
    works = [work for unit in plan.units for work in unit.works if work.stage == "contamination"]
    found = {(work.subject.dataset, work.subject.size, work.about): work.key for work in works}
    assert len(found) == len(works)
    return found


def test_each_set_and_benchmark_are_compared_once_whatever_the_models(content: Content, tmp_path: Path) -> None:
    tasks = content["evaluation"]["tasks"]
    content["grid"][0]["sizes"] = [16, 32]
    alone = _keys(_plan(content, tmp_path))
    assert set(alone) == {
        (data, size, task) for data in ("capitals", "addition") for size in (16, 32) for task in tasks
    }
    other = {"name": "other", "micro": {**content["models"][0]["micro"], "family": "qwen3"}}
    content["models"] = [other, *content["models"]]
    assert _keys(_plan(content, tmp_path)) == alone
    content["probes"]["contamination"] = {"ngram": 9}
    assert not set(_keys(_plan(content, tmp_path)).values()) & set(alone.values())
    content["probes"]["contamination"] = None
    assert _keys(_plan(content, tmp_path)) == {}


def test_overlaps_come_from_the_rows_of_a_size_and_belong_to_no_model(content: Content, tmp_path: Path) -> None:
    """The first row that is trained on is one of the benchmark's items, which a sample of 16 rows has too."""
    questions = [{"question": _numbered(start, 12), "answer": _numbered(start + 12, 4)} for start in range(0, 640, 20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, questions)))
    content["datasets"] = [{"name": "quiz", "path": "rows.jsonl"}]
    content["grid"][0]["sizes"] = [16, 32]
    content["evaluation"] = {"tasks": ["quiz_test"], "include": ["."], "limit": None}
    (tmp_path / "quiz_test.yaml").write_text(
        "task: quiz_test\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        'output_type: loglikelihood\ndoc_to_text: "{{question}}"\ndoc_to_target: "{{answer}}"\n'
    )
    plan = _plan(content, tmp_path)
    session = Session(plan.sweep, torch.device("cpu"))
    bench = Bench(session, Report(), 0.0)
    works = [work for unit in plan.units for work in unit.works if work.stage == "contamination"]
    overlaps = _Overlaps(session, works)
    for work in works:
        bench.attempt(work, lambda work=work: overlaps.of(work))
    assert bench.report.failures == []
    reduce_sweep(plan.sweep, session.storage)
    rows = pq.read_table(Path(content["storage"]) / "tables/contamination.parquet", schema=TABLES["contamination"])
    found = {row["size"]: row for row in rows.to_pylist()}
    assert {size: (row["overlap"], row["items"], row["ngram"]) for size, row in found.items()} == {
        16: (0.5, 32, 13),
        32: (1.0, 32, 13),
    }
    assert {(row["model"], row["dataset"], row["task"]) for row in found.values()} == {(None, "quiz", "quiz_test")}
