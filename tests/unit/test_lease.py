"""One driver of a storage at a time, whatever became of the one before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from raysft.cluster import pipeline
from raysft.spec.keys import text_digest
from raysft.spec.sweep import parse_sweep, resolved_yaml
from raysft.store import lease as lease_module
from raysft.store.layout import Storage, StorageError, open_storage
from raysft.store.lease import DRIVER, LEASE_FILE, Driver, driving, read_driver
from raysft.store.results import read_failures

pytestmark = pytest.mark.unit

OTHER = Driver("other", "small", "digest", "elsewhere", 1, "2026-01-01T00:00:00", "2026-01-01T00:00:01")


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(lease_module, "BEAT_S", 0.02)
    monkeypatch.setattr(lease_module, "SILENCE_S", 0.3)
    monkeypatch.setattr(lease_module, "_LOOK_EVERY_S", 0.02)
    return open_storage(str(tmp_path))


def _leave(storage: Storage, driver: Driver) -> None:
    storage.write_bytes(json.dumps(asdict(driver)).encode(), LEASE_FILE)


def test_a_driver_is_there_while_it_drives(storage: Storage) -> None:
    assert read_driver(storage) is None
    with driving(storage, "small", "digest", lambda _: None) as lease:
        found = read_driver(storage)
        assert found is not None
        assert (found.sweep, found.pid) == ("small", os.getpid())
        lease.check()
    assert read_driver(storage) is None


def test_a_second_driver_is_refused_and_told_of_the_first(storage: Storage) -> None:
    with driving(storage, "small", "digest", lambda _: None):
        with (
            pytest.raises(StorageError, match=f"process {os.getpid()} on .* runs small there; wait for its end"),
            driving(storage, "small", "digest", lambda _: None),
        ):
            pass
        with (
            pytest.raises(StorageError, match="runs small there, with another YAML than this one"),
            driving(storage, "small", "changed", lambda _: None),
        ):
            pass


def test_one_that_was_killed_here_is_followed_at_once_and_recorded(storage: Storage) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = replace(OTHER, host=lease_module.platform.node(), pid=int(gone.stdout))
    _leave(storage, dead)
    said: list[str] = []
    with driving(storage, "small", "digest", said.append):
        assert said == [f"{dead} died; this run goes on from what it committed"]
    record = read_failures(storage, DRIVER, "other")[0]
    assert (record["error"], record["attempt"]) == ("DriverDiedError", 1)


def test_one_that_is_silent_elsewhere_is_watched_and_then_followed(storage: Storage) -> None:
    _leave(storage, OTHER)
    said: list[str] = []
    with driving(storage, "small", "digest", said.append):
        assert len(said) == 2
        assert "watching it for up to" in said[0]


def test_one_that_was_silent_too_long_finds_that_another_took_over(storage: Storage) -> None:
    with driving(storage, "small", "digest", lambda _: None) as lease:
        _leave(storage, OTHER)
        lease._beats.join(timeout=10)
        with pytest.raises(StorageError, match=r"another took over \(process 1 on elsewhere"):
            lease.check()
    assert read_driver(storage) == OTHER  # it does not take the other's name away


def test_what_is_no_driver_is_named(storage: Storage) -> None:
    storage.write_bytes(b"[]", LEASE_FILE)
    with pytest.raises(StorageError, match=r"driver\.json: not what a driver writes"):
        read_driver(storage)


def test_a_run_is_refused_before_any_worker_starts(
    content: dict[str, Any], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "check_sweep", lambda *_: None)
    monkeypatch.setattr(pipeline, "connected", lambda *_: pytest.fail("a Ray was started"))
    sweep = parse_sweep({**content, "storage": storage.root}, "test")
    changed = parse_sweep({**content, "storage": storage.root, "datasets": content["datasets"][:1]}, "test")
    digest = text_digest(resolved_yaml(sweep))
    with driving(storage, sweep.name, digest, lambda _: None):
        with pytest.raises(StorageError, match="runs small there; wait for its end"):
            pipeline.run_everything(sweep, say=lambda _: None)
        with pytest.raises(StorageError, match="runs small there, with another YAML than this one"):
            pipeline.run_everything(changed, say=lambda _: None)
    assert storage.names() == []
