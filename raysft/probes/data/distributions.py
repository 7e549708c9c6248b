"""Properties of datasets: a number over all rows together, and how the rows' own numbers are spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysft.store.probe_schemas import DATA_PROPERTIES

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Measured:
    """A row of `schema.DATA_PROPERTIES`; `statistic` is None for a number over all rows together."""

    property: str
    value: float | None
    unit: str
    statistic: str | None = None
    about: str | None = None
    layer: int | None = None
    depth: float | None = None


def mean_length(name: str, lengths: Sequence[int], unit: str) -> Measured:
    """Mean of the rows' lengths, which is their total over the number of rows."""
    return Measured(name, float(np.mean(lengths)) if len(lengths) else None, unit)


def spread(name: str, values: npt.ArrayLike, unit: str, mean: bool = True) -> list[Measured]:
    """Mean (`mean`) and quantiles (`q05` to `q95`, linear between rows) of the rows' own values, NaN left out."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return []
    found = [Measured(name, float(known.mean()), unit, "mean")] if mean else []
    cuts = np.quantile(known, QUANTILES)
    return found + [
        Measured(name, float(cut), unit, f"q{round(100 * share):02d}")
        for share, cut in zip(QUANTILES, cuts, strict=True)
    ]


def property_table(measured: Sequence[Measured], rows: int, left_out: int | None = None) -> pa.Table:
    """A table of `schema.DATA_PROPERTIES` of numbers over so many rows. ValueError for one that is not finite."""
    found: list[dict[str, Any]] = []
    for entry in measured:
        if entry.value is not None and not math.isfinite(entry.value):
            raise ValueError(f"{entry.property} is not finite")
        found.append({**asdict(entry), "n": rows, "left_out": left_out})
    return pa.Table.from_pylist(found, schema=DATA_PROPERTIES)
