"""Tables to files: row group by row group, so that no table is in memory as a whole, and published all at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raysft.store.layout import Storage
from raysft.store.replacing import replaced_files
from raysft.store.schema import IDENTITY, SCHEMA_VERSION, SORTED_BY, TABLES

# Rows of a row group. Bytes would be the better measure, but they depend on how the rows came, and files must not.
_GROUP = 1 << 17
_GROUP_OF = {"weight_sketches": 1 << 12}  # kilobytes each


class TableFiles:
    """One growing Parquet file for each table; `rows` counts what was appended."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.rows = dict.fromkeys(TABLES, 0)
        self._waiting: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
        self._writers = {name: stack.enter_context(_writer(name, folder)) for name in TABLES}

    def append(self, name: str, table: pa.Table) -> None:
        """Add rows, of the table's schema."""
        self._waiting[name].append(table)
        self.rows[name] += table.num_rows
        size = _GROUP_OF.get(name, _GROUP)
        if sum(waiting.num_rows for waiting in self._waiting[name]) >= size:
            self._write(name, size, whole=False)

    def finish(self) -> None:
        """Write what is left."""
        for name in TABLES:
            self._write(name, _GROUP_OF.get(name, _GROUP), whole=True)

    def _write(self, name: str, size: int, whole: bool) -> None:
        rows = pa.concat_tables(self._waiting[name] or [TABLES[name].empty_table()])
        end = rows.num_rows if whole else rows.num_rows // size * size
        for start in range(0, end, size):
            # In one piece, since the pages of a file depend on the pieces.
            group = rows.slice(start, min(size, end - start)).combine_chunks()
            self._writers[name].write_table(group.cast(self._writers[name].schema), row_group_size=size)
        self._waiting[name] = [rows.slice(end)]


def _writer(name: str, folder: Path) -> pq.ParquetWriter:
    metadata = {
        "table": name,
        "schema_version": str(SCHEMA_VERSION),
        "identity": json.dumps(IDENTITY.names),
        "sorted_by": json.dumps(SORTED_BY),
    }
    return pq.ParquetWriter(folder / f"{name}.parquet", TABLES[name].with_metadata(metadata), compression="zstd")


@contextmanager
def table_files(storage: Storage) -> Iterator[TableFiles]:
    """Files of all tables, which replace those in the storage if nothing is raised."""
    with replaced_files(storage, "tables") as folder, ExitStack() as stack:
        files = TableFiles(folder, stack)
        yield files
        files.finish()
