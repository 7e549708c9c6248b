"""The reducer: tables are the rows of the results, in one order, whatever was read before and however."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from raysft.cli import app
from raysft.reduce import Reduced, reading, reduce_sweep, writing
from raysft.reduce.order import place
from raysft.spec.plan import Work, divergence_work, make_plan
from raysft.spec.sweep import Sweep, parse_sweep
from raysft.store import results
from raysft.store.layout import Storage, StorageError, open_storage
from raysft.store.probe_schemas import SKETCHES
from raysft.store.results import read_result, result_path, set_aside
from raysft.store.schema import RESULTS, SCHEMA_VERSION, TABLES
from raysft.study.lint import lint_table
from tests.unit.planted import plant_rows

pytestmark = pytest.mark.invariants

Row = dict[str, Any]


@pytest.fixture
def sweep(content: Row) -> Sweep:
    """Two epochs of four trials, measured at each, in a grid whose order is not that of names."""
    content["grid"] = [{"sizes": [32, 16], "epochs": [2], "measure": "every", "methods": ["lora", "full"]}]
    return parse_sweep(content, "test")


@pytest.fixture
def storage(sweep: Sweep) -> Storage:
    """Every result of the sweep."""
    storage = open_storage(sweep.storage)
    plant_rows(storage, _works(sweep))
    return storage


@pytest.fixture
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_SMALLEST_PACK", 2)
    monkeypatch.setattr(reading, "_LARGEST_PACK", 5)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the results whose files the reducer read."""
    keys: list[str] = []
    real = results.read_result

    def read(storage: Storage, stage: str, key: str, columns: Any = None) -> pa.Table:
        keys.append(key)
        return real(storage, stage, key, columns)

    monkeypatch.setattr(reading, "read_result", read)
    return keys


def _works(sweep: Sweep) -> list[Work]:
    """Every work but the pretraining of the base, which needs more than a result."""
    return [work for work in make_plan(sweep).works() if work.stage != "pretrain"]


def _tables(storage: Storage) -> dict[str, pa.Table]:
    return {name: pq.read_table(storage.local_path("tables", f"{name}.parquet")) for name in TABLES}


def _bytes(storage: Storage) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in storage.local_path("tables").iterdir()}


def _rewrite(storage: Storage, work: Work, change: Callable[[pa.Table], pa.Table]) -> Path:
    path = storage.local_path(result_path(work.stage, work.key))
    pq.write_table(change(pq.ParquetFile(path).read()), path)
    return path


