"""Schemas of study tables that the study does not name yet; those of `raysft/study/schema.py` come before them."""

from __future__ import annotations

import pyarrow as pa

_TEXT, _REAL, _WHOLE = pa.string(), pa.float64(), pa.int64()


def _schema(texts: str, reals: str, wholes: str = "") -> pa.Schema:
    kinds = ((texts, _TEXT), (reals, _REAL), (wholes, _WHOLE))
    return pa.schema([pa.field(name, kind) for names, kind in kinds for name in names.split()])


EXPECTED_TABLES: dict[str, pa.Schema] = {
    "pca": _schema("scaling", "cumulative", "component"),
    "pairs": _schema("task first second", "mean_difference low high p q t_p wilcoxon_p", "n"),
    "epoch_gains": _schema("model method schedule task", "gain stderr", "size epoch datasets"),
    "layer_similarity": _schema("a b", "r", "n"),
    "claims": _schema("claim section verdict statement numbers reason", ""),
}
