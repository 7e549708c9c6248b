"""Who drives a sweep: one process at a time for each storage.

Protocol. The driver writes `driver.json` and renews it every ten seconds. A second one finds it and is refused, unless
the first is dead: its process is gone from this machine, or the file was not renewed while the second watched it for 45
seconds (clocks of two machines are not compared). A driver that was held up for so long that another took over finds
the other's name in the file, and must stop. Two that take over at the same moment find out in the same way; nothing
comes to harm meanwhile, since of any result the first commit wins.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone

from raysft.store.layout import Storage, StorageAccessError, StorageError
from raysft.store.results import record_failure

LEASE_FILE = "driver.json"
DRIVER = "driver"  # what stands in the place of a stage, in the record of a driver's death
BEAT_S = 10.0
SILENCE_S = 45.0  # after which a driver counts as dead
_LOOK_EVERY_S = 1.0


class DriverDiedError(Exception):
    """A driver ended without saying so: killed, or with its machine."""


@dataclass(frozen=True)
class Driver:
    """A process that drives, or drove, a sweep; times are UTC, ISO 8601."""

    id: str
    sweep: str
    digest: str  # of the resolved spec
    host: str
    pid: int
    started_at: str
    seen_at: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started_at}"


class Lease:
    """A driver's hold on a storage."""

    def __init__(self, storage: Storage, driver: Driver) -> None:
        self._storage = storage
        self._driver = driver
        self._other: Driver | None = None
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()

    def check(self) -> None:
        """StorageError once another driver has taken over."""
        if self._other is not None:
            raise StorageError(
                f"storage {self._storage.uri}: this driver was silent for too long, and another took over "
                f"({self._other}); it goes on with the sweep"
            )

    def end(self) -> None:
        """Let go."""
        self._ended.set()
        self._beats.join()
        if self._other is None and (found := read_driver(self._storage)) and found.id == self._driver.id:
            self._storage.delete(LEASE_FILE)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                found = read_driver(self._storage)
                if found is not None and found.id != self._driver.id:
                    self._other = found
                    return
                _write(self._storage, replace(self._driver, seen_at=_now()))
            except StorageAccessError:  # those who have something to write find out what to do about it
                continue


@contextmanager
def driving(storage: Storage, sweep: str, digest: str, say: Callable[[str], object] = print) -> Iterator[Lease]:
    """Inside, this process is the one that drives the storage's sweep. StorageError while another does."""
    driver = Driver(uuid.uuid4().hex, sweep, digest, platform.node(), os.getpid(), _now(), _now())
    before = read_driver(storage)
    if before is not None:
        _refuse_if_alive(storage, before, driver, say)
        say(f"{before} died; this run goes on from what it committed")
        died = DriverDiedError(f"{before}, last seen at {before.seen_at}")
        record_failure(storage, DRIVER, before.id, died, {})
        storage.delete(LEASE_FILE)
    if not storage.create_bytes(_content(driver), LEASE_FILE):
        raise StorageError(f"storage {storage.uri}: another driver started at this moment")
    lease = Lease(storage, driver)
    try:
        yield lease
    finally:
        lease.end()


def read_driver(storage: Storage) -> Driver | None:
    """Who drives the storage's sweep, dead or alive; None if all drivers have ended."""
    content = storage.find_bytes(LEASE_FILE)
    if content is None:
        return None
    try:
        return Driver(**json.loads(content))
    except (ValueError, TypeError) as error:
        raise StorageError(f"{LEASE_FILE}: not what a driver writes; delete it if none runs") from error


def _refuse_if_alive(storage: Storage, other: Driver, driver: Driver, say: Callable[[str], object]) -> None:
    if other.host == driver.host and not _has_process(other.pid):
        return
    say(f"{other} may still drive this sweep; watching it for up to {SILENCE_S:.0f} s")
    end = time.monotonic() + SILENCE_S
    while time.monotonic() < end:
        time.sleep(min(_LOOK_EVERY_S, SILENCE_S))
        found = read_driver(storage)
        if found is None:
            return
        if found != other:
            changed = "" if found.digest == driver.digest else ", with another YAML than this one"
            raise StorageError(
                f"storage {storage.uri}: {found} runs {found.sweep} there{changed}; wait for its end, or stop it"
            )


def _has_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write(storage: Storage, driver: Driver) -> None:
    storage.write_bytes(_content(driver), LEASE_FILE)


def _content(driver: Driver) -> bytes:
    return json.dumps(asdict(driver), indent=1).encode()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
