"""Pushing to a hub on loopback: what is sent, what is not sent again, and what is refused, through the real client."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from rich.console import Console
from typer.testing import CliRunner

from raysft.cli import app
from raysft.console import push as push_module
from raysft.console.push import check_push, push_and_print
from raysft.export import hub as hub_module
from raysft.export.hub import Hub
from raysft.export.mistakes import ExportError
from raysft.export.run import Options, export, selected
from raysft.export.selection import Choice
from raysft.export.uploads import prepare
from raysft.spec.sweep import Sweep, parse_sweep
from raysft.store.layout import open_storage
from tests.hub_server import TOKEN, HubServer, Repository, environment, hub_service
from tests.made_storage import make_storage

pytestmark = [pytest.mark.invariants, pytest.mark.timeout(120)]

Content = dict[str, Any]


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub, and the client told of it."""
    with hub_service() as server:
        for name, value in environment(server.url, str(tmp_path / "home")).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(push_module, "Hub", lambda: Hub(server.url))  # the client reads HF_ENDPOINT when imported
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(hub_module, "_PAUSE_S", 0.01)
        huggingface_hub.close_session()  # one that another test opened may hold other proxies
        yield server
        huggingface_hub.close_session()


@pytest.fixture
def sweep(content: Content) -> Sweep:
    content["datasets"] = content["datasets"][:1]
    return parse_sweep(content, "sweep")


@pytest.fixture
def out(sweep: Sweep, tmp_path: Path) -> Path:
    """An exported full checkpoint, an adapter, its base, and the tables."""
    return exported(sweep, tmp_path / "release")


def exported(sweep: Sweep, out: Path, **options: Any) -> Path:
    make_storage(sweep)
    with selected(sweep, open_storage(sweep.storage), Choice(models=("every",))) as selection:
        assert all(outcome.state is not None for outcome in export(selection, out, Options(**options)))
    return out


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def push(out: Path, send: bool = True, public: bool = False) -> tuple[bool, list[str]]:
    """Whether all could be pushed, and what is printed."""
    lines: list[str] = []
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, width=300)
    console.print = lambda *words, **_: lines.append(" ".join(map(str, words)))  # type: ignore[method-assign]
    return push_and_print(console, out, names(out), "acme", send, public), lines


def name_of(out: Path, part: str) -> str:
    [found] = [name for name in names(out) if part in name]
    return found


def test_a_dry_run_sends_nothing(service: HubServer, out: Path) -> None:
    whole, lines = push(out, send=False)
    assert whole
    assert service.repositories == {}
    assert service.uploads() == []
    assert all(": new, would send " in line for line in lines[:-1])
    assert lines[-1].startswith("Nothing was sent: --yes sends ")


def test_a_push_makes_private_repositories_that_name_each_other(service: HubServer, out: Path) -> None:
    whole, lines = push(out)
    assert whole, lines
    assert set(service.repositories) == {
        f"{'datasets' if 'tables' in name else 'models'}/acme/{name}" for name in names(out)
    }
    assert {repository.private for repository in service.repositories.values()} == {True}
    adapter = service.repositories[f"models/acme/{name_of(out, 'lora')}"]
    base = f"acme/{name_of(out, 'base')}"
    assert json.loads(adapter.files["adapter_config.json"])["base_model_name_or_path"] == base
    card = adapter.files["README.md"].decode()
    assert card.startswith(f"---\nbase_model: {base}\nbase_model_relation: adapter\n")
    assert f'name = "acme/{name_of(out, "lora")}"' in card
    assert "is beside this folder" not in card
    assert "./" not in card
    full = service.repositories[f"models/acme/{name_of(out, 'full')}"]
    assert full.files["model.safetensors"] == (out / name_of(out, "full") / "model.safetensors").read_bytes()
    assert "model.safetensors" in full.large
    for repository in service.repositories.values():
        record = json.loads(repository.files["raysft.json"])
        sizes = {name: entry["bytes"] for name, entry in record["files"].items()}
        there = {name: len(found) for name, found in repository.files.items()}
        assert sizes == {name: there[name] for name in there if name not in (".gitattributes", "raysft.json")}


def test_public_is_asked_for(service: HubServer, out: Path) -> None:
    push(out, public=True)
    assert {repository.private for repository in service.repositories.values()} == {False}


