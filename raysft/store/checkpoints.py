"""Checkpoints, models, rows: folders of files that are complete only when their manifest is there.

Protocol. The files are written to a dot-prefixed folder, then the manifest with every file's size and SHA-256, then the
folder gets its final name by one rename (on an object store: the files are uploaded first, the manifest last). A folder
without a valid manifest is half-written: it counts as missing and is moved aside by whoever writes the folder again. On
an object store one without any manifest may be somebody's upload in flight, so it is left there and written over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from raysft.store.layout import Storage, StorageError, one_line

MANIFEST = "manifest.json"


def write_folder(storage: Storage, folder: str, save: Callable[[Path], None], facts: Mapping[str, Any]) -> bool:
    """Have `save` fill a new local folder and publish it as `folder` of the storage; False if it was complete before.

    `facts` go into the manifest.
    """
    if is_complete(storage, folder):
        return False
    parent, name = storage.path(folder).rsplit("/", 1)
    storage.filesystem.create_dir(parent, recursive=True)
    if not storage.is_local:
        if storage.exists(folder, MANIFEST):
            move_aside(storage, folder)
        with tempfile.TemporaryDirectory() as temporary:
            _fill(Path(temporary), save, facts)
            _upload(storage, Path(temporary), folder)
        return True
    temporary_folder = Path(parent) / f".{name}.{uuid.uuid4().hex}"
    temporary_folder.mkdir()
    try:
        _fill(temporary_folder, save, facts)
        return _rename(storage, temporary_folder, folder)
    finally:
        shutil.rmtree(temporary_folder, ignore_errors=True)


def read_manifest(storage: Storage, folder: str) -> dict[str, Any]:
    """The manifest of a complete folder; StorageError, with the file and the reason, for any other."""
    path = f"{folder}/{MANIFEST}"
    if not storage.exists(path):
        raise StorageError(f"{folder}: half-written, {MANIFEST} is missing")
    try:
        manifest: dict[str, Any] = json.loads(storage.read_bytes(path))
        files = manifest["files"]
    except (ValueError, KeyError) as error:
        raise StorageError(f"{path}: not a manifest ({one_line(error)})") from error
    for name, entry in files.items():
        info = storage.filesystem.get_file_info(storage.path(folder, name))
        found = "no such file" if info.type == pafs.FileType.NotFound else f"{info.size} bytes"
        if found != f"{entry['bytes']} bytes":
            raise StorageError(f"{folder}/{name}: {found}, the manifest says {entry['bytes']} bytes")
    return manifest


def is_complete(storage: Storage, folder: str) -> bool:
    """Whether every file of the folder's manifest is there with its size."""
    try:
        read_manifest(storage, folder)
    except StorageError:
        return False
    return True


def sound_folder(storage: Storage, folder: str) -> Path | None:
    """`local_folder`, or None where there is no complete folder; one with damaged contents is moved aside first."""
    if not is_complete(storage, folder):
        return None
    try:
        return local_folder(storage, folder)
    except StorageError:
        move_aside(storage, folder)
        return None


def local_folder(storage: Storage, folder: str, cache: Path | None = None) -> Path:
    """A complete folder as a local path, checksums verified; from an object store it is downloaded to `cache` once."""
    manifest = read_manifest(storage, folder)
    if storage.is_local:
        path = storage.local_path(folder)
    else:
        path = _downloaded(storage, folder, manifest, cache or Path(tempfile.gettempdir()) / "raysft")
    damaged = _damaged_file(path, manifest)
    if damaged is not None and not storage.is_local:  # only the copy may be: those who clean /tmp take files out of it
        shutil.rmtree(path, ignore_errors=True)
        path = _downloaded(storage, folder, manifest, path.parent)
        damaged = _damaged_file(path, manifest)
    if damaged is not None:
        raise StorageError(f"{folder}/{damaged}: damaged, its SHA-256 is not the manifest's")
    return path


def _damaged_file(path: Path, manifest: Mapping[str, Any]) -> str | None:
    """The first file of a local folder that is not there or not what its manifest says."""
    for name, entry in manifest["files"].items():
        if not (path / name).is_file() or file_digest(path / name) != entry["sha256"]:
            return str(name)
    return None


def _downloaded(storage: Storage, folder: str, manifest: Mapping[str, Any], cache: Path) -> Path:
    """A local copy of a complete remote folder, named by its content; several processes may ask at once."""
    path = cache / hashlib.sha256(f"{storage.uri}{json.dumps(manifest, sort_keys=True)}".encode()).hexdigest()[:20]
    if path.exists():
        return path
    temporary = cache / f".{path.name}.{uuid.uuid4().hex}"
    temporary.mkdir(parents=True)
    local = pafs.LocalFileSystem()
    pafs.copy_files(storage.path(folder), str(temporary), storage.filesystem, local)
    for file in [file for file in temporary.rglob("*") if file.is_file()]:
        if str(file.relative_to(temporary)) not in {*manifest["files"], MANIFEST}:  # of an upload that was not finished
            file.unlink()
    try:
        temporary.rename(path)
    except OSError:  # another process was first; a folder that is not empty is never replaced
        shutil.rmtree(temporary)
    return path


def delete_folder(storage: Storage, folder: str) -> None:
    """Delete a folder, manifest first, so that it is never taken for complete while it goes."""
    if storage.exists(folder, MANIFEST):
        storage.filesystem.delete_file(storage.path(folder, MANIFEST))
    if storage.exists(folder):
        storage.filesystem.delete_dir(storage.path(folder))


def move_aside(storage: Storage, folder: str) -> None:
    """Give a half-written or damaged folder a dot-prefixed name beside its own; another process may do so first."""
    parent, name = folder.rsplit("/", 1)
    aside = storage.path(parent, f".damaged-{uuid.uuid4().hex[:8]}-{name}")
    try:
        if storage.is_local:
            storage.filesystem.move(storage.path(folder), aside)
        else:  # objects have no folders that could get another name
            storage.filesystem.create_dir(aside, recursive=True)
            pafs.copy_files(storage.path(folder), aside, storage.filesystem, storage.filesystem)
            storage.filesystem.delete_dir(storage.path(folder))
    except OSError:
        if storage.exists(folder):
            raise


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _fill(folder: Path, save: Callable[[Path], None], facts: Mapping[str, Any]) -> None:
    save(folder)
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": files, **facts}, indent=1, sort_keys=True))
    for path in [folder / name for name in files] + [manifest]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _rename(storage: Storage, temporary: Path, folder: str) -> bool:
    final = storage.local_path(folder)
    if final.exists() and not is_complete(storage, folder):
        move_aside(storage, folder)
    try:
        temporary.rename(final)
    except OSError:
        if is_complete(storage, folder):  # another writer was first
            return False
        raise
    return True


def _upload(storage: Storage, source: Path, folder: str) -> None:
    files = sorted(path for path in source.rglob("*") if path.is_file() and path.name != MANIFEST)
    for path in [*files, source / MANIFEST]:
        target = storage.path(folder, str(path.relative_to(source)))
        storage.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        pafs.copy_files(
            str(path), target, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=storage.filesystem
        )
