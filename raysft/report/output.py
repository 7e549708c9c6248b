"""Files of a report: each written whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv


def publish(content: bytes, path: Path) -> Path:
    """Write `path` under a hidden name and publish it by a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.part")
    hidden.write_bytes(content)
    return hidden.replace(path)


def write_csv(table: pa.Table, out: Path, name: str) -> None:
    """Write `out/data/<name>.csv`; numbers in full, what is missing empty."""
    buffer = io.BytesIO()
    pacsv.write_csv(table, buffer)
    publish(buffer.getvalue(), out / "data" / f"{name}.csv")
