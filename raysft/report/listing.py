"""Tables of the page: sortable, each with its CSV beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

_WIDEST = 30
_WIDE = 12
_LONG = 30  # rows
MOST_ROWS = 500
"""Rows of a table on the page unless it says otherwise; the CSV holds all of them."""


@dataclass(frozen=True)
class Cell:
    """What a table's cell says, and what it is sorted by where that is a number."""

    text: str
    value: str | None = None


@dataclass(frozen=True)
class Listing:
    """A table of the page: `data` is also written as CSV under `name`; `empty` is said where it has no rows, and
    without it a table without rows may be left out.

    `badge` is a column of few words that are shown as badges; a `stacked` table has long texts, and on a narrow screen
    stands below itself instead of scrolling. `hidden` columns are in the CSV only.
    """

    name: str
    title: str
    empty: str
    data: pa.Table
    about: str = ""
    badge: str | None = None
    stacked: bool = False
    hidden: tuple[str, ...] = ()
    most: int = MOST_ROWS

    @property
    def shown(self) -> pa.Table:
        """What stands on the page: the first `most` rows, without the hidden columns."""
        return self.data.drop_columns(list(self.hidden)).slice(0, self.most)

    @property
    def header(self) -> list[str]:
        return [name.replace("_", " ") for name in self.shown.column_names]

    @property
    def rows(self) -> list[list[Cell]]:
        return [[_cell(value) for value in row.values()] for row in self.shown.to_pylist()]

    @property
    def more(self) -> int:
        return max(0, self.data.num_rows - self.most)

    @property
    def numeric(self) -> list[bool]:
        return [pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in self.shown.schema.types]

    @property
    def widths(self) -> list[int]:
        """For each column of text its longest word in letters: what it should be wide enough for, within reason."""
        widest = _WIDEST // 2 if self.wide else _WIDEST
        texts = [column.to_pylist() if pa.types.is_string(column.type) else [] for column in self.shown.columns]
        words = [[len(word) for text in column if text for word in text.split()] for column in texts]
        return [min(widest, max(found, default=0)) for found in words]

    @property
    def wide(self) -> bool:
        """Whether it has so many columns that it needs smaller print."""
        return len(self.header) > _WIDE

    @property
    def long(self) -> bool:
        """Whether it has so many rows that it scrolls by itself, under its header."""
        return len(self.rows) > _LONG

    @property
    def badged(self) -> list[bool]:
        return [name == self.badge for name in self.shown.column_names]


def _cell(value: Any) -> Cell:
    if value is None:
        return Cell("–", "")
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, float):
        return Cell(number(value), f"{value:.8g}" if math.isfinite(value) else "")
    return Cell(f"{value:,}", str(value)) if isinstance(value, int) else Cell(str(value))


def number(value: float) -> str:
    """A number of a table: three decimals below 10, fewer above, none if whole; the small as powers of ten."""
    if value == round(value, 0):
        return f"{value + 0.0:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:,.{3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0}f}"
