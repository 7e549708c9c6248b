"""Long Arrow tables as labelled matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysft.study.tables import Reals, reals


@dataclass(frozen=True)
class Matrix:
    """A labelled matrix: `values` has shape (rows, columns), float64, NaN where nothing was measured."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Reals


def pivot(table: pa.Table, rows: Sequence[str], column: str, value: str) -> Matrix:
    """Mean of `value` for each combination of the `rows` columns (joined by " / ") and each value of `column`.

    Labels are sorted, so equal tables give equal matrices whatever their row order.
    """
    row_labels = [" / ".join(map(str, key)) for key in zip(*(table[name].to_pylist() for name in rows), strict=True)]
    column_labels = pc.fill_null(table[column], "").to_pylist()
    row_names, column_names = sorted(set(row_labels)), sorted(set(column_labels))
    row_at = {name: index for index, name in enumerate(row_names)}
    column_at = {name: index for index, name in enumerate(column_names)}
    values = reals(table, value)
    known = np.isfinite(values)
    at = (
        np.array([row_at[name] for name in row_labels], dtype=np.intp)[known],
        np.array([column_at[name] for name in column_labels], dtype=np.intp)[known],
    )
    total, count = np.zeros((2, len(row_names), len(column_names)))
    np.add.at(total, at, values[known])
    np.add.at(count, at, 1.0)
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return Matrix(tuple(row_names), tuple(column_names), mean)
