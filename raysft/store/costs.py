"""What committed results took, read from their files' ends alone; and when they were published."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from raysft.store.layout import Storage
from raysft.store.results import Cost, result_path

ResultId = tuple[str, str]  # stage and key

_READERS = 16  # threads: on an object store each file is a round trip
_TABLE = ("tables", "costs.parquet")


def read_costs(storage: Storage, results: Iterable[ResultId]) -> dict[ResultId, Cost]:
    """Costs of these results; those that are gone or cannot be read are left out."""
    wanted = list(results)
    if storage.is_local or len(wanted) < 2:  # threads would only wait for each other
        found = [_read(storage, result) for result in wanted]
    else:
        with ThreadPoolExecutor(_READERS) as pool:
            found = list(pool.map(lambda result: _read(storage, result), wanted))
    return {result: cost for result, cost in zip(wanted, found, strict=True) if cost is not None}


def _read(storage: Storage, result: ResultId) -> Cost | None:
    try:
        with storage.filesystem.open_input_file(storage.path(result_path(*result))) as file:
            metadata = pq.read_metadata(file).metadata or {}
        return Cost(float(metadata[b"wall_s"]), float(metadata[b"gpu_s"]))
    except (pa.ArrowInvalid, OSError, KeyError, ValueError):
        return None  # an estimate does without it; `reduce` names what it cannot read


def reduced_costs(storage: Storage) -> dict[ResultId, Cost]:
    """Costs of all results that were there when `reduce` last ran, from its table; none if it did not."""
    if not storage.exists(*_TABLE):
        return {}
    columns = ["stage", "key", "wall_s", "gpu_s"]
    try:
        table = pq.read_table(storage.path(*_TABLE), columns=columns, filesystem=storage.filesystem)
    except (pa.ArrowInvalid, OSError):
        return {}
    rows = zip(*(table.column(name).to_pylist() for name in columns), strict=True)
    return {(stage, key): Cost(wall_s, gpu_s) for stage, key, wall_s, gpu_s in rows}


def published_at(storage: Storage, stage: str) -> dict[str, float]:
    """Key -> time of publication of every result of a stage, in seconds of the epoch by the storage's clock."""
    names = ((info.base_name, info.mtime_ns) for info in storage.infos("results", stage))
    return {
        name.removesuffix(".parquet"): time / 1e9
        for name, time in names
        if name.endswith(".parquet") and not name.startswith(".")
    }
