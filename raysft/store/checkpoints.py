"""Checkpoints, models, rows: folders of files that are complete only when their manifest is there.

Protocol, on a local filesystem. The files are written to a dot-prefixed folder, then the manifest with every file's
size and SHA-256, then the folder gets its final name by one rename, which fails where a folder has that name. A folder
without a valid manifest is half-written: it counts as missing and is moved aside by whoever writes the folder again.

Protocol, on an object store. A writer uploads its files to a subfolder of its own, `<folder>/attempt-<id>/`. Then it
puts the manifest, which names that subfolder, on the condition that there is none, or still the damaged one that the
writer saw. The first manifest decides. What a slower writer, a dead one or one that comes back late has uploaded is in
a subfolder that no manifest names: it counts for nothing, and its writer deletes it, or else the one who was first. A
manifest whose files turn out to be damaged is replaced by a note of that, on the condition that it is still the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raysft.store.layout import DamagedError, Storage, one_line

MANIFEST = "manifest.json"

_ATTEMPT = "attempt-"


def write_folder(storage: Storage, folder: str, save: Callable[[Path], None], facts: Mapping[str, Any]) -> bool:
    """Have `save` fill a new local folder and publish it as `folder` of the storage; False if another was first.

    `facts` go into the manifest. Raises what `save` raises, and OSError or StorageError where the storage refuses.
    """
    if is_complete(storage, folder):
        return False
    if not storage.is_local:
        return _write_objects(storage, folder, save, facts)
    final = storage.local_path(folder)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        save(temporary)
        _write_synced(temporary / MANIFEST, _manifest(temporary, facts))
        return _rename(storage, temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def gathering_place(storage: Storage, folder: str) -> str:
    """Where the files of a folder gather that many processes fill, until `publish_gathered`: they survive a kill."""
    parent, _, name = folder.rpartition("/")
    return f"{parent}/.gathering-{name}" if storage.is_local else f"{folder}/{_ATTEMPT}gathering"


def publish_gathered(
    storage: Storage, folder: str, files: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]
) -> bool:
    """Publish what lies in the `gathering_place` of a folder; False if another was first.

    `files`: name -> {"bytes": size, "sha256": digest} of what belongs to it. Nothing is copied.
    """
    place = gathering_place(storage, folder)
    content = {"files": dict(files), **facts}
    if storage.is_local:
        storage.write_bytes(_as_bytes(content), place, MANIFEST)
        return _rename(storage, storage.local_path(place), folder)
    return _decide(storage, folder, _as_bytes({**content, "attempt": place.rpartition("/")[2]}))


def read_manifest(storage: Storage, folder: str) -> dict[str, Any]:
    """The manifest of a complete folder; DamagedError, with the file and the reason, for any other."""
    content = storage.find_bytes(folder, MANIFEST)
    if content is None:
        raise DamagedError(f"{folder}: half-written, {MANIFEST} is missing")
    return _parsed(storage, folder, content)


def _parsed(storage: Storage, folder: str, content: bytes) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(content)
        sizes = {str(name): int(entry["bytes"]) for name, entry in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{folder}/{MANIFEST}: not a manifest ({one_line(error)})") from error
    place = _place(folder, manifest)
    there = storage.sizes([storage.path(place, name) for name in sizes])
    for (name, expected), size in zip(sizes.items(), there, strict=True):
        if size != expected:
            found = "no such file" if size is None else f"{size} bytes"
            raise DamagedError(f"{place}/{name}: {found}, the manifest says {expected} bytes")
    return manifest


def _place(folder: str, manifest: Mapping[str, Any]) -> str:
    """Where the files of a folder lie: in the folder, or on an object store in its writer's subfolder."""
    return f"{folder}/{manifest['attempt']}" if "attempt" in manifest else folder


def is_complete(storage: Storage, folder: str) -> bool:
    """Whether every file of the folder's manifest is there with its size."""
    try:
        read_manifest(storage, folder)
    except DamagedError:
        return False
    return True