def _newer(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({**table.schema.metadata, b"schema_version": str(SCHEMA_VERSION + 1)})


def _rows_of(work: Work, result: pa.Table, name: str) -> list[Row]:
    """What one result gives to a table, row by row."""
    rows = result.to_pylist()
    if name == "samples":
        owners = [(row, item) for row in rows for item in row["samples"] or []]
        return [{"task": row["task"], "metric": row["metric"], **item} for row, item in owners]
    if name == "examples":
        return [item for row in rows for item in row["examples"] or []]
    if name == "weight_sketches":
        return [row for row in rows if row["sketch"] is not None or row["left_directions"] is not None]
    return rows


FROM = {
    "training": ["train"],
    "scores": ["evaluate"],
    "samples": ["evaluate"],
    "data_properties": ["perplexity", "similarity", "text_statistics", "sentence_similarity"],
    "examples": ["perplexity"],
    "weight_change": ["weight_change"],
    "weight_sketches": ["weight_change"],
    "intrinsic_dimension": ["intrinsic_dimension"],
    "log_likelihood": ["log_likelihood"],
    "contamination": ["contamination"],
}


def _expected(sweep: Sweep, storage: Storage, name: str) -> list[Row]:
    """The rows of a table, put together one by one."""
    found = []
    for work in make_plan(sweep).works():
        if work.stage in FROM[name] and not (name == "weight_sketches" and work.subject.epoch != 2):
            subject = {**work.subject.as_row(), "diverged": False}
            if work.stage in ("contamination", "text_statistics", "sentence_similarity"):
                subject["model"] = None
            given = _rows_of(work, read_result(storage, work.stage, work.key), name)
            about = (list(RESULTS).index(work.stage), work.about or "", work.key)
            found.append(((*place(subject), *about), [{**subject, **row} for row in given]))
    names = TABLES[name].names
    return [{key: row[key] for key in names} for _, rows in sorted(found, key=lambda one: one[0]) for row in rows]


@pytest.mark.parametrize("name", FROM)
def test_a_table_is_the_rows_of_its_results_in_their_order(sweep: Sweep, storage: Storage, name: str) -> None:
    plan = make_plan(sweep)
    assert {work.stage for work in plan.works()} >= set(FROM[name]) - {"sentence_similarity"}
    reduce_sweep(sweep, storage)
    assert _tables(storage)[name].to_pylist() == _expected(sweep, storage, name)


def test_every_table_is_sorted_typed_and_says_what_it_is(sweep: Sweep, storage: Storage) -> None:
    reduced = reduce_sweep(sweep, storage)
    for name, table in _tables(storage).items():
        metadata = table.schema.metadata
        assert table.schema.equals(TABLES[name])
        assert all(field.metadata == TABLES[name].field(field.name).metadata for field in table.schema)
        assert (metadata[b"table"].decode(), int(metadata[b"schema_version"])) == (name, SCHEMA_VERSION)
        order = json.loads(metadata[b"sorted_by"])
        places = [[(row[key] is not None, row[key] or 0) for key in order] for row in table.select(order).to_pylist()]
        assert places == sorted(places), name
        assert reduced.rows[name] == table.num_rows
    assert _tables(storage)["trials"]["dataset"].to_pylist()[0] is None


def test_reduced_again_every_byte_is_the_same_and_no_result_is_read_twice(
    sweep: Sweep, storage: Storage, small_packs: None, opened: list[str]
) -> None:
    reduce_sweep(sweep, storage)
    first, read = _bytes(storage), len(opened)
    packed = sum(map(len, _packed(storage).values()))
    assert read == len(_works(sweep))
    assert packed > read // 2
    opened.clear()
    reduce_sweep(sweep, storage)
    assert _bytes(storage) == first
    assert len(opened) == read - packed


def _packed(storage: Storage) -> dict[Path, set[str]]:
    """Keys of the results in each pack."""
    packs = storage.local_path("packs").rglob("*.arrow")
    schemas = {path: pa.ipc.open_file(path.read_bytes()).schema for path in packs}
    return {path: {row[0] for row in json.loads(schema.metadata[b"results"])} for path, schema in schemas.items()}


def test_of_new_results_only_those_are_read(
    sweep: Sweep, storage: Storage, small_packs: None, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    works = [work for work in _works(sweep) if work.stage == "evaluate"]
    late, texts = works[::3], {}
    for work in late:
        path = storage.local_path(result_path(work.stage, work.key))
        texts[path] = path.read_bytes()
        path.unlink()
    reduce_sweep(sweep, storage)
    before = _packed(storage)
    for path, text in texts.items():
        path.write_bytes(text)
    monkeypatch.setattr(reading, "_LARGEST_PACK", 10**6)
    monkeypatch.setattr(reading, "_SMALLEST_PACK", 10**6)
    opened.clear()
    reduce_sweep(sweep, storage)
    assert {work.key for work in late} <= set(opened)
    assert not set(opened) & set().union(*before.values())
    assert _packed(storage) == before
    added = _bytes(storage)
    storage.delete_tree("packs")
    reduce_sweep(sweep, storage)
    assert _bytes(storage) == added


@pytest.mark.parametrize("harm", ["truncated", "other bytes", "one bit", "no metadata", "gone"])
def test_packs_that_cannot_be_read_cost_nothing_but_time(
    sweep: Sweep, storage: Storage, small_packs: None, harm: str
) -> None:
    reduce_sweep(sweep, storage)
    before = _bytes(storage)
    for pack in storage.local_path("packs").rglob("*.arrow"):
        content = bytearray(pack.read_bytes())
        if harm == "truncated":
            pack.write_bytes(content[: len(content) // 2])
        elif harm == "other bytes":
            content[4 : len(content) // 3] = bytes(len(content) // 3 - 4)
            pack.write_bytes(content)
        elif harm == "one bit":
            content[len(content) // 2] ^= 1
            pack.write_bytes(content)
        elif harm == "no metadata":
            table = pa.ipc.open_file(bytes(content)).read_all().replace_schema_metadata(None)
            with pa.ipc.new_file(str(pack), table.schema) as writer:
                writer.write_table(table)
        else:
            pack.unlink()
    reduced = reduce_sweep(sweep, storage)
    assert _bytes(storage) == before
    assert (reduced.unreadable, reduced.newer) == ((), ())


def test_a_result_that_was_made_again_is_read_again(sweep: Sweep, storage: Storage, small_packs: None) -> None:
    reduce_sweep(sweep, storage)
    work = next(work for work in _works(sweep) if work.stage == "train")
    _rewrite(storage, work, lambda table: table.set_column(2, "loss", pa.array([7.0] * table.num_rows)))
    reduce_sweep(sweep, storage)
    rows = [row for row in _tables(storage)["training"].to_pylist() if row["trial"] == work.subject.trial]
    assert {row["loss"] for row in rows} == {7.0}


def test_packs_of_an_older_schema_are_not_used_and_go(
    sweep: Sweep, storage: Storage, small_packs: None, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reduce_sweep(sweep, storage)
    before, folders = _bytes(storage), set(storage.names("packs"))
    opened.clear()
    monkeypatch.setattr("raysft.store.packs.SCHEMA_VERSION", SCHEMA_VERSION + 1)
    reduce_sweep(sweep, storage)
    assert len(opened) == len(_works(sweep))
    assert _bytes(storage) == before
    assert not folders & set(storage.names("packs"))


def test_sketches_that_become_those_of_a_last_epoch_are_read_for_the_first_time(
    content: Row, sweep: Sweep, storage: Storage, small_packs: None
) -> None:
    """The packs of an early epoch's weight changes are without them."""
    reduce_sweep(sweep, storage)
    lasts = [work for work in _works(sweep) if work.stage == "weight_change" and work.subject.epoch == 2]
    for work in lasts:
        storage.local_path(result_path(work.stage, work.key)).unlink()
    reduce_sweep(sweep, storage)
    found = _tables(storage)["weight_sketches"]
    assert set(found["epoch"].to_pylist()) == {1}
    assert found.num_rows > 0
    assert any(found[name].null_count < found.num_rows for name in SKETCHES)


def test_row_groups_are_cut_by_rows_alone(
    sweep: Sweep, storage: Storage, small_packs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduce_sweep(sweep, storage)
    whole = _tables(storage)["samples"]
    monkeypatch.setattr(writing, "_GROUP", 7)
    monkeypatch.setattr("raysft.reduce.run._AT_ONCE", 5)
    reduce_sweep(sweep, storage)
    cut = _bytes(storage)
    metadata = pq.read_metadata(storage.local_path("tables", "samples.parquet"))
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert set(sizes[:-1]) == {7}
    assert _tables(storage)["samples"].equals(whole)
    storage.delete_tree("packs")
    monkeypatch.setattr("raysft.reduce.run._AT_ONCE", 3)
    reduce_sweep(sweep, storage)
    assert _bytes(storage) == cut


def test_results_of_a_newer_version_are_named_and_left_out_alone(
    sweep: Sweep, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raysft.cluster.pipeline import reduce_and_report

    monkeypatch.setattr("raysft.cluster.pipeline.make_report", lambda *_: None)
    works = [work for work in _works(sweep) if work.stage == "log_likelihood"]
    path = _rewrite(storage, works[0], _newer)
    content = path.read_bytes()
    reduced = reduce_sweep(sweep, storage)
    line = f"results/log_likelihood/{path.name}: schema version {SCHEMA_VERSION + 1}, this raysft reads up to "
    assert reduced.newer == (f"{line}{SCHEMA_VERSION}",)
    assert (reduced.unreadable, reduced.damaged) == ((), ())
    assert reduced.rows["log_likelihood"] == 3 * (len(works) - 1)
    assert reduced.rows["scores"] > 0
    [said] = reduce_and_report(sweep, storage, lambda _: None)
    assert said == f"{line}{SCHEMA_VERSION}; it is in no table"
    set_aside(storage, [result_path("log_likelihood", works[0].key)])
    assert path.read_bytes() == content


def test_a_divergence_of_a_newer_version_stops_what_would_train_and_not_what_reads(
    sweep: Sweep, storage: Storage
) -> None:
    from raysft import preflight

    work = divergence_work(make_plan(sweep).trials[0])
    plant_rows(storage, [work], rows=1)
    path = _rewrite(storage, work, _newer)
    plan = make_plan(sweep, storage)
    with pytest.raises(StorageError, match=f"{path.name}: schema version {SCHEMA_VERSION + 1}"):
        preflight.check_sweep(plan, storage)
    reduced = reduce_sweep(sweep, storage)
    assert len(reduced.newer) == 1
    assert reduced.rows["training"] > 0


FOREIGN = {
    "no metadata": (lambda table: table.replace_schema_metadata(None), "its metadata is not that of a result"),
    "no number": (
        lambda table: table.replace_schema_metadata({**table.schema.metadata, b"wall_s": b"long"}),
        "its metadata is not that of a result",
    ),
    "other type": (
        lambda table: table.set_column(0, "text", pa.array(["x"] * table.num_rows)),
        "not a result of log_likelihood",
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_file_that_is_no_result_is_named_and_moved_aside(sweep: Sweep, storage: Storage, what: str) -> None:
    change, message = FOREIGN[what]
    work = next(work for work in _works(sweep) if work.stage == "log_likelihood")
    path = _rewrite(storage, work, change)
    reduced: Reduced = reduce_sweep(sweep, storage)
    [line] = reduced.unreadable
    assert line.startswith(f"results/log_likelihood/{path.name}: {message}")
    assert reduced.rows["log_likelihood"] > 0
    set_aside(storage, reduced.damaged)
    assert not path.exists()
    assert [kept.name.partition("-")[0] for kept in path.parent.glob(".damaged-*")] == [".damaged"]


def test_packages_that_changed_within_the_sweep_are_found_by_lint(sweep: Sweep, storage: Storage) -> None:
    work = next(work for work in _works(sweep) if work.stage == "train")
    versions = json.dumps({"raysft": "0.0.9", "torch": "not installed"}).encode()
    _rewrite(
        storage, work, lambda table: table.replace_schema_metadata({**table.schema.metadata, b"versions": versions})
    )
    reduce_sweep(sweep, storage)
    tables = _tables(storage)
    words = {row["key"]: row["versions"] for row in tables["costs"].to_pylist()}
    assert words[work.key] == "raysft 0.0.9; torch not installed"
    assert f"pyarrow {pa.__version__}" in words[next(other.key for other in _works(sweep) if other.stage == "evaluate")]
    found = {
        row["subject"]: row["detail"] for row in lint_table(tables).to_pylist() if row["check"] == "changed_version"
    }
    assert set(found) == {"raysft", "torch"}
    assert "0.0.9 (1 results)" in found["raysft"]
    assert found["torch"].endswith("not installed (1 results) in train")


def test_a_reduction_that_fails_leaves_the_tables_and_nothing_else(
    sweep: Sweep, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduce_sweep(sweep, storage)
    before = _bytes(storage)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(StorageError, match=r"cannot write tables \(.*No space left on device"):
        reduce_sweep(sweep, storage)
    assert _bytes(storage) == before


def test_an_empty_sweep_has_every_table(sweep: Sweep) -> None:
    storage = open_storage(sweep.storage)
    reduce_sweep(sweep, storage)
    tables = _tables(storage)
    assert {name for name, table in tables.items() if table.num_rows} == {"trials"}
    assert set(tables["trials"]["state"].to_pylist()) == {"missing"}


def test_what_was_left_out_is_said_by_the_command(
    content: Row, sweep: Sweep, storage: Storage, write_sweep: Callable[[Row], Path]
) -> None:
    work = next(work for work in _works(sweep) if work.stage == "train")
    _rewrite(storage, work, _newer)
    path = write_sweep(copy.deepcopy(content))
    said = CliRunner().invoke(app, ["reduce", str(path)])
    assert said.exit_code == 0
    assert f"left out: {result_path('train', work.key)}: schema version {SCHEMA_VERSION + 1}" in said.output
    found = json.loads(CliRunner().invoke(app, ["reduce", str(path), "--json"]).stdout)
    assert [len(found[kind]) for kind in ("unreadable", "newer")] == [0, 1]
