"""The reducer: every committed result of a sweep into one Parquet table per kind of result.

Tables follow the plan: they hold this sweep's subjects in its order, with the names that the YAML gives them now.
Re-running gives the same bytes, but for costs and failures, which say when and where things happened.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysft.spec.plan import Plan, Unit, Work, divergence_work, make_plan
from raysft.spec.sweep import Sweep
from raysft.store.layout import DamagedError, Storage
from raysft.store.lease import DRIVER
from raysft.store.results import conform, read_failures, read_result, result_path
from raysft.store.schema import DIVERGED, IDENTITY, SCORE_COLUMNS, TABLES

_READERS = 8  # threads: reading thousands of small files is waiting, most of all on an object store

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


@dataclass(frozen=True)
class Reduced:
    """Rows of each table written; a line for each result that could not be read, and the paths of those files."""

    rows: dict[str, int]
    unreadable: tuple[str, ...]
    damaged: tuple[str, ...]


def reduce_sweep(sweep: Sweep, storage: Storage) -> Reduced:
    """Assemble the tables of a sweep into `tables/` of its storage.

    StorageError where the storage cannot be read, or holds results of a newer version of this package.
    """
    plan = make_plan(sweep, storage)
    works = [work for work in plan.works() if plan.is_done(work)]
    unreadable: dict[str, str] = {path: f"{path}: truncated" for path in plan.damaged}
    last = _last_measured(works)

    def read(work: Work) -> list[tuple[str, pa.Table]]:
        try:
            table = read_result(storage, work.stage, work.key)
        except DamagedError as error:
            unreadable[result_path(work.stage, work.key)] = str(error)
            return []
        diverged, compared = work.subject.trial in plan.diverged, work.subject.epoch == last.get(work.subject.trial)
        return [(name, _identified(name, work, part, diverged)) for name, part in _parts(work, table, compared)]

    parts: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
    with ThreadPoolExecutor(_READERS) as pool:
        for found in pool.map(read, works):
            for name, part in found:
                parts[name].append(part)
    failures = _failures(plan, storage)
    parts["failures"] = [failures]
    parts["trials"] = [_trials(plan, _training(parts["training"]), failures)]
    rows = {}
    for name, schema in TABLES.items():
        table = pa.concat_tables(parts.pop(name) or [schema.empty_table()])
        _write(storage, name, table)
        rows[name] = table.num_rows
    return Reduced(rows, tuple(sorted(unreadable.values())), tuple(sorted(unreadable)))


def _last_measured(works: Iterable[Work]) -> dict[str | None, int | None]:
    """Trial -> the last epoch whose weights are among `works`: only updates of that one are compared with others."""
    last: dict[str | None, int | None] = {}
    for work in works:
        if work.stage == "weight_change":
            last[work.subject.trial] = max(last.get(work.subject.trial) or 0, work.subject.epoch or 0)
    return last


def _parts(work: Work, table: pa.Table, compared: bool) -> Iterator[tuple[str, pa.Table]]:
    """What one result gives to which table; sketches of weights only if they are to be `compared`."""
    if work.stage in _TABLE_OF:
        yield _TABLE_OF[work.stage], table
    elif work.stage == "evaluate":
        yield "scores", table.select([field.name for field in SCORE_COLUMNS])
        yield "samples", _samples(table)
    if work.stage == "weight_change" and compared:
        kept = pc.or_(pc.is_valid(table["sketch"]), pc.is_valid(table["left_directions"]))
        yield "weight_sketches", table.filter(kept)
    if work.stage == "perplexity":
        yield "examples", pa.Table.from_struct_array(table.column("examples").combine_chunks().flatten())
    metadata = table.schema.metadata
    cost = {
        "stage": work.stage,
        "key": work.key,
        "wall_s": float(metadata[b"wall_s"]),
        "gpu_s": float(metadata[b"gpu_s"]),
        "host": metadata[b"host"].decode(),
        "finished_at": metadata[b"finished_at"].decode(),
    }
    yield "costs", pa.Table.from_pylist([cost])


def _samples(table: pa.Table) -> pa.Table:
    """One row for each item of each score."""
    lists = table.column("samples").combine_chunks()
    structs = lists.flatten()
    parents = pc.list_parent_indices(lists)
    owners = table.select(["task", "metric"]).take(parents)
    columns = {field.name: structs.field(index) for index, field in enumerate(structs.type)}
    return pa.table({**{name: owners.column(name) for name in ("task", "metric")}, **columns})


def _identified(name: str, work: Work, part: pa.Table, diverged: bool) -> pa.Table:
    """The rows with the subject's identity columns in front, in the table's schema."""
    identity = work.subject.as_row()
    if work.stage in _OF_DATA_ALONE and name != "costs":
        identity["model"] = None
    count = part.num_rows
    columns = {field.name: pa.repeat(pa.scalar(identity[field.name], field.type), count) for field in IDENTITY}
    columns[DIVERGED.name] = pa.repeat(pa.scalar(diverged), count)
    for field in part.schema:
        columns[field.name] = part.column(field.name)
    return conform(pa.table(columns), TABLES[name]).replace_schema_metadata(None)


def _training(tables: Iterable[pa.Table]) -> dict[str, list[dict[str, Any]]]:
    """Trial -> its epochs, of rows of the table `training`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for table in tables:
        for row in table.to_pylist():
            found.setdefault(row["trial"], []).append(row)
    return found


