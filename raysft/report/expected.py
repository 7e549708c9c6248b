"""The schema of a study table that the study does not name yet; those of `raysft/study/schema.py` come before it."""

from __future__ import annotations

import pyarrow as pa

_COLUMNS = ("name", "claim", "section", "criterion", "verdict", "statement", "numbers", "reason")

EXPECTED_TABLES: dict[str, pa.Schema] = {"claims": pa.schema([(name, pa.string()) for name in _COLUMNS])}
