"""What every schema is made of: Arrow fields that say what they hold."""

from __future__ import annotations

import pyarrow as pa


def column(name: str, kind: pa.DataType, meaning: str, unit: str = "", source: str = "") -> pa.Field:
    """An Arrow field whose metadata says what the number is, in which unit, and where its definition comes from."""
    metadata = {"meaning": meaning}
    if unit:
        metadata["unit"] = unit
    if source:
        metadata["source"] = source
    return pa.field(name, kind, metadata=metadata)


TEXT, WHOLE, REAL, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
