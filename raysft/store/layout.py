"""Where everything of a sweep lies, on a local path, `s3://` or `gs://`, through one Arrow filesystem.

```
<storage>/
  sweep.yaml                         the resolved spec of the last run
  report/sweep.yaml                  the resolved spec that the report was made of, written last
  results/<stage>/<key>.parquet      committed results; names that start with a dot are not results
  failures/<stage>/<key>/<n>.json    record of the n-th failed attempt, its traceback beside it as <n>.log
  models/<key>/                      base models that the project pretrained
  tokens/<key>/                      tokenised rows, for every trial that reads the same; made again where they lack
  checkpoints/<trial>/epoch-<n>/     weights, complete once manifest.json is there
  embeddings/<key>/                  pooled hidden states
  tables/  study/  report/           what `reduce`, `study` and `report` make; always rebuilt from results
```
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs as pafs


class StorageError(ValueError):
    """The storage cannot be used as asked; the message is one line that says where and why."""


@dataclass(frozen=True)
class Storage:
    """A root folder on some filesystem. Paths given to its methods are relative to the root."""

    uri: str
    filesystem: pafs.FileSystem
    root: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def path(self, *parts: str) -> str:
        """Path inside `filesystem`."""
        return "/".join([self.root, *parts])

    def local_path(self, *parts: str) -> Path:
        """The same as a local `Path`; StorageError where the storage is not local."""
        if not self.is_local:
            raise StorageError(f"{self.uri}: {'/'.join(parts)} is not on a local filesystem")
        return Path(self.path(*parts))

    def names(self, *folder: str) -> list[str]:
        """Sorted names in a folder, without those that start with a dot; empty if there is no such folder."""
        selector = pafs.FileSelector(self.path(*folder), allow_not_found=True)
        try:
            infos = self.filesystem.get_file_info(selector)
        except OSError as error:
            raise StorageError(f"storage {self.uri}: cannot read {'/'.join(folder)} ({one_line(error)})") from error
        return sorted(info.base_name for info in infos if not info.base_name.startswith("."))

    def exists(self, *parts: str) -> bool:
        return bool(self.filesystem.get_file_info(self.path(*parts)).type != pafs.FileType.NotFound)

    def read_bytes(self, *parts: str) -> bytes:
        with self.filesystem.open_input_stream(self.path(*parts)) as stream:
            return bytes(stream.read())

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Replace a file as a whole: readers see the old content or the new."""
        folder, name = self.path(*parts).rsplit("/", 1)
        self.filesystem.create_dir(folder, recursive=True)
        if not self.is_local:  # an object appears when its upload is closed, never before
            with self.filesystem.open_output_stream(f"{folder}/{name}") as stream:
                stream.write(data)
            return
        temporary = f"{folder}/.{name}.{uuid.uuid4().hex}"
        with self.filesystem.open_output_stream(temporary) as stream:
            stream.write(data)
        self.filesystem.move(temporary, f"{folder}/{name}")

    def delete(self, *parts: str) -> None:
        """Delete a file if it is there."""
        if self.exists(*parts):
            self.filesystem.delete_file(self.path(*parts))

    def check_writable(self) -> None:
        """Write and remove a small file, so that a wrong path or a missing permission is known before any work."""
        probe = self.path(f".writable-{uuid.uuid4().hex}")
        try:
            self.filesystem.create_dir(self.root, recursive=True)
            with self.filesystem.open_output_stream(probe) as stream:
                stream.write(b"raysft")
            self.filesystem.delete_file(probe)
        except OSError as error:
            raise StorageError(f"storage {self.uri}: cannot write there ({one_line(error)})") from error


def open_storage(uri: str) -> Storage:
    """Open `uri`, a local path or an `s3://` or `gs://` address. Nothing is created; credentials come from the
    environment."""
    if "://" not in uri:
        return Storage(uri, pafs.LocalFileSystem(), str(Path(uri).expanduser().resolve()))
    try:
        filesystem, root = pafs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:
        raise StorageError(f"storage {uri}: {one_line(error)}; valid: a local path, s3://... or gs://...") from error
    return Storage(uri, filesystem, root.rstrip("/"))


def one_line(error: BaseException) -> str:
    """An exception's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


SPEC_FILE = "sweep.yaml"
REPORT_FILE = "report/report.html"
REPORT_SPEC_FILE = "report/sweep.yaml"


def checkpoint_folder(trial: str, epoch: int) -> str:
    """Folder of a checkpoint, relative to the storage."""
    return f"checkpoints/{trial}/epoch-{epoch:04d}"


def model_folder(key: str) -> str:
    """Folder of a base model that the project pretrained, relative to the storage."""
    return f"models/{key}"


def rows_folder(key: str) -> str:
    """Folder of tokenised rows, relative to the storage."""
    return f"tokens/{key}"


def embeddings_folder(key: str) -> str:
    """Folder of a subject's pooled hidden states, relative to the storage."""
    return f"embeddings/{key}"
