"""The submissions of a job server, each with how far its sweep is where the storage can be read from here."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.table import Table

from raysft.console.status import Progress, observe_storage
from raysft.spec.sweep import SpecError
from raysft.store.layout import StorageError

if TYPE_CHECKING:
    from raysft.cluster.submit import Submission

Looks = dict[str, Progress | str]


def look_at_storages(submissions: Sequence[Submission]) -> Looks:
    """Storage -> how far its sweep is, or why that cannot be said from here; each is looked at once."""
    return {storage: _look(storage) for storage in dict.fromkeys(one.storage for one in submissions)}


def job_table(submissions: Sequence[Submission], looks: Looks) -> Table:
    """For people; times are those of this machine."""
    table = Table("submission", "state", "started", "ended", "sweep", "results", "failed", "storage")
    for one in submissions:
        cells = (one.name, one.status.lower(), _clock(one.started), _clock(one.ended), one.sweep)
        table.add_row(*cells, *_counts(looks[one.storage]), one.storage)
    return table


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


def _counts(look: Progress | str) -> tuple[str, str]:
    if isinstance(look, str):
        return "?", "?"
    return f"{sum(done for _, done, _ in look.stages()):,} of {_planned(look):,}", str(len(look.failures) or "")


def _planned(look: Progress) -> int:
    return sum(planned for _, _, planned in look.stages())


def _progress_facts(look: Progress | str) -> dict[str, Any]:
    if isinstance(look, str):
        return {"unknown": look}
    done = sum(done for _, done, _ in look.stages())
    return {"done": done, "planned": _planned(look), "failed": len(look.failures)}


def _clock(time: datetime | None) -> str:
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M")
