"""Files too large for memory, written to a local folder first and then published under their names."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysft.store.layout import Storage, StorageAccessError, StorageError, why

_PREFIX = ".writing-"
_ABANDONED_S = 24 * 3600.0


@contextmanager
def replaced_files(storage: Storage, folder: str) -> Iterator[Path]:
    """An empty local folder to fill, whose files then replace those of their names in a folder of the storage.

    Readers see each file as it was or as it is. Nothing changes if something is raised; StorageAccessError where the
    files cannot be written.
    """
    try:
        if storage.is_local:
            with _hidden(storage.local_path(folder)) as scratch:
                yield scratch
                for path in sorted(scratch.iterdir()):
                    _sync(path)
                for path in sorted(scratch.iterdir()):
                    path.replace(scratch.parent / path.name)
        else:
            with tempfile.TemporaryDirectory(prefix="raysft-") as temporary:
                yield Path(temporary)
                storage.upload(Path(temporary), folder)  # an object appears when its upload is closed
    except StorageError:
        raise
    except OSError as error:
        raise StorageAccessError(f"storage {storage.uri}: cannot write {folder} ({why(error)})") from error


@contextmanager
def _hidden(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, on the same disk and hidden from readers, gone at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{_PREFIX}*"):  # of a process that was killed
        if time.time() - path.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(path, ignore_errors=True)
    scratch = folder / f"{_PREFIX}{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
