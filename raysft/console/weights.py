"""The weight change of one checkpoint for people: by layer, by module kind, and what to know when reading it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from raysft.probes.weights.files import read_json
from raysft.probes.weights.folders import ADAPTER_CONFIG
from raysft.store.layout import StorageError

_NUMBERS = ("relative_change", "mean_relative_change", "mean_absolute_change", "zero_fraction")


def print_weight_change(console: Console, change: pa.Table) -> None:
    """`change` is a table of `schema.WEIGHT_CHANGE`."""
    rows = change.to_pylist()
    console.print(_table("layer", _of_level(rows, "layer", "layer")))
    everything = [*_of_level(rows, "module", "module"), *_of_level(rows, "outside"), *_of_level(rows, "model")]
    console.print(_table("module", everything))
    for line in _notes(rows):
        console.print(line)


def other_base(base: Path, checkpoint: Path) -> str | None:
    """The base that an adapter names, if it is not called as `base` is; None for what names none."""
    config = checkpoint / ADAPTER_CONFIG
    named = read_json(config).get("base_model_name_or_path") if config.is_file() else None
    if not isinstance(named, str) or not named or Path(named).name == base.resolve().name:
        return None
    return named


def write_weight_change(change: pa.Table, path: Path) -> None:
    """Write the table as Parquet. StorageError where that cannot be."""
    try:
        pq.write_table(change, path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror or error})") from error


def _of_level(rows: list[dict[str, Any]], level: str, label: str = "") -> list[tuple[str, dict[str, Any]]]:
    names = {"outside": "outside the layers", "model": "all"}
    return [(names.get(level) or str(row[label]), row) for row in rows if row["level"] == level]


def _table(first: str, rows: list[tuple[str, dict[str, Any]]]) -> Table:
    table = Table(first, "tensors", "relative change", "mean of modules", "mean |change|", "unchanged")
    for label, row in rows:
        table.add_row(label, f"{row['tensors']:,}", *(_number(row[name]) for name in _NUMBERS))
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _notes(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines on what makes the numbers say less than they seem to."""
    low = sorted({row["dtype"] for row in rows if row["level"] == "tensor" and row["low_precision"]})
    if low:
        zeros = next(row["zero_fraction"] for row in rows if row["level"] == "model")
        unchanged = "" if zeros is None else f"; {zeros:.0%} of entries are exactly as before"
        yield f"Stored in {', '.join(low)}, which loses changes that are small beside a weight{unchanged}"
    for row in rows:
        if row["level"] == "tensor" and row["rows_left_out"]:
            yield f"{row['tensor']}: {row['rows_left_out']:,} rows are in one of the two only, and are not compared"
