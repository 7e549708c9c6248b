"""Where everything of a sweep lies, on a local path, `s3://` or `gs://`, through one Arrow filesystem.

```
<storage>/
  sweep.yaml                         the resolved spec of the last run
  report/sweep.yaml                  the resolved spec that the report was made of, written last
  results/<stage>/<key>.parquet      committed results; names that start with a dot are not results
  packs/                             copies of many results in few files (`raysft.store.packs`), which `reduce` reads
  failures/<stage>/<key>/<n>.json    record of the n-th failed attempt, its traceback beside it as <n>.log
  models/<key>/                      base models that the project pretrained
  tokens/<key>/                      tokenised rows, for every trial that reads the same; made again where they lack
  checkpoints/<trial>/epoch-<n>/     weights, complete once manifest.json is there
  embeddings/<key>/                  pooled hidden states, until the estimates of them are there
  embeddings/.gathering-<key>/       parts of them while they are made; what is there after a kill is not made again
  tables/  study/  report/           what `reduce`, `study` and `report` make; always rebuilt from results
```
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.fs as pafs

from raysft.store.filesystems import Address, open_filesystem, parse_address
from raysft.store.objects import Bucket


class StorageError(ValueError):
    """The storage cannot be used as asked; the message is one line that says where and why."""


class StorageAccessError(StorageError, OSError):
    """The storage did not let something be read or written: refused, unreachable, full, or too busy for too long."""


class DamagedError(StorageError):
    """What lies in the storage is not what was put there, or not all of it is there."""


@dataclass(frozen=True)
class Storage:
    """A root folder on some filesystem. Paths given to its methods are relative to the root.

    Every method raises StorageAccessError. `bucket` takes conditional puts, where the storage is not local.
    """

    uri: str
    filesystem: pafs.FileSystem
    root: str
    bucket: Bucket | None = field(default=None, repr=False, compare=False)

    def __reduce__(self) -> tuple[Callable[[str], Storage], tuple[str]]:
        """Opened anew by whoever unpickles it, with the credentials of its own environment: no pickle holds any."""
        return open_storage, (self.uri,)

    @property
    def is_local(self) -> bool:
        return self.bucket is None

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
        return [name for name in self.all_names(*folder) if not name.startswith(".")]

    def all_names(self, *folder: str) -> list[str]:
        """Sorted names in a folder; empty if there is no such folder."""
        return sorted(info.base_name for info in self.infos(*folder))

    def infos(self, *folder: str) -> list[pafs.FileInfo]:
        """What is known of each file in a folder; empty if there is no such folder."""
        selector = pafs.FileSelector(self.path(*folder), allow_not_found=True)
        with self._access("read", *folder):
            try:
                return list(self.filesystem.get_file_info(selector))
            except FileNotFoundError:  # it went between being found and being listed
                return []

    def exists(self, *parts: str) -> bool:
        return self.sizes([self.path(*parts)]) != [None]

    def sizes(self, paths: list[str]) -> list[int | None]:
        """Bytes of each of these paths inside `filesystem`, 0 of a folder; None where there is nothing."""
        with self._access("read", paths[0].removeprefix(f"{self.root}/") if paths else ""):
            infos = self.filesystem.get_file_info(paths)
        return [None if info.type == pafs.FileType.NotFound else info.size or 0 for info in infos]

    def read_bytes(self, *parts: str) -> bytes:
        with self._access("read", *parts), self.filesystem.open_input_stream(self.path(*parts)) as stream:
            return bytes(stream.read())

    def find_bytes(self, *parts: str) -> bytes | None:
        """The content of a file; None if there is no such file."""
        try:
            return self.read_bytes(*parts)
        except StorageAccessError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return None
            raise

    def write_bytes(self, data: bytes, *parts: str, lasting: bool = True) -> None:
        """Replace a file as a whole: readers see the old content or the new.

        What is not `lasting` may be broken after a power cut, and is not waited for.
        """
        path = self.path(*parts)
        with self._access("write", *parts):
            if not self.is_local:  # an object appears when its upload is closed, never before
                with self.filesystem.open_output_stream(path, compression=None) as stream:
                    stream.write(data)
                return
            with _temporary(Path(path), data, lasting) as temporary:
                temporary.replace(path)

    def create_bytes(self, data: bytes, *parts: str) -> bool:
        """Publish a file, whole and for good; False, and no change, if there is one of that name.

        Of several writers at once one gets True. No two may write the same bytes (see `raysft.store.objects`).
        """
        with self._access("write", *parts):
            if self.bucket is not None:
                return self.bucket.create(self.key(*parts), data)
            return _publish(Path(self.path(*parts)), data)

    def replace_bytes(self, seen: bytes, data: bytes, *parts: str) -> bool:
        """Replace an object that still holds `seen`; False, and no change, if another was first."""
        if self.bucket is None:
            raise StorageError(f"{self.uri}: only objects are replaced conditionally")
        with self._access("write", *parts):
            return self.bucket.replace(self.key(*parts), seen, data)

    def key(self, *parts: str) -> str:
        """Name of an object in its bucket."""
        return self.path(*parts).partition("/")[2]

    def move(self, path: str, target: str) -> None:
        """Give a file another name, if it is there; another process may do so first."""
        with self._access("move", path):
            try:
                self.filesystem.move(self.path(path), self.path(target))
            except FileNotFoundError:
                return

    def delete(self, *parts: str) -> None:
        """Delete a file if it is there."""
        if self.exists(*parts):
            with self._access("delete", *parts):
                self.filesystem.delete_file(self.path(*parts))

    def delete_tree(self, *folder: str) -> None:
        """Delete a folder and all in it, if it is there; another process may do so too."""
        if self.exists(*folder):
            with self._access("delete", *folder):
                try:
                    self.filesystem.delete_dir(self.path(*folder))
                except FileNotFoundError:
                    return

    def upload(self, source: Path, *folder: str) -> None:
        """Copy the files of a local folder into a folder, over what has their names."""
        local = pafs.LocalFileSystem()
        with self._access("write", *folder):
            pafs.copy_files(str(source), self.path(*folder), local, self.filesystem)

    def download(self, target: Path, *folder: str) -> None:
        """Copy the files of a folder into a local one."""
        local = pafs.LocalFileSystem()
        target.mkdir(parents=True, exist_ok=True)
        with self._access("read", *folder):
            pafs.copy_files(self.path(*folder), str(target), self.filesystem, local)

    def check_writable(self) -> None:
        """Write and remove a small file, so that a wrong path or a missing permission is known before any work.

        StorageError as well for an object store that takes no conditional puts: two writers would both be first there.
        """
        name, content = f".writable-{uuid.uuid4().hex}", uuid.uuid4().hex.encode()
        try:
            self.write_bytes(content, name)
            replaced = self.bucket is not None and self.create_bytes(b"second", name)
            self.delete(name)
        except OSError as error:
            cause = why(error.__cause__ or error)
            raise StorageAccessError(f"storage {self.uri}: cannot write there ({cause})") from error
        if replaced:
            raise StorageError(f"storage {self.uri}: it ignores If-None-Match, so that no commit is safe there")

    @contextmanager
    def _access(self, doing: str, *parts: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            what = "/".join(parts)
            raise StorageAccessError(f"storage {self.uri}: cannot {doing} {what} ({why(error)})") from error


def open_storage(uri: str) -> Storage:
    """Open `uri`, a local path or an `s3://` or `gs://` address. Nothing is created; credentials come from the
    environment."""
    address = check_address(uri)
    if address.scheme == "file" and Path(address.root).is_file():
        raise StorageAccessError(f"storage {uri}: a file, where a folder is needed")
    try:
        return Storage(uri, *open_filesystem(address))
    except ImportError as error:
        raise StorageError(f"storage {uri}: needs obstore, which is not there: pip install 'raysft[cloud]'") from error
    except OSError as error:
        raise StorageAccessError(f"storage {uri}: {why(error)}") from error


def check_address(uri: str) -> Address:
    """The parts of a storage's address; StorageError for one that is none or holds credentials, which it keeps back."""
    try:
        return parse_address(uri)
    except ValueError as error:
        raise StorageError(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """An exception's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


# What Arrow's messages say -> what that means to the user.
_MEANINGS = {
    "ACCESS_DENIED": "refused: credentials come from the environment, and have to allow reading and writing there",
    "INVALID_ACCESS_KEY_ID": "refused: the access key in the environment is not known there",
    "SIGNATURE_DOES_NOT_MATCH": "refused: the secret key in the environment is not that of the access key",
    "NO_SUCH_BUCKET": "there is no such bucket",
}


def why(error: BaseException) -> str:
    """Why an access failed, on one line."""
    text = one_line(error)
    meaning = next((meaning for sign, meaning in _MEANINGS.items() if sign in text), None)
    return text if meaning is None else f"{meaning}; {text}"


@contextmanager
def _temporary(final: Path, data: bytes, synced: bool = True) -> Iterator[Path]:
    """A synced file with a dot-prefixed name beside `final`, gone at the end if it got no other name."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _publish(final: Path, data: bytes) -> bool:
    """Give a synced file its name by a hard link, which fails if the name is taken."""
    try:
        with _temporary(final, data) as temporary:
            os.link(temporary, final)
    except FileExistsError:
        return False
    descriptor = os.open(final.parent, os.O_RDONLY)  # makes the new name itself survive a power cut
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


SPEC_FILE = "sweep.yaml"
REPORT_FILE = "report/report.html"
REPORT_SPEC_FILE = "report/sweep.yaml"


def require_storage(storage: Storage) -> None:
    """StorageAccessError where the storage of a sweep that runs is empty: all that was committed would seem missing."""
    if not storage.exists(SPEC_FILE):
        raise StorageAccessError(f"storage {storage.uri}: no {SPEC_FILE}; is it mounted here?")


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
