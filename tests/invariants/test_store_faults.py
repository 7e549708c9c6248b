"""An S3 service that throttles, hangs up, loses answers or refuses: what passes is waited for, the rest is one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from raysft.cli import app
from raysft.store import filesystems, objects
from raysft.store.checkpoints import MANIFEST, is_complete, local_folder, write_folder
from raysft.store.layout import Storage, StorageAccessError, StorageError, open_storage
from raysft.store.probe_schemas import LOG_LIKELIHOOD
from raysft.store.results import Cost, commit_result, read_result, result_path, scan_results
from tests.s3_server import BUCKET, Kind, S3Server, environment, s3_service

pytestmark = pytest.mark.invariants

STAGE = "log_likelihood"
FOLDER = "checkpoints/t/epoch-0001"


@pytest.fixture(scope="module")
def started() -> Iterator[S3Server]:
    with s3_service() as server:
        yield server


@pytest.fixture
def service(started: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name, value in environment(started.url).items():
        monkeypatch.setenv(name, value)
    yield started
    started.mend()


@pytest.fixture
def storage(service: S3Server, tmp_path: Path) -> Storage:
    return open_storage(f"s3://{BUCKET}/{tmp_path.name}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attempts, so that a test of a fault that stays is soon over."""
    monkeypatch.setattr(objects, "ATTEMPTS", 2)
    monkeypatch.setattr(filesystems, "ATTEMPTS", 2)
    monkeypatch.setattr(objects, "_PATIENCE_S", 1.0)


def _table(value: float) -> pa.Table:
    row = {"text": 0, "text_hash": "h", "log_likelihood": value, "tokens": 3, "bytes": 9}
    return pa.Table.from_pylist([row], schema=LOG_LIKELIHOOD)


def _commit(storage: Storage, key: str, value: float) -> bool:
    return commit_result(storage, STAGE, key, _table(value), {"model": "m"}, Cost(1.5))


def _save(text: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        (folder / "weights").write_text(text)

    return save


def _is_one_line(error: BaseException, *words: str) -> bool:
    text = str(error)
    return "\n" not in text and len(text) < 1000 and all(word in text for word in words)


@pytest.mark.parametrize("kind", ["slow down", "internal error", "hang up", "lose the answer"])
def test_what_passes_is_waited_for(storage: Storage, service: S3Server, tmp_path: Path, kind: Kind) -> None:
    faults = [service.fault(kind, 2, matching=f"^{method} ") for method in ("PUT", "GET", "HEAD")]
    assert _commit(storage, "k", 1.0)
    assert write_folder(storage, FOLDER, _save("abc"), {})
    assert scan_results(storage, STAGE).committed == {"k"}
    assert read_result(storage, STAGE, "k").num_rows == 1
    assert (local_folder(storage, FOLDER, tmp_path / "copies") / "weights").read_text() == "abc"
    assert [fault.happened for fault in faults] == [2, 2, 2]


def test_a_commit_whose_answer_was_lost_is_the_first_all_the_same(storage: Storage, service: S3Server) -> None:
    lost = service.fault("lose the answer", matching=r"PUT .*\.parquet")
    assert _commit(storage, "k", 1.0)
    assert lost.happened == 1
    name = storage.key(result_path(STAGE, "k"))
    assert service.requests.count(f"PUT /{BUCKET}/{name}") == 2  # the second was refused
    assert not _commit(storage, "k", 2.0)


def test_a_commit_that_loses_while_its_answer_is_lost_is_not_the_first(storage: Storage, service: S3Server) -> None:
    held = service.fault("hold", matching=r"PUT .*\.parquet")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(_commit, storage, "k", 2.0)
        assert held.reached.wait(timeout=60)
        assert _commit(storage, "k", 1.0)
        service.fault("lose the answer", matching=r"PUT .*\.parquet")
        held.released.set()
        assert not slow.result(timeout=60)
    assert read_result(storage, STAGE, "k").column("log_likelihood").to_pylist() == [1.0]


def test_a_conflict_with_a_put_that_came_to_nothing_is_tried_again(storage: Storage, service: S3Server) -> None:
    conflict = service.fault("conflict", 2, matching=r"PUT .*\.parquet")
    assert _commit(storage, "k", 1.0)
    assert conflict.happened == 2


def test_a_manifest_that_comes_late_changes_nothing(storage: Storage, service: S3Server, tmp_path: Path) -> None:
    late = service.fault("hold", matching=f"PUT .*/{MANIFEST}")
    with ThreadPoolExecutor(1) as pool:
        zombie = pool.submit(write_folder, storage, FOLDER, _save("of the zombie"), {})
        assert late.reached.wait(timeout=60)
        assert write_folder(storage, FOLDER, _save("of the living"), {})
        manifest = storage.read_bytes(FOLDER, MANIFEST)
        late.released.set()
        assert not zombie.result(timeout=60)
    assert storage.read_bytes(FOLDER, MANIFEST) == manifest
    assert (local_folder(storage, FOLDER, tmp_path) / "weights").read_text() == "of the living"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["slow down", "hang up", "denied"])
