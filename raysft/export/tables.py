"""A sweep's tables, and those of its study, as a dataset folder that `datasets.load_dataset` reads by name.

Columns that say on which machine something ran, or what a failure said there, are left out: they are of no use to
others, and name hosts and paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from raysft.export.card import front_matter, render
from raysft.export.markdown import Markdown, code, table, text
from raysft.export.mistakes import ExportError
from raysft.spec.keys import text_digest
from raysft.spec.mistakes import shown
from raysft.spec.sweep import Sweep
from raysft.store.checkpoints import file_digest
from raysft.store.layout import one_line
from raysft.store.schema import TABLES
from raysft.study.schema import STUDY_TABLES

MACHINE_COLUMNS = frozenset({"host", "log", "message"})
_BATCH = 1 << 17  # rows: the tables of a large sweep need not fit into memory


@dataclass(frozen=True)
class TableFile:
    """One table: the name of its configuration, its file, the number of its rows, and the columns that are exported."""

    name: str
    path: Path
    rows: int
    schema: pa.Schema

    def write(self, target: Path) -> None:
        """Copy the exported columns."""
        with pq.ParquetWriter(target, self.schema, compression="zstd") as writer, pq.ParquetFile(self.path) as source:
            for batch in source.iter_batches(_BATCH, columns=self.schema.names):
                writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=self.schema))


def table_files(tables: Path, study: Path) -> list[TableFile]:
    """The tables that are there, the sweep's first; those of the study have `study_` before their names.

    Raises:
        ExportError: a file that is no table.
    """
    own = [(name, tables / f"{name}.parquet") for name in TABLES]
    made = [(f"study_{name}", study / "tables" / f"{name}.parquet") for name in STUDY_TABLES]
    return [_opened(name, path) for name, path in (*own, *made) if path.is_file()]


def _opened(name: str, path: Path) -> TableFile:
    try:
        with pq.ParquetFile(path) as file:
            fields = [field for field in file.schema_arrow if field.name not in MACHINE_COLUMNS]
            return TableFile(name, path, file.metadata.num_rows, pa.schema(fields))
    except (pa.ArrowInvalid, OSError) as error:
        raise ExportError(f"tables: {path.name} cannot be read ({shown(one_line(error), 200)})") from error


def tables_digest(files: Iterable[TableFile]) -> str:
    """What the tables hold, as one digest."""
    return text_digest("\n".join(f"{file.name} {file_digest(file.path)}" for file in files))


def fill_tables(files: Iterable[TableFile], target: Path) -> None:
    """Write the tables into `target / data`, but for empty ones, which `datasets` cannot read."""
    (target / "data").mkdir(parents=True, exist_ok=True)
    for file in files:
        if file.rows:
            file.write(target / "data" / f"{file.name}.parquet")


def tables_card(sweep: Sweep, name: str, files: Sequence[TableFile], license: str | None) -> str:
    """The README.md of the dataset: a configuration for each table, and what each column means."""
    full = [file for file in files if file.rows]
    if not full:
        raise ExportError("tables: every one is empty")
    data = DatasetCardData(license=license, tags=["raysft"], configs=list(map(_config, full)))
    rows = [(code(file.name), f"{file.rows:,}", len(file.schema)) for file in full]
    columns = "\n\n".join(f"### {code(file.name)}\n\n{_columns(file.schema)}" for file in full)
    body = render(
        "dataset_card.md",
        name=name,
        sweep=sweep,
        license=license,
        example="scores" if "scores" in (names := [file.name for file in full]) else names[0],
        tables=table(("table", "rows", "columns"), rows),
        empty=Markdown(", ".join(code(file.name) for file in files if not file.rows)),
        columns=Markdown(columns),
    )
    return front_matter(data.to_yaml(), license) + "\n" + body


def _config(file: TableFile) -> dict[str, Any]:
    found = {"config_name": file.name, "data_files": [{"split": "train", "path": f"data/{file.name}.parquet"}]}
    return found | ({"default": True} if file.name == "scores" else {})


def _columns(schema: pa.Schema) -> Markdown:
    return table(("column", "type", "meaning", "unit", "source"), map(tuple, _column_rows(schema)))


def _column_rows(schema: pa.Schema) -> Iterator[list[Markdown]]:
    for field in schema:
        about = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        kind = str(field.type).split("<")[0]
        yield [code(field.name), code(kind), *(text(about.get(name, "")) for name in ("meaning", "unit", "source"))]
