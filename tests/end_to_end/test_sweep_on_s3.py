"""A whole sweep whose storage is a bucket, with one bad trial, and secrets in the environment of all that runs."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from raysft.store.layout import REPORT_FILE, Storage, open_storage
from tests.conftest import SMALL
from tests.s3_server import BUCKET, environment, s3_service

pytestmark = pytest.mark.end_to_end

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "PLANTED0aws0secret0access0key0wJalrXUtnFEMI",
    "HF_TOKEN": "hf_PLANTED0hub0token0AbCdEfGhIjKlMnOp",
    "OPENAI_API_KEY": "sk-PLANTED0judge0key0QrStUvWxYz012345",
}


@dataclass(frozen=True)
class Ran:
    """A sweep that ran: the storage, the driver's exit code and output, and the folder of the Ray session."""

    storage: Storage
    sweep: Path
    code: int
    output: str
    ray: Path


def _content() -> dict[str, Any]:
    content: dict[str, Any] = {**copy.deepcopy(SMALL), "storage": f"s3://{BUCKET}/sweeps/small"}
    content["datasets"] = [content["datasets"][0]]
    lora = content["methods"][1]
    content["methods"] = [lora, {**lora, "name": "bad", "targets": ["a_module_that_is_not_there"]}]
    content["grid"] = [{"sizes": [16], "epochs": [1]}]
    content["evaluation"] = {"tasks": ["micro_capitals_choice"], "limit": 4}
    content["probes"]["perplexity"] = {"rows": 4}
    return content


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("s3")
    (folder / "sweep.yaml").write_text(json.dumps(_content()))
    session = Path(tempfile.mkdtemp(prefix="s3-", dir="/tmp"))  # short: the paths of Ray's sockets are
    with s3_service() as service, pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment(service.url), **SECRETS, "RAY_TMPDIR": str(session)}.items():
            patch.setenv(name, value)
        patch.setenv("TMPDIR", str(folder))
        try:
            code, output = _run([sys.executable, "-m", "raysft.cli", "run", str(folder / "sweep.yaml")], folder)
            yield Ran(open_storage(_content()["storage"]), folder / "sweep.yaml", code, output, session)
        finally:
            shutil.rmtree(session, ignore_errors=True)


def _run(command: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and output; where it does not end, it is ended with all that it started."""
    with (folder / "output").open("w+") as output:
        driver = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = driver.wait(timeout=800)
        finally:
            started = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
            driver.kill()
            for process in started:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            driver.wait(timeout=30)
        output.seek(0)
        return code, output.read()


def _files(storage: Storage) -> dict[str, bytes]:
    infos = storage.filesystem.get_file_info(pafs.FileSelector(storage.root, recursive=True))
    paths = [info.path.removeprefix(f"{storage.root}/") for info in infos if info.type == pafs.FileType.File]
    return {path: storage.read_bytes(path) for path in paths}


def _table(ran: Ran, name: str) -> Any:
    return pq.read_table(io.BytesIO(ran.storage.read_bytes("tables", f"{name}.parquet")))


def test_what_can_be_done_is_done_and_what_failed_is_recorded(ran: Ran) -> None:
    assert ran.code == 1, ran.output
    assert "Traceback" not in ran.output
    states = {(row["method"], row["state"]) for row in _table(ran, "trials").to_pylist()}
    assert states == {(None, "done"), ("lora", "done"), ("bad", "failed")}, ran.output
    assert _table(ran, "intrinsic_dimension").num_rows > 0
    assert {row["stage"] for row in _table(ran, "failures").to_pylist()} >= {"train"}
    assert b"</html>" in ran.storage.read_bytes(REPORT_FILE)
    names = {path.partition("/")[0] for path in _files(ran.storage)}
    assert not [name for name in names if name.startswith(".")], names


def test_the_command_goes_on_from_the_bucket_alone(ran: Ran) -> None:
    command = [sys.executable, "-m", "raysft.cli", "status", str(ran.sweep), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    stages = json.loads(done.stdout)["stages"]
    assert stages["train"] == {"done": 1, "planned": 2}
    assert stages["pretrain"] == {"done": 1, "planned": 1}


def _holding(secret: str, content: bytes) -> bool:
    return secret.encode() in content


def test_no_secret_is_in_the_storage(ran: Ran) -> None:
    files = _files(ran.storage)
    assert len(files) > 30
    for path, content in files.items():
        texts = [content]
        if path.endswith(".parquet"):  # compressed inside
            table = pq.read_table(io.BytesIO(content))
            texts += [repr(table.to_pylist()).encode(), repr(table.schema.to_string()).encode()]
            texts += [repr(field.metadata).encode() for field in table.schema] + [repr(table.schema.metadata).encode()]
        for name, secret in SECRETS.items():
            assert not any(_holding(secret, text) for text in texts), f"{name} is in {path}"


def test_no_secret_is_in_the_output_or_in_rays_logs(ran: Ran) -> None:
    logs = [path for path in ran.ray.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(logs) > 5
    for name, secret in SECRETS.items():
        assert secret not in ran.output, name
        for path in logs:
            assert not _holding(secret, path.read_bytes()), f"{name} is in {path}"


def test_the_secrets_were_there_to_be_leaked(ran: Ran) -> None:
    """Otherwise the tests above would pass without looking at anything."""
    assert all(os.environ[name] == secret for name, secret in SECRETS.items())
    assert _holding("capitals", ran.storage.read_bytes("sweep.yaml"))
