"""Bad files, addresses and storages: each ends with one line that says where, what was found and what is valid."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from raysft.cli import app
from raysft.cluster.address import check_cluster, check_job_server
from raysft.cluster.submit import JobServer
from raysft.spec.benchmarks import data_files
from raysft.spec.mistakes import shown
from raysft.spec.plan import Plan, make_plan
from raysft.spec.reading import MOST_BYTES, read_text
from raysft.spec.shape import folder_shape
from raysft.spec.sweep import SpecError, load_sweep, parse_sweep
from raysft.store.layout import StorageError, open_storage
from raysft.store.results import Cost, commit_result, read_result
from raysft.store.schema import RESULTS, SCHEMA_VERSION

pytestmark = pytest.mark.unit

Content = dict[str, Any]
Write = Callable[[Content], Path]


def _refused(*words: object) -> str:
    """The one line with which a command ends."""
    ended = CliRunner().invoke(app, [str(word) for word in words])
    assert ended.exit_code == 2, ended.output
    [line] = ended.stderr.splitlines()
    assert line.startswith("raysft: ")
    return line.removeprefix("raysft: ")


BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))

FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "expected a mapping of fields, found nothing"),
    "a list": (b"- a\n- b\n", "expected a mapping of fields, found a list"),
    "several documents": (b"name: a\n---\nname: b\n", "line 2, column 1: but found another document"),
    "field twice": (b"name: a\nstorage: b\nname: c\n", "line 3, column 1: 'name' is there already, in line 1"),
    "field twice in one line": (b"{name: a, name: b}", "'name' is there already"),
    "aliases of aliases": (b"a0: &a0 [x]\n" + BOMB.encode(), "more than 200,000 values, aliases written out"),
    "merged for ever": (b"a: &a {b: 1, <<: *a}\n", "an alias inside what it stands for"),
    "deep": (b"[" * 5000, "more than 32 levels"),
    "large": (b"#" * (MOST_BYTES + 1), "more than 512 KiB"),
    "not UTF-8": (b"name: \xff\n", "not UTF-8: invalid start byte at byte 6"),
    "UTF-16": ("name: a\n".encode("utf-16"), "not UTF-8"),
    "control character": (b"name: \x00\n", "not YAML (character 0x0 at 6"),
    "tab": (b"training:\n\tbatch_size: 8\n", "line 2, column 1: found character '\\t' that cannot start any token"),
    "object": (b"name: !!python/object/apply:os.system [ls]\n", "!!python/object/apply:os.system is not plain data"),
    "binary": (b"name: !!binary aGk=\n", "!!binary is not plain data"),
    "no code point": (b'name: "\\UFFFFFFFF"\n', "not YAML"),
    "half a character": (b'name: "\\ud800"\n', "is not a text"),
    "number without end": (b"name: " + b"9" * 5000, "a number of 5000 characters"),
    "number beyond 64 bits": (b"name: 0x1ffffffffffffffff\n", "0x1ffffffffffffffff is beyond 64 bits"),
    "number without digits": (b"name: 0b_\n", "0b_ is not a number"),
    "list as a name": (b"? [a, b]\n: c\n", "a list or mapping as the name of a field"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_sweep_is_refused(tmp_path: Path, name: str) -> None:
    content, expected = FILES[name]
    path = tmp_path / "sweep.yaml"
    path.write_bytes(content)
    line = _refused("plan", path)
    assert line.startswith(f"{path}: ")
    assert expected in line


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert _refused("plan", tmp_path) == f"{tmp_path}: cannot be read (Is a directory)"
    assert _refused("plan", tmp_path / "none.yaml") == f"{tmp_path / 'none.yaml'}: no such file"
    assert _refused("plan", "x" * 300 + ".yaml").endswith(": cannot be read (File name too long)")


def test_what_is_only_unusual_is_read(content: Content, tmp_path: Path) -> None:
    """A BOM, CRLF, anchors with merge keys, a name like a date, and on and off, which are no booleans here."""
    del content["name"], content["training"], content["methods"]
    text = (
        "name: 2024-01-01\ntraining: {batch_size: 16, max_length: 128, packing: off}\n"
        "methods:\n- &full {name: full, kind: full}\n- {<<: *full, name: high, depth: [0.5, 1]}\n"
    )
    path = tmp_path / "sweep.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + (text + yaml.safe_dump(content)).replace("\n", "\r\n").encode())
    sweep = load_sweep(path)
    assert (sweep.name, sweep.training.packing) == ("2024-01-01", "off")
    assert sweep.method("high").kind == "full"


CONTENTS: dict[str, tuple[Callable[[Content], Any], str]] = {
    "a billion trials": (
        lambda c: c["grid"][0].update(seeds=list(range(1000)), sizes=[*range(1, 65)], epochs=[*range(2, 5002)]),
        "grid: comes to 1,280,000,000 trials; valid: at most 100,000",
    ),
    "a billion checkpoints": (
        lambda c: c["grid"][0].update(epochs=[10**9]),
        "grid: 4,000,000,000 checkpoints x 2 benchmarks are more results than a sweep may have; valid: at most 2,000",
    ),
    "infinite rate": (lambda c: c["training"].update(learning_rate=1e999), "training.learning_rate: "),
    "number of many digits as a text": (
        lambda c: c["training"].update(batch_size="9" * 30),
        "batch_size: a whole number has at most 64 bits, found one of 100",
    ),
    "list where a text is due": (lambda c: c.update(name=["a"]), "name: Input should be a valid string, found a list"),
    "wrong entry of an axis": (
        lambda c: c["grid"][0].update(sizes=["some"]),
        "grid.0.sizes.0: Input should be a valid integer, unable to parse string as an integer, or 'all', found 'some'",
    ),
    "name with spaces": (lambda c: c.update(name="a b"), "name: a name is of letters, digits, dots, dashes"),
    "empty storage": (lambda c: c.update(storage=" "), "storage: String should have at least 1 character"),
    "path with a NUL": (
        lambda c: c.update(datasets=[{"name": "mine", "path": "a\0b"}]),
        "datasets.mine.path: 'a\\x00b' is no path here (",
    ),
    "path without end": (
        lambda c: c.update(datasets=[{"name": "mine", "path": "x" * 300}]),
        "cannot be read (File name too long)",
    ),
    "home of nobody": (
        lambda c: c.update(models=[{"name": "mine", "path": "~nobody-of-this-name/model"}]),
        "models.mine.path: '~nobody-of-this-name/model' is no path here (",
    ),
    "mixture with one dataset twice": (
        lambda c: c["datasets"].append({"name": "all", "mixture": {"of": ["capitals", "capitals"]}}),
        "datasets.2.mixture.of: a mixture takes each dataset once, found twice: capitals",
    ),
    "codes of a terminal": (lambda c: c.update({"\x1b[2J": 1}), "\\x1b[2J: unknown field"),
    "a field without a name": (lambda c: c.update({"": 1}), "'': unknown field"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_value_that_cannot_be_is_refused(content: Content, write_sweep: Write, name: str) -> None:
    change, expected = CONTENTS[name]
    change(content)
    assert expected in _refused("plan", write_sweep(content))


def test_many_mistakes_are_counted_after_the_first(content: Content) -> None:
    content["grid"][0]["seeds"] = [-1] * 5000
    with pytest.raises(SpecError) as caught:
        parse_sweep(content, "test")
    assert str(caught.value).endswith("; and 4992 more mistakes")
    assert len(str(caught.value)) < 1000


def test_names_like_markup_are_printed_as_they_are(content: Content, write_sweep: Write) -> None:
    content["storage"] += "/[/INST]/:x:"
    ended = CliRunner().invoke(app, ["plan", str(write_sweep(content))])
    assert ended.exit_code == 0
    assert content["storage"] in ended.stdout


TASKS = {
    "not YAML": ("a: [", "not YAML"),
    "includes itself": ("include: task.yaml", "include: comes back to itself"),
    "includes nothing": ("include: none.yaml", "none.yaml: no such file"),
    "text for options": ("dataset_kwargs: text", "dataset_kwargs: expected a mapping, found text"),
    "number for a file": ("dataset_kwargs: {data_files: [1]}", "dataset_kwargs.data_files: expected paths, found 1"),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    text, expected = TASKS[name]
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(SpecError) as caught:
        data_files(tmp_path / "task.yaml")
    assert str(caught.value).startswith(str(tmp_path))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "sizes", [{"num_attention_heads": 0}, {"hidden_size": "wide"}, {"head_dim": -1}, {"vocab_size": []}]
)
def test_a_model_folder_with_impossible_sizes_is_refused(tmp_path: Path, sizes: Content) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 8}
    config |= {"num_attention_heads": 2, "vocab_size": 9, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^(num_attention_heads|hidden_size|head_dim|vocab_size): [^\n]*found"):
        folder_shape(tmp_path)


@pytest.fixture
def closed_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def test_a_cluster_that_does_not_answer_is_named(
    content: Content, write_sweep: Write, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `run`, before Ray is even imported; by its address on the command line and in RAY_ADDRESS."""
    path, there = write_sweep(content), f"127.0.0.1:{closed_port}"
    for address in (there, f"ray://{there}"):
        assert _refused("run", path, "--address", address).startswith(f"--address: nobody answers at {address} (")
    monkeypatch.setenv("RAY_ADDRESS", there)
    assert f"nobody answers at {there}" in _refused("run", path)
    assert not Path(content["storage"]).exists()