def sound_folder(storage: Storage, folder: str) -> Path | None:
    """`local_folder`, or None where there is no complete folder; one with damaged contents counts as none from now."""
    content = storage.find_bytes(folder, MANIFEST)
    try:
        manifest = _parsed(storage, folder, content or b"")
    except DamagedError:
        return None
    try:
        return _verified(storage, folder, manifest)
    except DamagedError as error:
        if storage.is_local:
            move_aside(storage, folder)
        else:
            _note_damage(storage, folder, content or b"", error)
        return None


def local_folder(storage: Storage, folder: str, cache: Path | None = None) -> Path:
    """A complete folder as a local path, checksums verified; from an object store it is downloaded to `cache` once.

    DamagedError for a folder that is not complete, or whose files are not what the manifest says.
    """
    return _verified(storage, folder, read_manifest(storage, folder), cache)


def _verified(storage: Storage, folder: str, manifest: Mapping[str, Any], cache: Path | None = None) -> Path:
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
        raise DamagedError(f"{folder}/{damaged}: damaged, its SHA-256 is not the manifest's")
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
    try:
        storage.download(temporary, _place(folder, manifest))
        temporary.rename(path)
    except OSError:
        if not path.exists():  # no other process was first; a folder that is not empty is never replaced
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def delete_folder(storage: Storage, folder: str) -> None:
    """Delete a folder, manifest first, so that it is never taken for complete while it goes."""
    storage.delete(folder, MANIFEST)
    storage.delete_tree(folder)


def move_aside(storage: Storage, folder: str) -> None:
    """Give a half-written or damaged local folder a dot-prefixed name beside its own.

    Another process may do so first, and may have put a sound one in its place: that one stays.
    """
    final = storage.local_path(folder)
    aside = final.with_name(f".damaged-{uuid.uuid4().hex[:8]}-{final.name}")
    try:
        final.rename(aside)
    except FileNotFoundError:
        return
    if _is_sound(aside) and not final.exists():
        aside.rename(final)


def _is_sound(path: Path) -> bool:
    try:
        return _damaged_file(path, json.loads((path / MANIFEST).read_bytes())) is None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _note_damage(storage: Storage, folder: str, manifest: bytes, error: DamagedError) -> None:
    note = {"damaged": str(error), "manifest": manifest.decode(errors="replace")}
    storage.replace_bytes(manifest, json.dumps(note, indent=1).encode(), folder, MANIFEST)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _manifest(folder: Path, facts: Mapping[str, Any]) -> bytes:
    """The manifest of the files in a local folder, which are synced first."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    return _as_bytes({"files": files, **facts})


def _as_bytes(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=1, sort_keys=True).encode()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _rename(storage: Storage, temporary: Path, folder: str) -> bool:
    final = storage.local_path(folder)
    with _locked(final.parent):  # or what another writer put there after this one looked would be moved aside
        if final.exists() and not is_complete(storage, folder):
            move_aside(storage, folder)
    try:
        temporary.rename(final)
    except OSError:
        if is_complete(storage, folder):  # another writer was first
            return False
        raise
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Inside, no other process is in here for this folder, on a filesystem that has locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which lets go


def _write_objects(storage: Storage, folder: str, save: Callable[[Path], None], facts: Mapping[str, Any]) -> bool:
    attempt = f"{_ATTEMPT}{uuid.uuid4().hex[:12]}"
    with tempfile.TemporaryDirectory() as temporary:
        save(Path(temporary))
        manifest = _manifest(Path(temporary), {**facts, "attempt": attempt})
        storage.upload(Path(temporary), folder, attempt)
    is_first = _decide(storage, folder, manifest)
    for name in storage.names(folder):
        if name.startswith(_ATTEMPT) and (name != attempt) == is_first:
            storage.delete_tree(folder, name)
    return is_first


def _decide(storage: Storage, folder: str, manifest: bytes) -> bool:
    """Publish a manifest where there is none, or one that is not of a complete folder; False if there is a good one."""
    while True:  # each time around, another writer was faster
        seen = storage.find_bytes(folder, MANIFEST)
        if seen is None:
            done = storage.create_bytes(manifest, folder, MANIFEST)
        elif is_complete(storage, folder):
            return False
        else:
            done = storage.replace_bytes(seen, manifest, folder, MANIFEST)
        if done:
            return True
