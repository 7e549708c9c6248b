"""The submissions of a job server, each with how far its sweep is where the storage can be read from here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from raysft.console.status import Progress, observe_storage
from raysft.spec.sweep import SpecError
from raysft.store.layout import StorageError

if TYPE_CHECKING:
    from raysft.cluster.submit import Submission

Looks = dict[str, Progress | str]


def look_at_storages(submissions: Sequence[Submission]) -> Looks:
    """Storage -> how far its sweep is, or why that cannot be said from here; each is looked at once."""
    return {storage: _look(storage) for storage in dict.fromkeys(one.storage for one in submissions)}


def job_lines(submissions: Sequence[Submission], looks: Looks) -> Iterator[str]:
    """For people: of each submission what it is called and how it stands, then its sweep and storage, whole however
    narrow a terminal is; times are those of this machine."""
    if not submissions:
        yield "No sweep was submitted to this job server"
    for one in submissions:
        times = [f"{said} {_clock(time)}" for said, time in (("started", one.started), ("ended", one.ended)) if time]
        yield ", ".join([f"{one.name}  {one.status.lower()}", *times])
        yield f"  sweep {one.sweep}: {_results(looks[one.storage])}"
        yield f"  {one.storage}"


def job_notes(looks: Looks) -> list[str]:
    """A line for each storage that cannot be read from here."""
    return [look for look in looks.values() if isinstance(look, str)]


def job_facts(submissions: Sequence[Submission], looks: Looks) -> list[dict[str, Any]]:
    """For a program; times are ISO 8601 in UTC."""
    return [
        {
            "submission": one.name,
            "state": one.status,
            "exit_code": one.exit_code,
            "sweep": one.sweep,
            "storage": one.storage,
            "started": one.started and one.started.isoformat(),
            "ended": one.ended and one.ended.isoformat(),
            "progress": _progress_facts(looks[one.storage]),
        }
        for one in submissions
    ]


def _look(storage: str) -> Progress | str:
    try:
        return observe_storage(storage).look()
    except (SpecError, StorageError) as error:
        return f"Progress cannot be read from here: {error}"


def _results(look: Progress | str) -> str:
    if isinstance(look, str):
        return "results unknown"
    done, failed = sum(done for _, done, _ in look.stages()), len(look.failures)
    return f"{done:,} of {_planned(look):,} results" + (f", {failed:,} failed" if failed else "")


def _planned(look: Progress) -> int:
    return sum(planned for _, _, planned in look.stages())


def _progress_facts(look: Progress | str) -> dict[str, Any]:
    if isinstance(look, str):
        return {"unknown": look}
    done = sum(done for _, done, _ in look.stages())
    return {"done": done, "planned": _planned(look), "failed": len(look.failures)}


def _clock(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M")
