"""From a dataset of the sweep to its examples: json, jsonl (also .gz), parquet, csv, a hub name, generated skills.

Columns are recognised for the layouts of the well-known instruction sets, or named in the spec. Every row must have an
instruction and a response; the first that has not is refused by its number, unless the spec says to leave them out. Of
a conversation the first exchange is read, or all of it, as the spec says.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysft.corpus.conversations import whole_conversation
from raysft.corpus.example import Example
from raysft.corpus.skills import instruction_rows
from raysft.spec.datasets import Columns, DatasetSpec
from raysft.spec.keys import canonical_json, dataset_identity, text_digest
from raysft.spec.sweep import SpecError, Sweep

Row = Mapping[str, Any]
Reader = Callable[[Row], Example]

FORMATS = (".json", ".jsonl", ".jsonl.gz", ".parquet", ".csv")


def load_examples(sweep: Sweep, dataset: DatasetSpec, size: int | None) -> list[Example]:
    """The training examples of a trial: the first `size` rows (of each member) in a fixed random order; None = all.

    The order depends on the dataset's content alone, so that every model, method and seed sees the same rows and a
    smaller sample is the beginning of a larger one; of a mixture, each member's is. Raises SpecError for a missing
    file, a bad row, or too few rows.
    """
    if dataset.mixture is not None:
        members = [load_examples(sweep, sweep.dataset(name), size) for name in dataset.mixture.members]
        return _shuffled(sweep, dataset, [example for member in members for example in member])
    examples = all_examples(dataset)
    if size is not None and size > len(examples):
        raise SpecError(f"datasets.{dataset.name}: {size} rows asked, it has {len(examples)}")
    return _shuffled(sweep, dataset, examples)[:size]


def _shuffled(sweep: Sweep, dataset: DatasetSpec, examples: list[Example]) -> list[Example]:
    """The examples in the random order that belongs to the dataset's content: any beginning is a fair sample."""
    seed = int(text_digest(canonical_json(dataset_identity(sweep, dataset))), 16)
    return [examples[index] for index in np.random.default_rng(seed).permutation(len(examples))]


def all_examples(dataset: DatasetSpec) -> list[Example]:
    """Every example of a dataset that is not a mixture, in the order of its source."""
    where = f"datasets.{dataset.name}"
    if dataset.generated is not None:
        request = dataset.generated
        try:
            return instruction_rows(request.skill, request.rows, request.seed)
        except ValueError as error:
            raise SpecError(f"{where}.generated: {error}") from error
    if dataset.path is not None:
        rows, where = read_rows(dataset.path, where), f"{where}: {dataset.path.name}"
    else:
        rows = _hub_rows(dataset, where)
    chosen = [
        (number, row)
        for number, row in enumerate(rows, start=1)
        if all(str(row.get(column)) in values for column, values in dataset.where.items())
    ]
    if not chosen:
        raise SpecError(f"{where}: no rows" + (" that match `where`" if dataset.where else ""))
    reader = _reader(chosen[0][1], dataset, where)
    read = (_example(reader, row, f"{where}, row {number}", dataset) for number, row in chosen)
    examples = [example for example in read if example is not None]
    if not examples:
        raise SpecError(f"{where}: none of {len(rows)} rows has both an instruction and a response")
    return examples


def read_rows(path: Path, where: str) -> list[Row]:
    """Rows of a local file as mappings; the format is told by its ending (see FORMATS)."""
    if not path.is_file():
        raise SpecError(f"{where}: no file {path}")
    try:
        if path.name.endswith(".json"):
            return _json_rows(json.loads(path.read_text(encoding="utf-8")), path, where)
        if path.name.endswith(".jsonl"):
            return _jsonl_rows(path.read_text(encoding="utf-8").split("\n"), path, where)
        if path.name.endswith(".jsonl.gz"):
            return _jsonl_rows(gzip.decompress(path.read_bytes()).decode().split("\n"), path, where)
        if path.name.endswith(".parquet"):
            return list(pq.read_table(path).to_pylist())
        if path.name.endswith(".csv"):
            csv.field_size_limit(1 << 30)  # a response may well have more than the default of 128 KiB
            with path.open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
    except (ValueError, OSError, EOFError, csv.Error, pa.ArrowInvalid) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"{where}: {path} cannot be read ({' '.join(str(error).split())})") from error
    raise SpecError(f"{where}: {path.name} has none of the known endings: {', '.join(FORMATS)}")


def _json_rows(content: Any, path: Path, where: str) -> list[Row]:
    rows: Any = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SpecError(f"{where}: {path.name} must hold a list of objects, or one under `data`")
    return rows


