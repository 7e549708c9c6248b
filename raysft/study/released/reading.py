"""Reading released scores: a wide CSV into the tables of a sweep, `trials` and `scores`.

Columns are found by their names, so another release with other names is read too (`columns` names what is not found).
A row without training data of its own, at epoch 0 or of a dataset called base or pretrain, is a base model. Rows that
differ in nothing but the epoch are checkpoints of one trial.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from raysft.store.schema import TABLES
from raysft.study.benchmarks import RELEASED, benchmark_of
from raysft.study.gains import floored_error, task_scale
from raysft.study.tables import Reals, real_array, reals

# what a row is of -> names that its column may have, in lower case
NAMES = {
    "model": ("model_name", "model", "base_model"),
    "dataset": ("data_name", "dataset", "data", "dataset_name", "training_data"),
    "method": ("method", "lora"),
    "learning_rate": ("learning_rate", "lr"),
    "size": ("data_size", "size", "samples", "n_samples"),
    "schedule": ("lr_strategy", "schedule", "lr_scheduler", "lr_scheduler_type"),
    "epoch": ("epoch", "epochs"),
    "seed": ("seed",),
}
_NEEDED = ("model", "dataset")
_BASES = frozenset({"base", "pretrain", "pretrained", "none", ""})
_NAMELESS = frozenset({"none", ""})
_TRUTH = {"true": "lora", "false": "full", "1": "lora", "0": "full", "1.0": "lora", "0.0": "full"}
# Numbers about a fine-tuning that are no scores of it, and tell it from others.
_SETTINGS = frozenset({"batch_size", "weight_decay", "rank", "alpha", "max_length", "warmup", "warmup_ratio"})
_INDEX = frozenset({"id", "index"})

Row = dict[str, Any]


class ReleasedError(ValueError):
    """A CSV that cannot be read as released scores, or a choice that it does not have."""


@dataclass(frozen=True)
class Released:
    """Released scores as tables of a sweep; `roles` says which column was taken for what, `notes` what was left out."""

    trials: pa.Table
    scores: pa.Table
    roles: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def tables(self) -> dict[str, pa.Table]:
        """Tables by name, as every function of the study takes them."""
        empty = {name: schema.empty_table() for name, schema in TABLES.items()}
        return {**empty, "trials": self.trials, "scores": self.scores}


def read_released(path: Path, columns: Mapping[str, str] | None = None) -> Released:
    """Read a CSV of released scores.

    Args:
        path: the CSV; one row for each checkpoint, one column of numbers for each benchmark.
        columns: role (a key of `NAMES`) -> name of its column, where the names here do not say it.

    Raises:
        ReleasedError: no such file, no CSV, no column for the model or the dataset, no scores, or a value that
            cannot be read.
    """
    table = _read(path)
    roles = _roles(path, table.column_names, columns or {})
    names = [name for name in table.column_names if name not in roles.values() and not _is_index(name)]
    about = {alias for aliases in NAMES.values() for alias in aliases} | _SETTINGS | _INDEX
    read = [name for name in names if name.strip().lower() not in about]
    tasks = [name for name in read if pa.types.is_integer(kind := table[name].type) or pa.types.is_floating(kind)]
    # A column without any value has no type; it is a benchmark that nobody was scored on, or a note that nobody left.
    tasks += [name for name in read if pa.types.is_null(table[name].type)]
    if not tasks:
        raise ReleasedError(f"{path}: no column of numbers beside {', '.join(roles.values())}, so there are no scores")
    notes = tuple(
        f"Not read: {name}, {'no numbers' if name in read else 'not a score'}"
        for name in names
        if name not in tasks and name.strip().lower() not in _SETTINGS
    )
    subjects = _subjects(path, table, roles, [name for name in names if name.strip().lower() in _SETTINGS])
    tasks = [name for name in names if name in tasks]
    return Released(_trials(subjects), _scores(subjects, table, tasks), roles, notes)


def _read(path: Path) -> pa.Table:
    if not path.is_file():
        raise ReleasedError(f"{path}: not a file; a CSV of released scores is wanted")
    try:
        table = pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(strings_can_be_null=True))
        twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    except UnicodeDecodeError as error:
        raise ReleasedError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except pa.ArrowInvalid as error:
        raise ReleasedError(f"{path}: not a CSV ({str(error).splitlines()[0]})") from error
    if twice:
        raise ReleasedError(f"{path}: two columns are called {twice[0]!r}")
    foreign = next((field.name for field in table.schema if pa.types.is_binary(field.type)), None)
    if foreign is not None:
        raise ReleasedError(f"{path}: column {foreign!r} is not UTF-8")
    if not table.num_rows:
        raise ReleasedError(f"{path}: no rows below the header")
    return table


def _is_index(name: str) -> bool:
    return not name.strip() or name.startswith("Unnamed:")


def _roles(path: Path, names: list[str], columns: Mapping[str, str]) -> dict[str, str]:
    lower = {name.strip().lower(): name for name in reversed(names)}
    for role, name in columns.items():
        if role not in NAMES:
            raise ReleasedError(f"--column {role}={name}: {role} is none of {', '.join(NAMES)}")
        if name not in names:
            raise ReleasedError(f"{path}: no column {name!r} for the {role}; there are {_some(names)}")
    found = {role: next((lower[alias] for alias in aliases if alias in lower), None) for role, aliases in NAMES.items()}
    roles = {role: name for role, name in {**found, **columns}.items() if name is not None}
    for role in _NEEDED:
        if role not in roles:
            known = ", ".join(NAMES[role])
            raise ReleasedError(
                f"{path}: no column for the {role} ({known}, or --column {role}=NAME); there are {_some(names)}"
            )
    return roles


def _some(names: list[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def _subjects(path: Path, table: pa.Table, roles: Mapping[str, str], settings: list[str]) -> list[Row]:
    """Identity columns of each row of the CSV; `trial` null for a base model.

    How many epochs a trial was planned for is in no file: the last row that it has may be missing.
    """
    blank = [None] * table.num_rows
    columns = {role: table[roles[role]].to_pylist() if role in roles else blank for role in NAMES}
    set_to = table.select(settings).to_pylist() if settings else [{}] * table.num_rows
    return [
        _subject(path, at, dict(zip(columns, row, strict=True)), set_to[at])
        for at, row in enumerate(zip(*columns.values(), strict=True))
    ]


def _subject(path: Path, at: int, row: Row, settings: Row) -> Row:
    where = f"{path}: row {at + 2}"
    model, dataset = row["model"], "" if row["dataset"] is None else str(row["dataset"]).strip()
    if model is None or not str(model).strip():
        raise ReleasedError(f"{where}: no model")
    epoch = _whole(where, "epoch", row["epoch"])
    if dataset.lower() in _BASES or epoch == 0:
        if epoch and dataset.lower() in _NAMELESS:
            raise ReleasedError(f"{where}: epoch {epoch} of a dataset without a name; a base model has epoch 0 or none")
        blank = dict.fromkeys(("trial", "dataset", "method", "learning_rate", "size", "schedule", "seed"))
        return {**blank, "model": str(model).strip(), "epoch": 0}
    method = row["method"]
    subject = {
        "model": str(model).strip(),
        "dataset": dataset,
        "method": None if method is None else _TRUTH.get(str(method).lower(), str(method)),
        "learning_rate": _real(where, "learning_rate", row["learning_rate"]),
        "size": _whole(where, "size", row["size"]),
        "schedule": None if row["schedule"] is None else str(row["schedule"]),
        "seed": _whole(where, "seed", row["seed"]),
    }
    key = hashlib.sha256(json.dumps({**subject, **settings}, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return {**subject, "trial": key, "epoch": 1 if epoch is None else epoch}


def _whole(where: str, role: str, value: object) -> int | None:
    number = _real(where, role, value)
    if number is not None and number != int(number):
        raise ReleasedError(f"{where}: {role} is {value!r}, a whole number from 0 is wanted")
    return None if number is None else int(number)


def _real(where: str, role: str, value: object) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)  # type: ignore[arg-type]  # what is no number is what the error is for
    except (ValueError, TypeError):
        number = np.nan
    if not np.isfinite(number) or number < 0:
        raise ReleasedError(f"{where}: {role} is {value!r}, a number from 0 is wanted")
    return number


def _trials(subjects: list[Row]) -> pa.Table:
    first = {(row["model"], row["trial"]): row for row in reversed(subjects)}
    last: dict[tuple[object, object], int] = {}
    for row in subjects:
        place = (row["model"], row["trial"])
        last[place] = max(last.get(place, 0), row["epoch"])
    rows = [
        {**row, "epoch": last[place], "kind": "base" if row["trial"] is None else "fine-tuning"}
        for place, row in reversed(list(first.items()))
    ]
    rows = [{**row, "method_kind": row["method"] if row["method"] in ("full", "lora") else None} for row in rows]
    return pa.Table.from_pylist(rows, schema=TABLES["trials"])


def _scores(subjects: list[Row], table: pa.Table, tasks: list[str]) -> pa.Table:
    """One row for each cell, null where it is empty; standard errors and chance where the benchmark is known."""
    identity = pa.Table.from_pylist(subjects, schema=TABLES["scores"])
    parts = [_of_task(identity, name, reals(table, name)) for name in tasks]
    return pa.concat_tables(parts)


def _of_task(identity: pa.Table, name: str, values: Reals) -> pa.Table:
    known = values[np.isfinite(values)]
    scale = task_scale(name, RELEASED, float(np.abs(known).max()) if known.size else 1.0)
    about = benchmark_of(name)
    share = np.clip(values / scale, 0, 1)
    columns: dict[str, pa.Array] = {
        "task": pa.array([name] * len(values), pa.string()),
        "metric": pa.array([RELEASED] * len(values), pa.string()),
        "value": real_array(values),
        "higher_is_better": pa.array([True] * len(values), pa.bool_()),
    }
    if about.items:
        columns["n"] = pa.array([about.items] * len(values), pa.int64())
        columns["stderr"] = real_array(scale * floored_error(share, about.items))
    if about.chance is not None:
        columns["chance"] = pa.array([about.chance * scale] * len(values), pa.float64())
    rows = identity
    for column, array in columns.items():
        at = rows.schema.get_field_index(column)
        rows = rows.set_column(at, rows.schema.field(at), array)
    return rows


def base_models(scores: pa.Table) -> list[str]:
    """Base models that have a row of their own, sorted."""
    return sorted(pc.unique(scores.filter(pc.is_null(scores["trial"]))["model"]).to_pylist())