def test_a_second_push_sends_nothing(service: HubServer, out: Path) -> None:
    push(out)
    service.requests.clear()
    whole, lines = push(out)
    assert whole
    assert service.uploads() == []
    assert [request for request in service.requests if request.startswith("POST")] == []
    assert all(": exists, complete, all " in line for line in lines[:-1])
    assert push(out, send=False)[1][0].endswith("files are there")


def test_what_changed_is_sent_and_nothing_else(service: HubServer, sweep: Sweep, out: Path) -> None:
    push(out)
    service.requests.clear()
    exported(sweep, out, license="mit")
    _, lines = push(out)
    assert all(": exists, sent 2 of " in line for line in lines[:-1]), lines
    commits = [request for request in service.uploads() if "/commit/" in request]
    assert len(commits) == 4
    assert not [request for request in service.uploads() if request.startswith("PUT")], "only cards and records"
    for repository in service.repositories.values():
        assert b"license: mit" in repository.files["README.md"]


FAULTS: dict[str, tuple[str, int, str]] = {
    "throttled": ("throttle", 2, "PUT /lfs"),
    "throttled at the commit": ("throttle", 1, "/commit/"),
    "out of order": ("internal error", 1, "repos/create"),
    "hung up": ("hang up", 1, "GET /api/models"),
    "hung up in the middle of an upload": ("hang up in the middle", 1, "PUT /lfs"),
    "the answer to the commit is lost": ("lose the answer", 1, "/commit/"),
    "the answer to the making is lost": ("lose the answer", 1, "repos/create"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_passes_is_outlived(service: HubServer, out: Path, name: str) -> None:
    kind, times, matching = FAULTS[name]
    fault = service.fault(kind, times, matching)  # type: ignore[arg-type]
    whole, lines = push(out)
    assert whole, lines
    assert fault.happened == times
    assert set(service.received.values()) == {1}, "nothing that arrived is sent again"
    assert push(out)[1][-1].startswith("Pushed 0 B")


def test_a_push_that_was_cut_off_goes_on(service: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "ATTEMPTS", 1)
    service.fault("hang up", 10_000, f"{name_of(out, 'full')}/commit/")
    with pytest.raises(ExportError, match="does not answer"):
        push(out)
    received = dict(service.received)
    assert len(received) == 2, "the base's weights and the checkpoint's"
    service.mend()
    whole, lines = push(out)
    assert whole, lines
    assert service.received.items() >= received.items(), "large files that were there are not sent again"
    assert set(service.received.values()) == {1}
    assert {repository.commits for repository in service.repositories.values()} == {2}


def test_a_repository_of_somebody_else_is_refused(service: HubServer, out: Path) -> None:
    push(out)
    taken, other = (service.repositories[f"models/acme/{name_of(out, part)}"] for part in ("full", "lora"))
    taken.files = {".gitattributes": b"", "thesis.txt": b"mine"}
    record = json.loads(other.files["raysft.json"])
    record["identity"]["trial"] = "another"
    other.files["raysft.json"] = json.dumps(record).encode()
    for send in (False, True):
        whole, lines = push(out, send)
        assert not whole
        said = [line for line in lines if "not pushed" in line]
        assert "exists and was not made by raysft (it holds thesis.txt); left as it is" in said[0]
        assert "holds the export of something else" in said[1]
        assert len(said) == 2
    assert taken.files == {".gitattributes": b"", "thesis.txt": b"mine"}


def test_a_card_that_was_edited_there_stays(service: HubServer, sweep: Sweep, out: Path) -> None:
    push(out)
    repository = service.repositories[f"models/acme/{name_of(out, 'full')}"]
    repository.files["README.md"] += b"edited"
    repository.files["SAMPLES.md"] = b"of the user's"
    edited = repository.files["README.md"]
    exported(sweep, out, license="mit")
    for _ in range(2):
        _, lines = push(out)
        [line] = [line for line in lines if "full" in line]
        assert line.endswith("its card was edited there and stays")
        assert repository.files["README.md"] == edited
        assert repository.files["SAMPLES.md"] == b"of the user's"
    assert "complete" in line


def test_a_licence_file_goes_along_and_what_is_gone_is_deleted(service: HubServer, sweep: Sweep, out: Path) -> None:
    folder = out / name_of(out, "full")
    (folder / "LICENSE").write_text("yours")
    (folder / "notes.txt").write_text("not for others")
    push(out)
    repository = service.repositories[f"models/acme/{folder.name}"]
    assert repository.files["LICENSE"] == b"yours"
    assert "notes.txt" not in repository.files
    (folder / "LICENSE").unlink()
    _, lines = push(out)
    assert "deleted 1" in next(line for line in lines if "full" in line)
    assert "LICENSE" not in repository.files


def test_an_export_that_was_changed_is_not_pushed(service: HubServer, out: Path) -> None:
    weights = out / name_of(out, "full") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    whole, lines = push(out)
    assert not whole
    assert "model.safetensors: changed since its export" in next(line for line in lines if "not pushed" in line)
    assert len(service.repositories) == 3


def test_a_base_of_the_users_own_is_not_pushed(content: Content, service: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "my-base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"mine")
    (folder / "tokenizer.json").write_text("{}")
    content["models"] = [{"name": "mine", "path": str(folder)}]
    content["datasets"] = content["datasets"][:1]
    sweep = parse_sweep(content, "sweep")
    out = exported(sweep, tmp_path / "release")
    whole, lines = push(out)
    assert not whole
    said = [line for line in lines if "not pushed" in line]
    assert len(said) == 2
    assert all("say which repository holds it: --base mine=ORG/NAME" in line for line in said)
    assert [name for name in service.repositories if "base" in name or "lora" in name] == []
    shutil.rmtree(out)
    assert push(exported(sweep, out, bases={"mine": "an-org/a-base"}))[0]


@pytest.mark.parametrize(("kind", "said"), [("token", "401"), ("refuse", "403")])
def test_no_access_is_one_line(
    service: HubServer, out: Path, monkeypatch: pytest.MonkeyPatch, kind: str, said: str
) -> None:
    if kind == "token":
        monkeypatch.setenv("HF_TOKEN", f"{TOKEN}x")
    else:
        service.fault("refuse", 10_000, "repos/create")
    with pytest.raises(ExportError) as raised:
        push(out)
    assert f"({said}: " in str(raised.value)
    assert "\n" not in str(raised.value)
    assert TOKEN not in str(raised.value)
    assert service.repositories == {}


def test_sending_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysft.console.push.get_token", lambda: None)
    check_push("acme", send=False)
    with pytest.raises(ExportError, match="no token; set HF_TOKEN"):
        check_push("acme", send=True)


def test_a_repository_that_cannot_be_seen_is_left_alone(service: HubServer, out: Path) -> None:
    """One that is there, as the making of another says, but that the token may not read."""
    service.fault("not found", 10_000, f"GET /api/models/acme/{name_of(out, 'full')}$")
    hidden = Repository(private=True)
    service.repositories[f"models/acme/{name_of(out, 'full')}"] = hidden
    before = dict(hidden.files)
    whole, lines = push(out)
    assert not whole
    assert "the hub refused (409: " in next(line for line in lines if "not pushed" in line)
    assert hidden.files == before
    assert len(service.repositories) == 4, "the others go on"


def test_an_export_that_cannot_be_read_is_one_line(service: HubServer, out: Path) -> None:
    upload = prepare(out, name_of(out, "full"), "acme")
    (out / name_of(out, "full") / "model.safetensors").unlink()
    with pytest.raises(ExportError, match=r"^acme/small-.*: cannot be pushed \("):
        Hub(service.url).push(upload)


def test_a_hub_that_does_not_answer_is_one_line(out: Path, service: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "ATTEMPTS", 2)
    upload = prepare(out, name_of(out, "full"), "acme")
    with pytest.raises(ExportError, match=r"^acme/small-.*: http://127.0.0.1:9 does not answer \("):
        Hub("http://127.0.0.1:9").compare(upload)


@pytest.mark.parametrize("name", ["", "a/b", "-x", "a b", "../x", "x" * 97])
def test_an_organisation_is_a_name(name: str) -> None:
    with pytest.raises(ExportError, match="the name of a user or organisation on the hub is wanted"):
        check_push(name, send=False)


def test_the_command_pushes(service: HubServer, sweep: Sweep, tmp_path: Path) -> None:
    """In a process of its own, with the client as it comes."""
    make_storage(sweep)
    words = ["export", sweep.storage, "--out", str(tmp_path / "release"), "--methods", "full", "--push", "acme"]
    run: Callable[..., Any] = subprocess.run
    for more, repositories in (([], 0), (["--yes"], 2)):
        done = run([sys.executable, "-m", "raysft.cli", *words, *more], env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(service.repositories) == repositories
    for wrong in ("--yes", "--public"):
        ended = CliRunner().invoke(app, [*words[:-2], wrong])
        assert (ended.exit_code, ended.stderr) == (2, f"raysft: {wrong} belongs to --push ORG\n")
