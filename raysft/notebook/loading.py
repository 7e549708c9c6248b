"""Where tables lie: a sweep's storage, the folder of a study, or any folder of Parquet files."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raysft.notebook.table import Table
from raysft.notebook.tables import Tables
from raysft.store.layout import Storage, StorageAccessError, StorageError, one_line, open_storage, why
from raysft.store.schema import TABLES

# of a sweep's storage, or of the folder of a study; a plain folder of tables has neither
_FOLDERS = (("tables",), ("study", "tables"))
_ORDER = {name: place for place, name in enumerate(TABLES)}
_SUFFIX = ".parquet"


def load(where: str | os.PathLike[str] | Storage | Mapping[str, pa.Table]) -> Tables:
    """The tables of a sweep and of its study, read when they are used.

    Args:
        where: a sweep's storage (a folder, `s3://` or `gs://`, or an open `Storage`), the sweep's YAML, the folder of a
            study such as that of released scores, a folder of Parquet files, or tables in memory by name.

    Raises:
        StorageError: there are no tables, or they cannot be read.
        SpecError: a YAML that is no sweep.
    """
    if isinstance(where, Mapping):
        return Tables("memory", {name: Table(name, name, table) for name, table in where.items()})
    storage = where if isinstance(where, Storage) else _storage(os.fspath(where))
    paths = [path for folder in _FOLDERS for path in _parquet_files(storage, *folder)] or list(_parquet_files(storage))
    if not paths:
        raise StorageError(
            f"{storage.uri}: no tables; valid are a sweep's YAML or storage (`raysft reduce` makes its tables), the "
            "folder of a study, and a folder of Parquet files"
        )
    names = {path.rpartition("/")[2].removesuffix(_SUFFIX): path for path in paths}
    ordered = sorted(names, key=lambda name: (_ORDER.get(name, len(_ORDER)), name))
    uri = storage.uri.rstrip("/")
    found = {
        name: Table(name, f"{uri}/{names[name]}", functools.partial(_opened, storage, names[name])) for name in ordered
    }
    return Tables(storage.uri, found)


def _storage(where: str) -> Storage:
    if where.endswith((".yaml", ".yml")) and "://" not in where:
        from raysft.spec.sweep import load_sweep  # only here is a sweep's YAML read

        return open_storage(load_sweep(Path(where)).storage)
    return open_storage(where)


def _parquet_files(storage: Storage, *folder: str) -> Iterator[str]:
    """Paths of the tables in a folder, relative to the storage."""
    return ("/".join([*folder, name]) for name in storage.names(*folder) if name.endswith(_SUFFIX))


@contextmanager
def _opened(storage: Storage, path: str) -> Iterator[pq.ParquetFile]:
    """The file of a table; StorageError where it cannot be read."""
    try:
        with storage.filesystem.open_input_file(storage.path(path)) as file, pq.ParquetFile(file) as parquet:
            yield parquet
    except pa.ArrowInvalid as error:
        raise StorageError(f"{storage.uri}: {path} is not a readable Parquet file ({one_line(error)})") from error
    except OSError as error:
        raise StorageAccessError(f"storage {storage.uri}: cannot read {path} ({why(error)})") from error