def _failures(plan: Plan, storage: Storage) -> pa.Table:
    """Every recorded failure of the sweep's works, in the plan's order, and then the deaths of its drivers."""
    recorded = {(stage, key) for stage in storage.names("failures") for key in storage.names("failures", stage)}
    rows = [
        {
            **work.subject.as_row(),
            **record,
            "resolved": plan.is_done(work),
            DIVERGED.name: work.subject.trial in plan.diverged,
        }
        for work in [*plan.works(), *(divergence_work(trial) for trial in plan.trials)]
        if (work.stage, work.key) in recorded
        for record in read_failures(storage, work.stage, work.key)
    ]
    nothing = dict.fromkeys(IDENTITY.names) | {"resolved": True, DIVERGED.name: False}
    deaths = [record for stage, key in recorded if stage == DRIVER for record in read_failures(storage, stage, key)]
    rows += [{**nothing, **record} for record in sorted(deaths, key=lambda record: record["at"])]
    names = TABLES["failures"].names
    return pa.Table.from_pylist([{name: row[name] for name in names} for row in rows], schema=TABLES["failures"])


def _trials(plan: Plan, training: dict[str, list[dict[str, Any]]], failures: pa.Table) -> pa.Table:
    """One row for each base model and each fine-tuning."""
    open_failures = [row for row in failures.to_pylist() if not row["resolved"]]
    failed = {(row["stage"], row["key"]) for row in open_failures}
    measured_apart: dict[tuple[str, str | None], list[Work]] = {}
    for work in [*(work for unit in plan.units if unit.kind == "checkpoint" for work in unit.works), *plan.geometry]:
        if work.stage not in ("embed", "neighbours"):
            measured_apart.setdefault((work.subject.model, work.subject.trial), []).append(work)
    rows = []
    for unit in plan.units:
        if unit.kind in ("pretrain", "checkpoint"):
            continue
        works = [*unit.works, *measured_apart.get((unit.model, unit.subject.trial), [])]
        ended = plan.diverged.get(unit.key)
        state = _state(filter(plan.can_be_had, works), plan.is_done, failed)
        if state == "done" and ended is not None:
            state = "diverged"
        row = _trial_row(plan.sweep, unit, training)
        rows.append({**row, "state": state, "diverged": ended is not None, "diverged_in_epoch": ended})
    return pa.Table.from_pylist(rows, schema=TABLES["trials"])


def _state(works: Iterable[Work], is_done: Callable[[Work], bool], failed: set[tuple[str, str]]) -> str:
    missing = [work for work in works if not is_done(work)]
    if not missing:
        return "done"
    keys = {(work.stage, work.key) for work in missing} | {("embed", work.source) for work in missing if work.source}
    return "failed" if keys & failed else "missing"


def _trial_row(sweep: Sweep, unit: Unit, training: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    trial = unit.trial
    if trial is None:
        return {**unit.subject.as_row(), "epoch": 0, "kind": "base", "blocks": ""}
    row = {
        **unit.subject.as_row(),
        "epoch": trial.epochs,
        "kind": "fine-tuning",
        "blocks": "+".join(trial.blocks),
        "method_kind": sweep.method(trial.method).kind,
        "batch_size": trial.optimisation.batch_size,
    }
    epochs = training.get(trial.key)
    if epochs:
        row |= {
            "rows": epochs[-1]["rows"],
            "steps": epochs[-1]["step"],
            "supervised_tokens": sum(epoch["supervised_tokens"] for epoch in epochs),
            "final_loss": epochs[-1]["loss"],
            "oom_retries": sum(epoch["oom_retries"] for epoch in epochs),
        }
    return row


def _write(storage: Storage, name: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    metadata = {"table": name, "identity": json.dumps(IDENTITY.names)}
    pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
    storage.write_bytes(buffer.getvalue(), "tables", f"{name}.parquet")