def _jsonl_rows(lines: Iterable[str], path: Path, where: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SpecError(f"{where}: {path.name}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise SpecError(f"{where}: {path.name}, line {number}: expected an object, found {type(row).__name__}")
        rows.append(row)
    return rows


def _hub_rows(dataset: DatasetSpec, where: str) -> list[Row]:
    import datasets  # imported here because it takes a second that local files need not wait for

    try:
        loaded = datasets.load_dataset(
            dataset.hub, dataset.subset, split=dataset.split, revision=dataset.revision, streaming=bool(dataset.where)
        )
        return list(loaded)
    except (OSError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise SpecError(f"{where}.hub: {dataset.hub} at {dataset.revision} cannot be loaded ({problem})") from error


def _reader(row: Row, dataset: DatasetSpec, where: str) -> Reader:
    """How to read the examples of rows that look like `row`."""
    if dataset.columns.instruction is not None:
        return partial(_named_columns, dataset.columns)
    for needed, pair in _LAYOUTS:
        if all(column in row for column in needed):
            if dataset.turns == "all" and needed[0] in _CONVERSATIONS:
                return lambda row: whole_conversation(row.get(needed[0]))
            return lambda row: Example(*pair(row))
    known = "; ".join(" + ".join(needed) for needed, _ in _LAYOUTS)
    raise SpecError(f"{where}: columns {', '.join(row)} are no known layout ({known}); name them under `columns`")


def _example(reader: Reader, row: Row, where: str, dataset: DatasetSpec) -> Example | None:
    """The row's example; for an incomplete row None, or SpecError, as the spec says."""
    try:
        example = reader(row)
        for name in ("instruction", "response"):
            if not getattr(example, name).strip():
                raise ValueError(f"no {name}")
    except ValueError as error:
        if dataset.incomplete_rows == "drop":
            return None
        raise SpecError(f"{where}: {error}; mend the row, or set incomplete_rows: drop") from error
    return example


def _named_columns(columns: Columns, row: Row) -> Example:
    return Example(_joined(row, columns.instruction, columns.input), _text(row, columns.response))


def _text(row: Row, column: str | None) -> str:
    value = row.get(column) if column is not None else None
    return value.strip() if isinstance(value, str) else "" if value is None else str(value)


def _joined(row: Row, instruction: str | None, extra: str | None) -> str:
    return "\n".join(text for text in (_text(row, instruction), _text(row, extra)) if text)


def _first_turns(messages: Any, role: str, content: str, user: str, assistant: str) -> tuple[str, str]:
    """First user turn and first reply of a conversation."""
    turns = messages if isinstance(messages, (list, tuple)) else []
    asked: Row = next((turn for turn in turns if turn.get(role) == user), {})
    answered: Row = next((turn for turn in turns if turn.get(role) == assistant), {})
    return _text(asked, content), _text(answered, content)


def _pair(turns: Any) -> tuple[str, str]:
    pair = turns[:2] if isinstance(turns, (list, tuple)) else ()
    return (pair[0], pair[1]) if len(pair) == 2 and all(isinstance(turn, str) for turn in pair) else ("", "")


def _first_instance(row: Row) -> tuple[str, str]:
    instance = (row.get("instances") or [{}])[0]
    return _joined({**row, **instance}, "instruction", "input"), _text(instance, "output")


# columns that tell a layout, and how (instruction, response) are read from it
_LAYOUTS: tuple[tuple[tuple[str, ...], Callable[[Row], tuple[str, str]]], ...] = (
    (("instruction", "instances"), _first_instance),
    (("instruction", "output"), lambda row: (_joined(row, "instruction", "input"), _text(row, "output"))),
    (("instruction", "response"), lambda row: (_joined(row, "instruction", "input"), _text(row, "response"))),
    (("question", "answer"), lambda row: (_text(row, "question"), _text(row, "answer"))),
    (("prompt", "completion"), lambda row: (_text(row, "prompt"), _text(row, "completion"))),
    (("prompt", "response"), lambda row: (_text(row, "prompt"), _text(row, "response"))),
    (("messages",), lambda row: _first_turns(row.get("messages"), "role", "content", "user", "assistant")),
    (("conversations",), lambda row: _conversation(row.get("conversations"))),
    (("data",), lambda row: _pair(row.get("data"))),
)
_CONVERSATIONS = ("messages", "conversations", "data")  # layouts that hold any number of turns


def _conversation(turns: Any) -> tuple[str, str]:
    """LIMA keeps a list of texts, ShareGPT a list of {from, value}."""
    if isinstance(turns, (list, tuple)) and turns and isinstance(turns[0], dict):
        return _first_turns(turns, "from", "value", "human", "gpt")
    return _pair(turns)
