"""How far a sweep is, from its storage alone: no cluster is asked, and none needs to be there.

An `Observer` expands the sweep once; each look then lists the storage, and reads what it has not read before.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import yaml
from rich.console import RenderableType
from rich.table import Table

from raysft.console.costs import cost_facts, cost_notes, cost_table
from raysft.console.plan import damaged_lines, progress_facts
from raysft.spec.cost import CostBook, Estimate
from raysft.spec.digests import given, kept_digests
from raysft.spec.pace import seconds_to_the_end
from raysft.spec.plan import Plan, make_plan, with_storage
from raysft.spec.sweep import SpecError, Sweep, load_sweep, parse_sweep
from raysft.spec.units import Work
from raysft.store.layout import SPEC_FILE, Storage, StorageError, open_storage
from raysft.store.lease import SILENCE_S, Driver, read_driver
from raysft.store.results import read_failures

_READERS = 16  # threads, for records on an object store


@dataclass(frozen=True)
class Progress:
    """One look at a sweep. `failures`: the latest record of each work that failed and is not done, newest first;
    `driver`: who drives it, dead or alive; `ends_at`: when it will be done, if that can be said."""

    plan: Plan
    failures: list[dict[str, Any]]
    estimate: Estimate
    driver: Driver | None = None
    ends_at: datetime | None = None

    @property
    def is_driven(self) -> bool:
        """Whether a driver showed that it lives, by the clocks of its machine and of this one."""
        return self.driver is not None and silence_s(self.driver) < SILENCE_S

    @property
    def failed(self) -> dict[str, int]:
        """Stage -> works that failed and are not done."""
        counts: dict[str, int] = {}
        for failure in self.failures:
            counts[failure["stage"]] = counts.get(failure["stage"], 0) + 1
        return counts

    @property
    def is_over(self) -> bool:
        """Whether all is done, but for what failed, and nobody is about to try that again."""
        failed = self.failed if not self.is_driven else {}
        return all(planned - done <= failed.get(stage, 0) for stage, done, planned in self.stages())

    def stages(self) -> Iterator[tuple[str, int, int]]:
        """(stage, done, planned)."""
        for stage, (done, planned) in self.plan.count_by_stage().items():
            yield stage, done, planned


class Observer:
    """Looks at a sweep's storage, again and again."""

    def __init__(self, sweep: Sweep, digests: Mapping[str, str] | None = None) -> None:
        self.storage = open_storage(sweep.storage)
        gc.disable()  # all these objects stay, and looking for garbage among them takes a fifth of the time
        try:
            with given(digests or {}):
                self._plan = make_plan(sweep)
            self._book = CostBook(self._plan)
        finally:
            gc.enable()

    def look(self) -> Progress:
        """How far the sweep is by now. StorageError if the storage cannot be read."""
        self._plan = with_storage(self._plan, self.storage, weights=False)
        failures = open_failures(self._plan, self.storage)
        costs = self._book.estimate(self._plan, self.storage)
        progress = Progress(self._plan, failures, costs, read_driver(self.storage))
        return replace(progress, ends_at=self._end_of(progress)) if progress.is_driven else progress

    def _end_of(self, progress: Progress) -> datetime | None:
        assert progress.driver is not None
        now, since = datetime.now(timezone.utc), datetime.fromisoformat(progress.driver.started_at)
        times = (since.timestamp(), now.timestamp())
        seconds = seconds_to_the_end(progress.plan, self.storage, progress.estimate, *times)
        return None if seconds is None else now + timedelta(seconds=seconds)


def silence_s(driver: Driver) -> float:
    """Seconds since a driver renewed its lease, by the clocks of its machine and of this one."""
    return (datetime.now(timezone.utc) - datetime.fromisoformat(driver.seen_at)).total_seconds()


def observe(target: str, storage: str | None = None) -> Observer:
    """Of the sweep of a YAML, or of the one that a storage was last run with."""
    if "://" not in target and not Path(target).is_dir():
        return Observer(load_sweep(Path(target), storage))
    if storage is not None:
        raise SpecError(f"--storage belongs to a sweep's YAML, found the storage {target}")
    return observe_storage(target)


def observe_storage(uri: str) -> Observer:
    """Of the sweep that a storage was last run with; this machine need not have its files."""
    return Observer(stored_sweep(uri), kept_digests(open_storage(uri)))


def stored_sweep(uri: str) -> Sweep:
    """The spec of a storage's last run. StorageError if there is none."""
    storage = open_storage(uri)
    if not storage.exists(SPEC_FILE):
        raise StorageError(f"{uri}: no {SPEC_FILE} there, so no sweep was run with this storage")
    where = f"{uri.rstrip('/')}/{SPEC_FILE}"
    try:
        content = yaml.safe_load(storage.read_bytes(SPEC_FILE))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StorageError(f"{where}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise StorageError(f"{where}: expected a mapping of fields, found {type(content).__name__}")
    located = uri if "://" in uri else str(Path(uri).expanduser().resolve())
    return parse_sweep({**content, "storage": located}, where)


def open_failures(made: Plan, storage: Storage) -> list[dict[str, Any]]:
    """The latest failure of each work that is not done, newest first; `subject` is its name for people."""
    recorded = {(stage, key) for stage in storage.names("failures") for key in storage.names("failures", stage)}
    if not recorded:
        return []
    works = [work for work in made.works() if (work.stage, work.key) in recorded and not made.is_done(work)]

    def latest(work: Work) -> dict[str, Any] | None:
        records = read_failures(storage, work.stage, work.key)
        return {**records[-1], "subject": str(work.subject)} if records else None

    with ThreadPoolExecutor(_READERS) as pool:
        found = [failure for failure in pool.map(latest, works) if failure is not None]
    return sorted(found, key=lambda failure: str(failure["at"]), reverse=True)


def status_facts(progress: Progress) -> dict[str, Any]:
    """A look, as JSON."""
    return {
        **progress_facts(progress.plan),
        "driver": progress.driver and {**asdict(progress.driver), "live": progress.is_driven},
        "estimated_end": progress.ends_at and progress.ends_at.isoformat(timespec="seconds"),
        "diverged": len(progress.plan.diverged),
        "cost": cost_facts(progress.estimate),
        "failures": progress.failures,
    }


def driver_lines(progress: Progress) -> Iterator[str]:
    """Who drives the sweep, and when it will be done."""
    driver = progress.driver
    if driver is None:
        return
    silence = f"last seen {max(0.0, silence_s(driver)):,.0f} s ago"
    if not progress.is_driven:
        yield f"Not running: its driver, {driver}, died ({silence}); `raysft run` goes on"
        return
    yield f"Running: {driver}, {silence}"
    if progress.ends_at is not None:
        yield f"Estimated end: {progress.ends_at.astimezone():%Y-%m-%d %H:%M}, at the pace of the last hour"


def status_lines(progress: Progress) -> Iterator[RenderableType]:
    """A look, for people."""
    yield from driver_lines(progress)
    failed = progress.failed
    table = Table("stage", "done", "failed", "missing")
    for stage, done, planned in progress.stages():
        lost = failed.get(stage, 0)
        table.add_row(stage, str(done), str(lost or ""), str(planned - done - lost or ""))
    yield table
    yield cost_table(progress.estimate, actual=True)
    yield from cost_notes(progress.plan.sweep, progress.estimate)
    if progress.plan.diverged:
        yield f"{len(progress.plan.diverged)} trials diverged; what can be had of them is counted"
    for failure in progress.failures:
        yield f"{failure['subject']}: {failure['stage']}: {failure['message']} ({failure['log']})"
    yield from damaged_lines(progress.plan)
