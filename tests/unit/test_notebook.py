"""`raysft.load`: tables of a sweep and of a study as a person at a notebook meets them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raysft
from raysft.notebook import Table, Tables, UnknownNameError, loading
from raysft.store.layout import StorageError, open_storage
from raysft.store.schema import TABLES
from raysft.study.run import run_study
from raysft.study.schema import STUDY_TABLES
from tests.s3_server import BUCKET, environment, s3_service
from tests.unit.synthetic_tables import Sweep, synthetic_tables, write_tables

pytestmark = pytest.mark.unit

README = Path(__file__).parents[2] / "README.md"
SWEEP = Sweep(
    seeds=(0, 1), epochs=1, layers=2, texts=9, noise=0.05, missing=frozenset({("micro-qwen3", "counting", "lora")})
)
EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with tables and a study."""
    root = tmp_path_factory.mktemp("notebook") / "results" / "quickstart"
    run_study(write_tables(synthetic_tables(SWEEP), root / "tables"), root / "study")
    return root


@pytest.fixture
def tables(root: Path) -> Tables:
    return raysft.load(root)


def test_every_table_of_sweep_and_study_is_there_by_both_ways(root: Path, tables: Tables) -> None:
    on_disk = {path.stem: path for path in root.rglob("*.parquet")}
    assert set(tables) == set(on_disk) == {*synthetic_tables(SWEEP), *STUDY_TABLES}
    assert list(tables)[: len(synthetic_tables(SWEEP))] == [name for name in TABLES if name in tables]
    for name, path in on_disk.items():
        assert tables[name].arrow.equals(pq.read_table(path)), name
        assert tables[name].shape == (pq.read_metadata(path).num_rows, len(tables[name].columns))
    assert tables.scores is tables["scores"]
    assert isinstance(tables["gain_matrix"], Table)
    assert {*tables, "gain_matrix", "gain_array", "variants"} <= set(dir(tables))


def test_pandas_polars_and_arrow_say_the_same(tables: Tables) -> None:
    frame, other = tables.scores.to_pandas(), tables.scores.to_polars()
    assert isinstance(other, pl.DataFrame)
    assert list(frame.columns) == other.columns == list(tables.scores.columns)
    assert frame["value"].tolist() == other["value"].to_list() == tables.scores.arrow["value"].to_pylist()
    assert pl.DataFrame(tables.scores).equals(other)
    assert list(tables.scores.to_pandas("value", "task").columns) == ["value", "task"]
    assert tables.scores.to_polars("task")["task"].to_list() == frame["task"].tolist()


def test_nothing_is_read_before_it_is_used_and_columns_by_themselves(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    real = pq.ParquetFile.read

    def reading(file: pq.ParquetFile, columns: Any = None, **other: Any) -> pa.Table:
        read.append(columns)
        return real(file, columns, **other)

    monkeypatch.setattr(pq.ParquetFile, "read", reading)
    tables = raysft.load(root)
    assert len(tables.scores) == tables.scores.shape[0] > 0
    assert "value" in tables.scores.columns
    assert read == []
    tables.scores.to_pandas("value")
    tables.scores.to_pandas()
    tables.scores.to_pandas("task")
    assert read == [["value"], None]


def test_columns_say_what_they_mean(tables: Tables) -> None:
    column = tables.scores.columns["value"]
    assert (column.type, column.meaning) == ("double", "score on the task's own scale")
    assert str(tables.scores.columns["bits_per_byte"]).startswith("bits_per_byte (double, bits per byte): information")
    assert repr(tables.scores.columns).count("\n") == len(tables.scores.columns) - 1
    assert "<td style='text-align: left'>score on the task&#x27;s own scale</td>" in tables.scores.columns._repr_html_()


@pytest.mark.parametrize("variant", ["full", "lora"])
@pytest.mark.parametrize("value", ["gain", "scaled_gain", "bits_gain"])
def test_the_matrix_is_that_of_the_study(tables: Tables, variant: str, value: str) -> None:
    found = tables.gain_matrix(variant, value)
    of_study = tables["gain_matrix"].to_pandas().query("variant == @variant")
    expected = of_study.pivot(index="dataset", columns="task", values=value)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-12)
    array = tables.gain_array(variant, value)
    assert array.dims == ("model", "dataset", "task")
    assert array.attrs["variant"] == variant
    np.testing.assert_allclose(array.mean("model"), found, rtol=1e-12)
    one = tables.gain_matrix(variant, value, "micro-qwen3")
    np.testing.assert_array_equal(array.sel(model="micro-qwen3"), one)
    assert one.loc["counting"].isna().all() == (variant == "lora")
    assert not found.loc["counting"].isna().any()


