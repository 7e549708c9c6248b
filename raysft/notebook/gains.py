"""Gains as matrices: datasets by tasks, for one base model, for each, or for their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysft.notebook.names import UnknownNameError, unknown
from raysft.notebook.table import Table
from raysft.study.gains import final_gains
from raysft.study.tables import Reals, reals, texts

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

_AXES = ("model", "dataset", "task")
_DIFFERING = ("size", "schedule", "epoch")  # between trials of one method, in released scores


@dataclass(frozen=True)
class _Cells:
    """Means over seeds: `values` has the shape of the names of models, datasets and tasks; NaN where there are none."""

    names: tuple[tuple[str, ...], ...]
    values: Reals


def variants(gains: Table) -> list[str]:
    """Sorted names of the variants in the table `gains`."""
    return sorted({variant for variant in _variants(gains.arrow) if variant is not None})


def gain_matrix(gains: Table, variant: str | None, value: str, model: str | None) -> pd.DataFrame:
    """See `Tables.gain_matrix`."""
    import pandas as pd

    cells = _cells(gains, variant, value)
    models, datasets, tasks = cells.names
    if model is not None and model not in models:
        raise unknown(gains.where, "model", model, models)
    chosen = cells.values if model is None else cells.values[[models.index(model)]]
    return pd.DataFrame(_mean(chosen), pd.Index(datasets, name="dataset"), pd.Index(tasks, name="task"))


def gain_array(gains: Table, variant: str | None, value: str) -> xr.DataArray:
    """See `Tables.gain_array`."""
    try:
        import xarray as xr
    except ImportError as error:
        raise ImportError("gain_array: xarray is not installed: pip install 'raysft[notebook]'") from error
    cells = _cells(gains, variant, value)
    column = gains.columns[value]
    about = {"meaning": column.meaning, "unit": column.unit, "variant": _variant(gains, variant)}
    coordinates = {axis: list(names) for axis, names in zip(_AXES, cells.names, strict=True)}
    return xr.DataArray(cells.values, coordinates, _AXES, value, {key: word for key, word in about.items() if word})


def _cells(gains: Table, variant: str | None, value: str) -> _Cells:
    numbers = [field.name for field in gains.arrow.schema if _is_number(field.type)]
    if value not in numbers:
        raise unknown(gains.where, "column of numbers", value, numbers)
    table = gains.arrow.append_column("_variant", pa.array(_variants(gains.arrow), pa.string()))
    table = table.filter(pc.equal(table["_variant"], _variant(gains, variant)))
    if "final" in table.column_names:
        table = final_gains(table)
    names = tuple(tuple(sorted(set(texts(table, axis)))) for axis in _AXES)
    at = tuple(_places(texts(table, axis), known) for axis, known in zip(_AXES, names, strict=True))
    values = reals(table, value)
    total, count = np.zeros((2, *map(len, names)))
    known = np.isfinite(values)
    np.add.at(total, tuple(axis[known] for axis in at), values[known])
    np.add.at(count, tuple(axis[known] for axis in at), 1.0)
    return _Cells(names, np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0))


def _places(names: Sequence[str], known: Sequence[str]) -> Any:
    place = {name: index for index, name in enumerate(known)}
    return np.array([place[name] for name in names], dtype=np.intp)


def _mean(values: Reals) -> Reals:
    """Mean over the models that have a cell."""
    count = np.isfinite(values).sum(axis=0)
    total = np.nansum(values, axis=0)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _variant(gains: Table, variant: str | None) -> str:
    """The variant that is meant; UnknownNameError where that cannot be told."""
    found = variants(gains)
    if variant is None and len(found) == 1:
        return found[0]
    if variant is None and found:
        raise UnknownNameError(f"{gains.where}: {len(found)} variants, choose one; valid: {', '.join(found)}")
    if variant not in found:
        raise unknown(gains.where, "variant", variant, found)
    return variant


def _variants(gains: pa.Table) -> list[str | None]:
    """Of each row. Released scores have no such column: there it is the method, and whatever differs within it."""
    if "variant" in gains.column_names:
        return gains["variant"].to_pylist()
    rows = gains.select(["method", *_DIFFERING]).to_pylist()
    seen: dict[tuple[str, str], set[Any]] = {}
    for row in rows:
        for name in _DIFFERING:
            seen.setdefault((row["method"], name), set()).add(row[name])
    differing = {method: [name for name in _DIFFERING if len(seen[method, name]) > 1] for method, _ in seen}
    return [
        ", ".join([str(row["method"]), *(f"{name} {row[name]}" for name in differing[row["method"]])]) for row in rows
    ]


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)