@pytest.mark.parametrize("address", ["here", "host:", ":6379", "host:port", "host:99999"])
def test_what_is_no_address_of_a_cluster_is_refused(address: str) -> None:
    with pytest.raises(SpecError, match=r"--address: found .*; valid: HEAD:6379, or auto"):
        check_cluster(address)


def test_addresses_of_the_other_kind_are_refused() -> None:
    with pytest.raises(SpecError, match=r"http://HEAD:8265 is that of a job server, which `raysft submit` takes"):
        check_cluster("http://HEAD:8265")
    for address in ("ray://HEAD:10001", "HEAD:6379", "auto"):
        with pytest.raises(SpecError, match=rf"--address: {address} is no job server; valid: http://HEAD:8265"):
            check_job_server(address)


def test_a_cluster_that_listens_and_one_that_ray_finds_are_let_through() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_cluster(f"127.0.0.1:{server.getsockname()[1]}")
    check_cluster("auto")


@pytest.mark.usefixtures("no_proxies")
def test_a_job_server_that_does_not_answer_is_named(content: Content, write_sweep: Write, closed_port: int) -> None:
    path, address = write_sweep(content), f"http://127.0.0.1:{closed_port}"
    for command in ("submit", "cancel"):
        assert _refused(command, path, "--address", address).startswith(f"--address: nobody answers at {address} (")


