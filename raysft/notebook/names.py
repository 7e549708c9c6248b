"""What is said of a name that is not there."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_LISTED = 30


class UnknownNameError(KeyError, AttributeError, ValueError):
    """A table, column, variant or model of that name is not there; the message is one line with those that are."""

    def __str__(self) -> str:  # not the quoted one of a KeyError
        return str(self.args[0])


def unknown(where: str, what: str, name: object, valid: Iterable[str]) -> UnknownNameError:
    """The error for `name`, with the names that it may have been meant to be."""
    names = list(valid)
    near = get_close_matches(str(name), names, 3, 0.6)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    return UnknownNameError(f"{where}: no {what} {str(name)!r}; {meant}valid: {listed or 'none, there are none'}")
