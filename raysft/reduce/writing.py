"""Tables to files: row group by row group, so that no table is in memory as a whole, and published all at the end."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
_BEHIND = 4  # row groups that wait for the thread


class TableFiles:
    """One growing Parquet file for each table; `rows` counts what was appended. A thread writes behind the caller."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.rows = dict.fromkeys(TABLES, 0)
        self._waiting: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
        self._writers = {name: stack.enter_context(_writer(name, folder)) for name in TABLES}
        self._thread = stack.enter_context(ThreadPoolExecutor(1))
        self._writing: deque[Future[None]] = deque()

    def append(self, name: str, table: pa.Table) -> None:
        """Add rows, of the table's schema."""
        self._waiting[name].append(table)
        self.rows[name] += table.num_rows
        if sum(waiting.num_rows for waiting in self._waiting[name]) >= _size(name):
            self._write(name, whole=False)

    def finish(self) -> None:
        """Write what is left."""
        for name in TABLES:
            self._write(name, whole=True)
        while self._writing:
            self._writing.popleft().result()

    def _write(self, name: str, whole: bool) -> None:
        """Have full row groups written, or with `whole` all rows."""
        rows = pa.concat_tables(self._waiting[name] or [TABLES[name].empty_table()])
        end = rows.num_rows if whole else rows.num_rows // _size(name) * _size(name)
        for start in range(0, end, _size(name)):
            group = rows.slice(start, min(_size(name), end - start))
            self._writing.append(self._thread.submit(_write_group, self._writers[name], group))
        self._waiting[name] = [rows.slice(end)]
        while len(self._writing) > _BEHIND:
            self._writing.popleft().result()


def _size(name: str) -> int:
    return _GROUP_OF.get(name, _GROUP)


def _write_group(writer: pq.ParquetWriter, rows: pa.Table) -> None:
    """One row group; in one piece, since the pages of a file depend on the pieces."""
    writer.write_table(rows.combine_chunks().cast(writer.schema), row_group_size=rows.num_rows)


def _writer(name: str, folder: Path) -> pq.ParquetWriter:
    metadata = {
        "table": name,
        "schema_version": str(SCHEMA_VERSION),
        "identity": json.dumps(IDENTITY.names),
        "sorted_by": json.dumps(SORTED_BY),
    }
    schema = TABLES[name].with_metadata(metadata)
    # Measured numbers hardly repeat: a dictionary of them takes time, and makes files larger.
    repeating = [field.name for field in schema if field.name in IDENTITY.names or pa.types.is_string(field.type)]
    return pq.ParquetWriter(folder / f"{name}.parquet", schema, compression="zstd", use_dictionary=repeating)


@contextmanager
def table_files(storage: Storage) -> Iterator[TableFiles]:
    """Files of all tables, which replace those in the storage if nothing is raised."""
    with replaced_files(storage, "tables") as folder, ExitStack() as stack:
        files = TableFiles(folder, stack)
        yield files
        files.finish()
