"""Results that no trial made: planted into a storage with the cost that a test wants them to have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from raysft.spec.units import Work
from raysft.store.layout import Storage
from raysft.store.results import Cost, commit_result
from raysft.store.schema import RESULTS


def plant(storage: Storage, works: Iterable[Work], cost: Callable[[Work], Cost] = lambda _: Cost(1.0)) -> None:
    """Commit an empty result for each work."""
    for work in works:
        table = RESULTS[work.stage].empty_table()
        commit_result(storage, work.stage, work.key, table, work.subject.as_row(), cost(work))


def plant_rows(storage: Storage, works: Iterable[Work], rows: int = 3) -> None:
    """Commit for each work a result whose values are of its key alone; sometimes null, and lists of any length."""
    for work in works:
        random = np.random.default_rng([*work.key.encode()])
        schema = RESULTS[work.stage]
        table = pa.table({field.name: _values(random, field.type, rows) for field in schema}, schema=schema)
        subject, cost = work.subject.as_row(), Cost(float(random.uniform(1, 9)))
        assert commit_result(storage, work.stage, work.key, table, subject, cost)


def _values(random: np.random.Generator, kind: pa.DataType, count: int) -> list[Any]:
    return [None if random.random() < 0.1 else _value(random, kind) for _ in range(count)]


def _value(random: np.random.Generator, kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return [_value(random, kind.value_type) for _ in range(random.integers(0, 4))]
    if pa.types.is_struct(kind):
        return {field.name: _value(random, field.type) for field in kind}
    if pa.types.is_string(kind):
        return "".join(random.choice(["a", "ü", "<b>", "日"], 3))
    if pa.types.is_boolean(kind):
        return bool(random.integers(0, 2))
    return float(np.float32(random.normal())) if pa.types.is_floating(kind) else int(random.integers(0, 99))
