"""The order of rows in every table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysft.store.schema import SORTED_BY


def place(row: Mapping[str, Any]) -> tuple[tuple[bool, Any], ...]:
    """Sorts rows by their columns of `SORTED_BY`, nulls first."""
    return tuple((row[name] is not None, 0 if row[name] is None else row[name]) for name in SORTED_BY)