class _Stranger(BaseHTTPRequestHandler):
    """A server that is not Ray's."""

    answer = (200, b"{}")

    def do_GET(self) -> None:
        self.send_response(self.answer[0])
        self.end_headers()
        self.wfile.write(self.answer[1])

    def log_message(self, *_: Any) -> None:
        """Nothing: the log of a test is not for it."""


@pytest.fixture
def stranger() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Stranger)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("answer", [(200, b"{}"), (200, b"<html>"), (500, b"broken"), (404, b"")])
def test_a_server_of_another_kind_is_no_job_server(
    stranger: str, answer: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Stranger, "answer", answer)
    with pytest.raises(SpecError, match=rf"^no job server at {stranger} \(.+\)$"):
        JobServer(stranger)


@pytest.mark.parametrize("command", ["plan", "status", "run", "reduce", "study", "report"])
def test_a_storage_that_is_a_file_is_named(content: Content, write_sweep: Write, command: str) -> None:
    file = Path(content["storage"])
    file.write_text("not a folder")
    assert _refused(command, write_sweep(content)) == f"storage {file}: a file, where a folder is needed"
    assert file.read_text() == "not a folder"


@pytest.fixture
def without_rights() -> list[str]:
    """Words before a command that take from root the right to read and write what its modes forbid."""
    if os.getuid() != 0:
        return []
    words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None or subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("root keeps its rights here")
    return words


@pytest.fixture
def forbidden(tmp_path: Path) -> Iterator[Path]:
    """A storage whose results may not be read, and into which nothing may be written."""
    locked = tmp_path / "locked"
    (locked / "results").mkdir(parents=True)
    (locked / "results").chmod(0o000)
    locked.chmod(0o555)
    yield locked
    locked.chmod(0o755)
    (locked / "results").chmod(0o755)


COMMANDS = """
import json, sys
from typer.testing import CliRunner
from raysft.cli import app
ended = {command: CliRunner().invoke(app, [command, sys.argv[1]]) for command in ("run", "reduce", "status")}
print(json.dumps({command: (result.exit_code, result.stderr) for command, result in ended.items()}))
"""