MISTAKES: dict[str, tuple[Callable[[Tables], object], str]] = {
    "attribute": (lambda t: t.scors, "no table 'scors'; did you mean scores or costs? valid: trials, training, scores"),
    "key": (lambda t: t["gain"], "no table 'gain'; did you mean gains? valid: "),
    "nothing like it": (lambda t: t["x"], "no table 'x'; valid: trials, "),
    "column": (lambda t: t.scores.to_pandas("vlue"), "scores.parquet: no column 'vlue'; did you mean value? valid: "),
    "columns": (lambda t: t.scores.columns["vlue"], "scores.parquet: no column 'vlue'; did you mean value? valid: "),
    "no variant": (lambda t: t.gain_matrix(), "gains.parquet: 2 variants, choose one; valid: full, lora"),
    "variant": (lambda t: t.gain_matrix("ful"), "no variant 'ful'; did you mean full? valid: full, lora"),
    "value": (lambda t: t.gain_array("full", "gian"), "no column of numbers 'gian'; did you mean gain? valid: size, "),
    "text": (lambda t: t.gain_matrix("full", "task"), "no column of numbers 'task'"),
    "model": (lambda t: t.gain_matrix("full", model="qwen"), "no model 'qwen'; valid: micro-gemma2, "),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_an_unknown_name_is_one_line_with_the_nearest(root: Path, tables: Tables, what: str) -> None:
    do, message = MISTAKES[what]
    with pytest.raises(UnknownNameError) as raised:
        do(tables)
    assert str(raised.value).startswith(str(root))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_name_that_is_not_there_is_that_for_python_too(tables: Tables) -> None:
    assert not hasattr(tables, "scors")
    assert tables.get("scors") is None
    assert "scors" not in tables
    assert not hasattr(tables, "_ipython_canary_method_should_not_exist_")


def test_what_a_notebook_shows_is_escaped(tmp_path: Path) -> None:
    table = pa.table({EVIL: [EVIL]}, schema=pa.schema([pa.field(EVIL, pa.string(), metadata={"meaning": EVIL})]))
    (tmp_path / "tables").mkdir()
    name = "<img src=x>"
    pq.write_table(table, tmp_path / "tables" / f"{name}.parquet")
    tables = raysft.load(tmp_path)
    for shown in (tables, tables[name], tables[name].columns):
        assert "<script" not in shown._repr_html_()
        assert "<img" not in shown._repr_html_()
        assert "&lt;script&gt;" in shown._repr_html_()


def test_a_released_study_has_its_matrices_too(tmp_path: Path) -> None:
    """Its gains have no variants of their own: what differs within a method is told apart."""
    rows = [
        {"model": model, "dataset": dataset, "method": method, "epoch": 10, "size": size, "schedule": "cosine"}
        | {"task": "GSM8K", "base": 1.0, "score": 3.0, "gain": float(len(model) + size)}
        for model in ("a", "bb")
        for dataset in ("x", "y")
        for method, size in (("full", 1000), ("full", 2000), ("lora", 1000))
    ]
    (tmp_path / "tables").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "tables" / "gains.parquet")
    tables = raysft.load(tmp_path)
    assert tables.variants == ["full, size 1000", "full, size 2000", "lora"]
    assert tables.gain_matrix("full, size 2000").loc["x", "GSM8K"] == 2001.5


def test_tables_in_memory_a_plain_folder_and_the_folder_of_a_study(root: Path) -> None:
    made = synthetic_tables(SWEEP)
    in_memory = raysft.load(made)
    assert in_memory.scores.arrow is made["scores"]
    assert len(in_memory.scores) == made["scores"].num_rows
    assert set(raysft.load(root / "tables")) == set(made)
    assert set(raysft.load(str(root / "study"))) == set(STUDY_TABLES)
    assert raysft.load(open_storage(str(root))).scores.arrow.equals(raysft.load(root).scores.arrow)


