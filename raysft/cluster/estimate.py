"""Tasks that make estimates of embeddings, layer by layer: memory holds one layer, however many there are."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from raysft.cluster.embedder import LAYER
from raysft.cluster.neighbours import sharded_neighbour_table
from raysft.probes.geometry.intrinsic_dimension import Texts, layer_estimates
from raysft.probes.geometry.neighbours import Neighbours, neighbour_table, neighbourhood_overlap
from raysft.session import pick_device
from raysft.spec.plan import Work
from raysft.spec.probes import IntrinsicDimensionProbe
from raysft.store.checkpoints import read_manifest
from raysft.store.layout import Storage, embeddings_folder, open_storage
from raysft.store.parts import each_part, part_columns, read_parts
from raysft.store.probe_schemas import INTRINSIC_DIMENSION, NEIGHBOURS
from raysft.store.results import Cost, commit_result, read_result, record_failure, result_path

_SHARD = 1 << 15  # rows of a table that one task makes on CPUs
OVERLAP = "neighbourhood_overlap"  # of a checkpoint with its base, beside the estimators


@ray.remote  # type: ignore[untyped-decorator]  # Ray ships no types
def estimate(uri: str, works: Sequence[Work], probe: IntrinsicDimensionProbe, gpus: float) -> list[dict[str, Any]]:
    """Make and commit what is asked of one subject's embeddings; the failures' records, if it cannot be done."""
    storage, started = open_storage(uri), time.perf_counter()
    try:
        tables = _tables(storage, works, probe, gpus)
    except Exception as error:  # noqa: BLE001  whatever it is, it is recorded and the other subjects go on
        return [record_failure(storage, work.stage, work.key, error, work.subject.as_row()) for work in works]
    seconds = (time.perf_counter() - started) / len(works)
    cost = Cost(seconds, seconds * gpus)
    for work in works:
        commit_result(storage, work.stage, work.key, tables[work.stage], work.subject.as_row(), cost)
    return []


def _tables(
    storage: Storage, works: Sequence[Work], probe: IntrinsicDimensionProbe, gpus: float = 0.0
) -> dict[str, pa.Table]:
    """Stage -> payload, of the works on one subject."""
    dataset, folder = works[0].about or "", embeddings_folder(works[0].source or "")
    before = _Before(storage, next((work.before for work in works if work.subject.trial is not None), None))
    numbers, order = _texts(storage, folder)
    texts = Texts(dataset, read_manifest(storage, folder)["duplicates"], works[0].before, numbers.tolist())
    first = 0 if probe.pooling == "mean" else 1  # of one token, hidden state 0 says only which token it is
    rows: list[dict[str, Any]] = []
    neighbours = [NEIGHBOURS.empty_table()]
    for layer, layers, points in _layers(storage, folder, order, first):
        found = layer_estimates(points, layer, layers, probe, texts, partial(_table_of, gpus))
        table = replace(found.neighbours, texts=numbers[found.neighbours.texts]).first(probe.overlap_k)
        rows += found.rows
        neighbours.append(_as_table(layer, table))
        overlap = before.overlap(layer, table, probe.overlap_k)
        if overlap is not None:
            rows.append({**found.rows[0], "estimator": OVERLAP, "scale": probe.overlap_k, **overlap})
    estimates = pa.Table.from_pylist(rows, schema=INTRINSIC_DIMENSION)
    return {"intrinsic_dimension": estimates, "neighbours": pa.concat_tables(neighbours)}


def _table_of(gpus: float, points: np.ndarray, k: int) -> Neighbours:
    """The table on this task's GPU; or on its CPUs, with the help of others where there are many points."""
    device = pick_device() if gpus > 0 else torch.device("cpu")
    if device.type == "cpu" and len(points) > _SHARD:
        shards = [ray.put(points[start : start + _SHARD]) for start in range(0, len(points), _SHARD)]
        return sharded_neighbour_table(shards, k)
    return neighbour_table(points, k, str(device))


def _texts(storage: Storage, folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the texts that were not dropped, ascending, and the row of each through all parts."""
    about = read_parts(storage, folder, ["text", "dropped"])
    texts, dropped = about["text"].to_numpy(), about["dropped"].to_numpy()
    _, order = np.unique(texts, return_index=True)  # a text may be in two parts
    order = order[~dropped[order]]
    return texts[order], order


def _layers(storage: Storage, folder: str, order: np.ndarray, first: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """(layer, the last layer, hidden states of the rows in `order`, fp32 (texts, width)), from layer `first` on. Beside
    these states, one part of them is in memory."""
    columns = [name for name in part_columns(storage, folder) if name.startswith(LAYER)]
    for layer, name in list(enumerate(sorted(columns)))[first:]:
        states, row = np.empty((0, 0), np.float32), 0
        for part in each_part(storage, folder, [name]):
            found = part[name].combine_chunks().to_numpy_ndarray()
            if not row:
                states = np.empty((len(order), found.shape[1]), found.dtype)
            here = np.flatnonzero((order >= row) & (order < row + len(found)))
            states[here] = found[order[here] - row]
            row += len(found)
        yield layer, len(columns) - 1, states


def _as_table(layer: int, table: Neighbours) -> pa.Table:
    assert table.texts is not None
    nearest = table.texts[table.indices].astype(np.int32)
    lists = pa.ListArray.from_arrays(np.arange(len(nearest) + 1, dtype=np.int32) * nearest.shape[1], nearest.ravel())
    columns = [pa.array([layer] * len(nearest), pa.int64()), pa.array(table.texts, pa.int64()), lists]
    return pa.Table.from_arrays(columns, schema=NEIGHBOURS)


class _Before:
    """Neighbours of the same texts in the base, committed as `key`; None is for the base itself.

    FileNotFoundError where they are not there: once committed, a result is not made again when they are.
    """

    def __init__(self, storage: Storage, key: str | None) -> None:
        if key is not None and not storage.exists(result_path("neighbours", key)):
            raise FileNotFoundError(
                f"{result_path('neighbours', key)}: the base's neighbours of the texts are not there"
            )
        self._table = None if key is None else read_result(storage, "neighbours", key)

    def overlap(self, layer: int, after: Neighbours, k: int) -> dict[str, float | int | None] | None:
        """Columns of the row that says what of a layer's neighbourhoods was kept."""
        if self._table is None:
            return None
        own = self._table.filter(pc.equal(self._table["layer"], layer))
        texts = own["text"].to_numpy()
        nearest = own["neighbours"].combine_chunks().flatten().to_numpy().reshape(len(texts), -1)
        before = Neighbours(np.searchsorted(texts, nearest).astype(np.int32), np.zeros(nearest.shape), texts)
        both = len(np.intersect1d(texts, after.by_text()[0]))
        return {"value": neighbourhood_overlap(before, after, k), "low": None, "high": None, "n": both}
