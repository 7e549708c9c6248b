"""What a user can mend, in one line."""

from __future__ import annotations


class ExportError(ValueError):
    """An export that cannot be made as asked: where, what was found, and what is valid."""


class HubError(ExportError):
    """The hub does not answer, or does not take the token: the next repository would fare no better."""