def test_a_sweep_in_yaml_is_its_storage(
    root: Path, content: dict[str, Any], write_sweep: Callable[[dict[str, Any]], Path]
) -> None:
    assert set(raysft.load(write_sweep({**content, "storage": str(root)}))) == set(raysft.load(root))


@pytest.fixture
def bucket(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of the same storage on S3."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with s3_service() as service:
        for name, value in environment(service.url).items():
            monkeypatch.setenv(name, value)
        address = f"s3://{BUCKET}/a sweep"
        for folder in ("tables", "study"):
            open_storage(address).upload(root / folder, folder)
        yield address


def test_a_storage_in_a_bucket(root: Path, bucket: str) -> None:
    found, local = raysft.load(bucket), raysft.load(root)
    assert list(found) == list(local)
    assert found.gain_matrix("full").equals(local.gain_matrix("full"))
    assert found.scores.where == f"{bucket}/tables/scores.parquet"


def test_what_has_no_tables_is_named(tmp_path: Path) -> None:
    for where in (tmp_path, tmp_path / "none"):
        with pytest.raises(StorageError, match=r"^\S+: no tables; valid are a sweep's YAML or storage"):
            raysft.load(where)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "scores.parquet").write_bytes(b"PAR1 nothing of the kind PAR1")
    tables = raysft.load(tmp_path)
    with pytest.raises(StorageError, match=r"scores\.parquet"):
        len(tables.scores)
    (tmp_path / "tables" / "scores.parquet").unlink()
    with pytest.raises(StorageError, match=r"cannot read tables/scores\.parquet"):
        tables.scores.to_pandas()


@pytest.mark.parametrize(("package", "method"), [("polars", "to_polars"), ("xarray", "gain_array")])
def test_without_an_optional_package_the_line_says_what_to_install(
    tables: Tables, monkeypatch: pytest.MonkeyPatch, package: str, method: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"is not installed: pip install 'raysft\[notebook\]'"):
        tables.gain_array("full") if method == "gain_array" else tables.scores.to_polars()


def test_importing_the_package_is_light() -> None:
    code = "import sys, raysft; assert 'load' in dir(raysft); print(sorted({'pyarrow', 'pandas'} & set(sys.modules)))"
    heavy = "raysft.load; print(sorted({'torch', 'ray', 'transformers', 'polars', 'xarray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", f"{code}; {heavy}"], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
    with pytest.raises(AttributeError, match="module 'raysft' has no attribute 'lod'; it has __version__, load"):
        getattr(raysft, "lo" + "d")


def _snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("snippet", _snippets())
def test_the_lines_of_the_readme_answer_their_question(
    root: Path, snippet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parents[1])
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(snippet, "README", "exec"), {})
    assert "capitals" in said.getvalue()
    assert os.linesep in said.getvalue()


def test_the_readmes_best_dataset_has_its_own_error(root: Path, tmp_path: Path) -> None:
    """Where the error of the best is not known, that of the second best is no answer."""
    matrix = pq.read_table(root / "study" / "tables" / "gain_matrix.parquet")
    rows = sorted(matrix.to_pylist(), key=lambda row: row["gain"])
    best = {(row["variant"], row["task"]): row["dataset"] for row in rows}
    for row in rows:
        if best[row["variant"], row["task"]] == row["dataset"]:
            row["stderr"] = None
    (folder := tmp_path / "study" / "tables").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=matrix.schema), folder / "gain_matrix.parquet")
    (snippet,) = _snippets()
    found: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(snippet.replace("results/quickstart", str(tmp_path)), "README", "exec"), found)
    answer = found["best"].reset_index()
    assert {(row.variant, row.task): row.dataset for row in answer.itertuples()} == best
    assert answer["stderr"].isna().all()


def test_an_order_of_names_that_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    for name in ("zebra", "scores", "aardvark", "trials"):
        pq.write_table(pa.table({"a": [1]}), tmp_path / f"{name}.parquet")
    assert list(loading.load(tmp_path)) == ["trials", "scores", "aardvark", "zebra"]
