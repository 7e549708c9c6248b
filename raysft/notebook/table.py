"""One table: Arrow, pandas or Polars, read when it is first needed, with what its columns mean."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from raysft.notebook.names import unknown

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

OpenFile = Callable[[], AbstractContextManager[pq.ParquetFile]]

_SHOWN = 8  # rows in a notebook


@dataclass(frozen=True)
class Column:
    """What a column holds; unit and source are empty where they say nothing."""

    name: str
    type: str
    meaning: str = ""
    unit: str = ""
    source: str = ""

    def __str__(self) -> str:
        unit, source = f", {self.unit}" if self.unit else "", f" ({self.source})" if self.source else ""
        meaning = f": {self.meaning}{source}" if self.meaning else ""
        return f"{self.name} ({self.type}{unit}){meaning}"


class Columns(Mapping[str, Column]):
    """The columns of a table by name; printed, one line for each."""

    def __init__(self, where: str, schema: pa.Schema) -> None:
        self._where = where
        self._columns = {field.name: _column(field) for field in schema}

    def __getitem__(self, name: str) -> Column:
        if name not in self._columns:
            raise unknown(self._where, "column", name, self._columns)
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return "\n".join(map(str, self._columns.values()))

    def _repr_html_(self) -> str:
        heads = ("name", "type", "unit", "meaning", "source")
        head = "".join(f"<th>{name}</th>" for name in heads)
        rows = (
            "".join(f"<td style='text-align: left'>{html.escape(getattr(column, name))}</td>" for name in heads)
            for column in self._columns.values()
        )
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _column(field: pa.Field) -> Column:
    about = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    return Column(field.name, str(field.type), *(about.get(key, "") for key in ("meaning", "unit", "source")))


class Table:
    """One table, read when its rows are first wanted. `where` says where it lies.

    `source` opens its file, or is a table in memory. Whatever takes Arrow takes this as it is, too:
    `polars.DataFrame(table)`, `pyarrow.table(table)`.
    """

    def __init__(self, name: str, where: str, source: OpenFile | pa.Table) -> None:
        self.name = name
        self.where = where
        self._source = source

    @functools.cached_property
    def columns(self) -> Columns:
        """What each column means, in which unit, and where its definition comes from."""
        return Columns(self.where, self._head[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)"""
        return self._head[1], len(self.columns)

    @functools.cached_property
    def arrow(self) -> pa.Table:
        """The whole table, with the meanings of the columns as metadata of its fields."""
        if isinstance(self._source, pa.Table):
            return self._source
        with self._source() as file:
            return file.read()

    def to_pandas(self, *columns: str) -> pd.DataFrame:
        """The table, or only these columns of it, as a pandas DataFrame.

        UnknownNameError for a column that it does not have.
        """
        return self._chosen(columns).to_pandas()

    def to_polars(self, *columns: str) -> pl.DataFrame:
        """The table, or only these columns of it, as a Polars DataFrame.

        ImportError without Polars; UnknownNameError for a column that it does not have.
        """
        try:
            import polars as pl
        except ImportError as error:
            raise ImportError("to_polars: Polars is not installed: pip install 'raysft[notebook]'") from error
        found = pl.from_arrow(self._chosen(columns))
        assert isinstance(found, pl.DataFrame)
        return found

    def _chosen(self, columns: Sequence[str]) -> pa.Table:
        for name in columns:
            self.columns[name]  # raises for one that is not there
        if not columns:
            return self.arrow
        if isinstance(self._source, pa.Table) or "arrow" in vars(self):
            return self.arrow.select(list(columns))
        with self._source() as file:
            return file.read(list(columns)).select(list(columns))

    @functools.cached_property
    def _head(self) -> tuple[pa.Schema, int]:
        if isinstance(self._source, pa.Table):
            return self._source.schema, self._source.num_rows
        with self._source() as file:
            return file.schema_arrow, file.metadata.num_rows

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.arrow.__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return self._head[1]

    def __repr__(self) -> str:
        return f"{self.name}: {self.shape[0]:,} rows of {', '.join(self.columns)}"

    def _repr_html_(self) -> str:
        rows, width = self.shape
        body = self.arrow.slice(0, _SHOWN).to_pandas().to_html(index=False, escape=True)
        return f"<p><b>{html.escape(self.name)}</b>: {rows:,} rows, {width} columns</p>{body}"

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.columns)
