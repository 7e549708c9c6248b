"""What a check reports: one line about one subject."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SEVERITIES = ("error", "warning", "note")
_LISTED = 6


@dataclass(frozen=True)
class Finding:
    """One row of the table `lint`.

    `severity`: an error makes numbers wrong, a warning makes them say less than they seem to, a note says what could
    not be checked. `names`, which is in no table, has everything that `subject` names, also what it leaves at "and 3
    more".
    """

    check: str
    severity: str
    subject: str
    detail: str
    names: tuple[str, ...] = ()


def listed(names: Iterable[object], between: str = ", ") -> str:
    """Names joined by `between`, the first six and how many more."""
    found = [str(name) for name in names]
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return between.join(found[:_LISTED]) + more


def share(count: int, of: int) -> str:
    """`732 of 1016 (72%)`."""
    return f"{count} of {of} ({count / of:.0%})" if of else f"{count} of 0"