def test_what_does_not_pass_is_one_line(service: S3Server, tmp_path: Path, kind: Kind) -> None:
    storage = open_storage(f"s3://{BUCKET}/{tmp_path.name}")
    assert _commit(storage, "before", 1.0)
    service.fault(kind, 10**6)
    doings: list[Callable[[], Any]] = [
        storage.check_writable,
        lambda: storage.names("results", STAGE),
        lambda: storage.exists("sweep.yaml"),
        lambda: storage.write_bytes(b"x", "sweep.yaml"),
        lambda: storage.create_bytes(b"x", "lock"),
        lambda: read_result(storage, STAGE, "before"),
        lambda: is_complete(storage, FOLDER),
        lambda: write_folder(storage, FOLDER, _save("abc"), {}),
    ]
    for doing in doings:
        with pytest.raises(StorageAccessError) as caught:
            doing()
        assert _is_one_line(caught.value, storage.uri), str(caught.value)
    service.mend()
    assert scan_results(storage, STAGE).committed == {"before"}
    assert not is_complete(storage, FOLDER)
    assert storage.names() == ["results"]


@pytest.mark.usefixtures("impatient")
def test_a_refusal_is_said_as_one(service: S3Server, tmp_path: Path) -> None:
    storage = open_storage(f"s3://{BUCKET}/{tmp_path.name}")
    service.fault("denied", 10**6, matching="^(PUT|POST) ")
    with pytest.raises(
        StorageAccessError, match=r"cannot write there .*refused: credentials come from the environment"
    ):
        storage.check_writable()


def test_a_bucket_that_is_not_there_is_named(service: S3Server) -> None:
    with pytest.raises(StorageAccessError, match=r"s3://nowhere/x: cannot write there \(there is no such bucket"):
        open_storage("s3://nowhere/x").check_writable()


@pytest.mark.usefixtures("impatient")
def test_missing_credentials_are_said_to_be_missing(service: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(
        StorageAccessError, match=r"cannot write there .*no credentials: set AWS_ACCESS_KEY_ID"
    ) as caught:
        open_storage(f"s3://{BUCKET}/x").check_writable()
    assert _is_one_line(caught.value)


@pytest.mark.usefixtures("service", "impatient")
def test_a_service_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageAccessError) as caught:
        open_storage(f"s3://{BUCKET}/x").check_writable()
    assert _is_one_line(caught.value, "cannot write there", "127.0.0.1:9")


def test_a_service_without_conditional_puts_is_refused(storage: Storage, service: S3Server) -> None:
    service.fault("ignore conditions", 10**6)
    with pytest.raises(StorageError, match="it ignores If-None-Match"):
        storage.check_writable()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://KEY:PLANTED@bucket/x", r"s3://\*\*\*@bucket/x: credentials come from the environment"),
        ("s3://bucket/x?secret_key=PLANTED", "unknown option secret_key; valid: endpoint_override, region, scheme"),
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(uri: str, words: str) -> None:
    with pytest.raises(StorageError, match=words) as caught:
        open_storage(uri)
    assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize("command", ["plan", "run", "status"])
def test_the_command_refuses_an_address_with_credentials(
    content: dict[str, Any], write_sweep: Callable[[dict[str, Any]], Path], command: str
) -> None:
    sweep = write_sweep({**content, "storage": "s3://KEY:PLANTED@bucket/x"})
    done = CliRunner().invoke(app, [command, str(sweep)])
    assert done.exit_code == 2
    assert "storage s3://***@bucket/x: credentials come from the environment" in done.stderr
    assert "PLANTED" not in done.output + done.stderr


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("trouble", ["no bucket", "denied", "no answer"])
def test_run_ends_with_one_line_before_any_work(
    content: dict[str, Any],
    write_sweep: Callable[[dict[str, Any]], Path],
    service: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
) -> None:
    bucket = "nowhere" if trouble == "no bucket" else BUCKET
    if trouble == "denied":
        service.fault("denied", 10**6)
    if trouble == "no answer":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    done = CliRunner().invoke(app, ["run", str(write_sweep({**content, "storage": f"s3://{bucket}/x"}))])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"raysft: storage s3://{bucket}/x: cannot ")
    assert done.stderr.count("\n") == 1