def test_a_storage_without_permission_is_named(
    content: Content, write_sweep: Write, without_rights: list[str], forbidden: Path
) -> None:
    path = write_sweep({**content, "storage": str(forbidden)})
    program = [*without_rights, sys.executable, "-c", COMMANDS, str(path)]
    ended = json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)
    assert len(ended) == 3
    for command, (exit_code, said) in ended.items():
        assert exit_code == 2, (command, said)
        [line] = said.splitlines()
        assert line.startswith(f"raysft: storage {forbidden}: cannot "), command
        assert "Permission denied" in line


def _committed(plan: Plan, version: int, **columns: list[Any]) -> Path:
    """A perplexity result of the plan as another version of raysft wrote it."""
    work = next(work for work in plan.works() if work.stage == "perplexity")
    storage = open_storage(plan.sweep.storage)
    schema = RESULTS["perplexity"]
    rows = [{"property": "response_perplexity", "about": None, "value": 2.0, "unit": "x", "n": 1}]
    table = pa.Table.from_pylist(rows, schema=schema)
    commit_result(storage, work.stage, work.key, table, work.subject.as_row(), Cost(1.0))
    path = storage.local_path("results", work.stage, f"{work.key}.parquet")
    table = pq.read_table(path)
    metadata = {**table.schema.metadata, b"schema_version": str(version).encode()}
    table = table.select([name for name in table.column_names if name not in columns.get("without", [])])
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def test_a_result_of_an_older_schema_is_read_and_its_missing_columns_are_null(
    content: Content, write_sweep: Write
) -> None:
    plan = make_plan(load_sweep(write_sweep(content)))
    path = _committed(plan, SCHEMA_VERSION - 1, without=["n", "unit", "examples"])
    [row] = read_result(open_storage(plan.sweep.storage), "perplexity", path.stem).to_pylist()
    assert (row["value"], row["n"], row["unit"]) == (2.0, None, None)
    assert CliRunner().invoke(app, ["reduce", str(write_sweep(content))]).exit_code == 0
    [row] = pq.read_table(Path(content["storage"]) / "tables" / "data_properties.parquet").to_pylist()
    assert (row["value"], row["n"]) == (2.0, None)


def test_a_result_of_a_newer_schema_is_named_and_left_where_it_is(content: Content, write_sweep: Write) -> None:
    """To do it again would be to lose what is newer; the rest is still reduced and shown."""
    sweep = write_sweep(content)
    path = _committed(make_plan(load_sweep(sweep)), SCHEMA_VERSION + 1)
    newer = f"schema version {SCHEMA_VERSION + 1}, this raysft reads up to {SCHEMA_VERSION}"
    with pytest.raises(StorageError, match=newer):
        read_result(open_storage(content["storage"]), "perplexity", path.stem)
    reduced = CliRunner().invoke(app, ["reduce", str(sweep)])
    assert reduced.exit_code == 0
    assert f"left out: results/perplexity/{path.name}: {newer}" in reduced.output
    assert path.is_file()
    assert pq.read_table(Path(content["storage"]) / "tables" / "data_properties.parquet").num_rows == 0
    shown = CliRunner().invoke(app, ["plan", str(sweep), "--json"])
    assert json.loads(shown.stdout)["stages"]["perplexity"] == {"done": 1, "planned": 2}


def test_a_file_is_read_in_one_way_whatever_it_is_for(tmp_path: Path) -> None:
    """As a file that somebody named, or that a field of a sweep names."""
    (tmp_path / "latin").write_bytes(b"a\xe9")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfa\n")
    assert read_text(tmp_path / "marked") == "a\n"
    cannot = "cannot be read"
    for name, problem, of_a_field in (
        ("none", ": no such file", "w: no file {}"),
        ("latin", f": {cannot} (not UTF-8: unexpected end of data at byte 1)", "w: {} cannot be read (not UTF-8: "),
        (".", f": {cannot} (Is a directory)", "w: {} cannot be read (Is a directory)"),
        ("a\0b", f": {cannot} (embedded null byte)", "w: {} cannot be read (embedded null byte)"),
    ):
        path = tmp_path / name
        with pytest.raises(SpecError) as refused:
            read_text(path)
        assert str(refused.value) == f"{shown(path)}{problem}"
        with pytest.raises(SpecError) as refused:
            read_text(path, "w")
        assert str(refused.value).startswith(of_a_field.format(shown(path)))
