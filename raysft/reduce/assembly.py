"""What results give to which table: their rows, with the columns of their subjects in front."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysft.reduce.reading import Found
from raysft.spec.plan import Work
from raysft.store.probe_schemas import SKETCHES
from raysft.store.results import conform
from raysft.store.schema import DIVERGED, IDENTITY, RESULTS, SCORE_COLUMNS, TABLES

Places = npt.NDArray[np.int64]
Rows = tuple[str, pa.Table, Places]  # table, rows of it, and for each the place of the result it is from

# stage -> table that takes its payload as it is
_TABLE_OF = {
    "train": "training",
    "perplexity": "data_properties",
    "similarity": "data_properties",
    "text_statistics": "data_properties",
    "sentence_similarity": "data_properties",
    "weight_change": "weight_change",
    "intrinsic_dimension": "intrinsic_dimension",
    "log_likelihood": "log_likelihood",
    "contamination": "contamination",
}
# stages that no base model enters, whichever they are done beside
_OF_DATA_ALONE = ("contamination", "text_statistics", "sentence_similarity")


@functools.cache
def wanted_columns(stage: str, compared: bool) -> tuple[str, ...]:
    """Columns of a stage's results that come into any table; sketches of weights only if they are to be `compared`."""
    if stage not in (*_TABLE_OF, "evaluate"):
        return ()
    names = tuple(RESULTS[stage].names)
    return names if compared or stage != "weight_change" else tuple(name for name in names if name not in SKETCHES)


def identity_of(work: Work) -> dict[str, Any]:
    """Identity columns of a work's rows."""
    row = work.subject.as_row()
    return row if work.stage not in _OF_DATA_ALONE else {**row, "model": None}


def assemble(found: Sequence[Found], diverged: Mapping[str, int]) -> dict[str, pa.Table]:
    """Table -> the rows that these results give to it, in their order; tables that get none are absent."""
    parts: dict[str, list[tuple[pa.Table, Places]]] = {}
    for name, table, places in _all_rows(found):
        parts.setdefault(name, []).append((_payload(name, table), places))
    subjects = _subjects(found, diverged)
    return {name: _identified(name, every, subjects) for name, every in parts.items()}


def _payload(name: str, table: pa.Table) -> pa.Table:
    return conform(table, pa.schema(list(TABLES[name])[len(IDENTITY) + 1 :])).replace_schema_metadata(None)


def _all_rows(found: Sequence[Found]) -> Iterator[Rows]:
    by_stage: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for place, one in enumerate(found):
        by_stage.setdefault((one.wanted.work.stage, one.wanted.columns), []).append(place)
    for (stage, columns), places in by_stage.items():
        if columns:
            tables = [found[place].table for place in places]
            owners = np.repeat(np.array(places, np.int64), [table.num_rows for table in tables])
            yield from _rows(stage, pa.concat_tables(tables), owners)
    costs = [{"stage": one.wanted.work.stage, "key": one.wanted.work.key, **one.facts} for one in found]
    yield "costs", pa.Table.from_pylist(costs), np.arange(len(found), dtype=np.int64)


def _rows(stage: str, table: pa.Table, owners: Places) -> Iterator[Rows]:
    """What the results of one stage give."""
    if stage in _TABLE_OF:
        yield _TABLE_OF[stage], table, owners
    if stage == "evaluate":
        yield "scores", table.select([field.name for field in SCORE_COLUMNS]), owners
        structs, parents = _unnested(table, "samples")
        about = table.select(["task", "metric"]).take(pa.array(parents))
        yield "samples", _beside(about, structs), owners[parents]
    if stage == "weight_change" and SKETCHES[0] in table.column_names:
        kept = pc.or_(pc.is_valid(table["sketch"]), pc.is_valid(table["left_directions"]))
        yield "weight_sketches", table.filter(kept), owners[kept.to_numpy()]
    if stage == "perplexity":
        structs, parents = _unnested(table, "examples")
        yield "examples", pa.Table.from_struct_array(structs), owners[parents]


def _unnested(table: pa.Table, name: str) -> tuple[pa.StructArray, Places]:
    """Every entry of a column of lists of structs, and the row that it is from."""
    lists = table.column(name).combine_chunks()
    return lists.flatten(), pc.list_parent_indices(lists).to_numpy()


def _beside(table: pa.Table, structs: pa.StructArray) -> pa.Table:
    for index, field in enumerate(structs.type):
        table = table.append_column(field.name, structs.field(index))
    return table


def _subjects(found: Sequence[Found], diverged: Mapping[str, int]) -> pa.Table:
    rows = [{**identity_of(one.wanted.work), DIVERGED.name: one.wanted.work.subject.trial in diverged} for one in found]
    return pa.Table.from_pylist(rows, schema=pa.schema([*IDENTITY, DIVERGED]))


def _identified(name: str, parts: Sequence[tuple[pa.Table, Places]], subjects: pa.Table) -> pa.Table:
    """Rows of one table with the columns of their subjects in front, in the order of the results."""
    payload = pa.concat_tables(table for table, _ in parts)
    owners = np.concatenate([places for _, places in parts])
    if len(parts) > 1:  # each stage by itself is in order
        order = np.argsort(owners, kind="stable")
        payload, owners = payload.take(pa.array(order)), owners[order]
    identity = subjects.take(pa.array(owners))
    return pa.Table.from_arrays([*identity.columns, *payload.columns], schema=TABLES[name])
