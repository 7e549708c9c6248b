"""Reading the sweep's tables and writing the study's: Parquet files in one folder, each written whole or not at all.

A table is written under a dot-prefixed name and renamed, so a reader never sees half of one. A missing file reads as an
empty table, because a sweep that skipped a stage is still worth studying.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

Reals = npt.NDArray[np.float64]


def read_table(folder: Path, name: str, schema: pa.Schema) -> pa.Table:
    """`folder/name.parquet` under `schema`: columns the file lacks are null, and a missing file has no rows."""
    path = folder / f"{name}.parquet"
    if not path.exists():
        return schema.empty_table()
    return pads.dataset(path, schema=schema, format="parquet").to_table()


def read_tables(folder: Path, schemas: Mapping[str, pa.Schema]) -> dict[str, pa.Table]:
    """Every table of `schemas` that lies in `folder`; the missing ones are empty.

    Raises:
        ValueError: `folder` is not a folder.
    """
    if not folder.is_dir():
        raise ValueError(f"tables: {folder} is not a folder; `raysft reduce` writes one")
    return {name: read_table(folder, name, schema) for name, schema in schemas.items()}


def write_table(table: pa.Table, path: Path) -> None:
    """Write one Parquet file and publish it by a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.part")
    pq.write_table(table, hidden)
    hidden.replace(path)


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Write one JSON file, keys in the order given, and publish it by a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.part")
    hidden.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    hidden.replace(path)


def reals(table: pa.Table, name: str) -> Reals:
    """One column as float64, shape (rows,); null and NaN both become NaN."""
    values = pc.fill_null(table[name].cast(pa.float64()), np.nan)
    return np.asarray(values.to_numpy(), dtype=np.float64)


def real_array(values: npt.ArrayLike) -> pa.Array:
    """A float64 Arrow array in which everything that is not finite is null."""
    array = np.asarray(values, dtype=np.float64)
    return pa.array(array, mask=~np.isfinite(array))


def texts(table: pa.Table, name: str) -> list[str]:
    """One text column as Python strings; null becomes the empty string."""
    return pc.fill_null(table[name], "").to_pylist()


def select(table: pa.Table, **equal: str | int) -> pa.Table:
    """The rows whose columns equal the given values."""
    for name, value in equal.items():
        table = table.filter(pc.equal(table[name], value))
    return table


def from_rows(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of `schema`; NaN becomes null."""
    table = pa.Table.from_pylist(rows, schema=schema)
    for index, field in enumerate(schema):
        if pa.types.is_floating(field.type):
            table = table.set_column(index, field, real_array(reals(table, field.name)))
    return table


def aggregate(table: pa.Table, keys: list[str], *values: tuple[str, str]) -> pa.Table:
    """Group by `keys`, one output column for each (column, function) named `column_function`, sorted by the keys."""
    # One thread: the order of a floating-point sum must not depend on the machine.
    grouped = table.group_by(keys, use_threads=False).aggregate(list(values))
    return grouped.sort_by([(key, "ascending") for key in keys])
