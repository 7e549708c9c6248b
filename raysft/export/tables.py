"""A sweep's tables, and those of its study, as a dataset folder that `datasets.load_dataset` reads by name.

Columns that say on which machine something ran, or what a failure said there, are left out: they are of no use to
others, and name hosts and paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class TableFile:
    """One table: the name of its configuration, and the file it is read from."""

    name: str
    path: Path

    def read(self) -> pa.Table:
        """Without the columns of machines. ExportError for a file that is no table."""
        try:
            found = pq.read_table(self.path)
        except (pa.ArrowInvalid, OSError) as error:
            raise ExportError(f"tables: {self.path.name} cannot be read ({shown(one_line(error), 200)})") from error
        return found.drop_columns([name for name in found.column_names if name in MACHINE_COLUMNS])


def table_files(tables: Path, study: Path) -> list[TableFile]:
    """The tables that are there, the sweep's first; those of the study have `study_` before their names."""
    own = [TableFile(name, tables / f"{name}.parquet") for name in TABLES]
    made = [TableFile(f"study_{name}", study / "tables" / f"{name}.parquet") for name in STUDY_TABLES]
    return [file for file in (*own, *made) if file.path.is_file()]


def tables_digest(files: Iterable[TableFile]) -> str:
    """What the tables hold, as one digest."""
    return text_digest("\n".join(f"{file.name} {file_digest(file.path)}" for file in files))


def fill_tables(files: Iterable[TableFile], target: Path) -> None:
    """Write the tables into `target / data`."""
    (target / "data").mkdir(parents=True, exist_ok=True)
    for file in files:
        pq.write_table(file.read(), target / "data" / f"{file.name}.parquet", compression="zstd")


def tables_card(sweep: Sweep, name: str, files: Iterable[TableFile], license: str | None) -> str:
    """The README.md of the dataset: a configuration for each table, and what each column means."""
    found = [(file.name, file.read()) for file in files]
    configs = [
        {
            "config_name": one,
            "data_files": [{"split": "train", "path": f"data/{one}.parquet"}],
            **({"default": True} if one == "scores" else {}),
        }
        for one, _ in found
    ]
    data = DatasetCardData(license=license, tags=["raysft"], configs=configs)
    body = render(
        "dataset_card.md",
        name=name,
        sweep=sweep,
        license=license,
        tables=table(
            ("table", "rows", "columns"), [(code(one), rows.num_rows, rows.num_columns) for one, rows in found]
        ),
        columns=Markdown("\n\n".join(f"### {code(one)}\n\n{_columns(rows.schema)}" for one, rows in found)),
    )
    return front_matter(data.to_yaml(), license) + "\n" + body


def _columns(schema: pa.Schema) -> Markdown:
    return table(("column", "type", "meaning", "unit", "source"), map(tuple, _column_rows(schema)))


def _column_rows(schema: pa.Schema) -> Iterator[list[Markdown]]:
    for field in schema:
        about = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        kind = str(field.type).split("<")[0]
        yield [code(field.name), code(kind), *(text(about.get(name, "")) for name in ("meaning", "unit", "source"))]
