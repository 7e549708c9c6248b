"""Exported folders on the local disk: what each is of, and how one is published.

Protocol. A folder is filled under a dot-prefixed name of `DIR/.exporting`, then renamed; `raysft.json` in it says what
it is of, which content it was made from, and the size and SHA-256 of every file. A folder that is there, of the same
subject and content, is left as it is, but for a card that nobody edited and that would read otherwise now. A folder
without `raysft.json` is somebody else's and is never touched. One exporter at a time works in DIR.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raysft import __version__
from raysft.export.mistakes import ExportError
from raysft.spec.mistakes import shown
from raysft.store.checkpoints import file_digest
from raysft.store.layout import one_line

RECORD = "raysft.json"
CARD = "README.md"
_FORMAT = 1
_SCRATCH = ".exporting"

State = Literal["written", "replaced", "there", "card renewed", "there, its edited card kept"]
Kind = Literal["checkpoint", "adapter", "base", "tables"]


@dataclass(frozen=True)
class Subject:
    """What an exported folder is of; `content` names what it was made from, and changes when that does."""

    kind: Kind
    name: str
    identity: Mapping[str, Any]
    content: str


def publish(out: Path, subject: Subject, fill: Callable[[Path], None], card: str) -> State:
    """Have `fill` write a folder, add the card and the record, and publish it as `out / subject.name`.

    Raises:
        ExportError: the name is taken by something else. Also what `fill` raises, and OSError of the disk.
    """
    final = out / subject.name
    record = read_record(final) if final.exists() or final.is_symlink() else None
    if record is not None:
        _check_own(final, record, subject)
        if record["content"] == subject.content and is_whole(final, record):
            return _renew_card(final, record, card)
    temporary = out / _SCRATCH / uuid.uuid4().hex
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        (temporary / CARD).write_text(card, encoding="utf-8")
        write_record(temporary, subject)
        _sync(temporary)
        if record is not None:
            final.rename(out / _SCRATCH / uuid.uuid4().hex)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return "written" if record is None else "replaced"


def read_record(folder: Path) -> dict[str, Any]:
    """What the record of an exported folder says. ExportError for a folder that is none."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_bytes())
        if record["format"] > _FORMAT:
            raise ExportError(f"{shown(folder)}: of format {record['format']}, this raysft reads up to {_FORMAT}")
        for entry in record["files"].values():
            entry["bytes"], entry["sha256"]
        record["kind"], record["identity"], record["content"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ExportError(
            f"{shown(folder)}: is there, and was not made by raysft ({RECORD} is missing); it is left as it is"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"{shown(path)}: not a record of an export ({shown(one_line(error), 80)})") from error
    return dict(record)


def write_record(folder: Path, subject: Subject) -> None:
    """Describe a folder's files in its `raysft.json`."""
    files = {name: file_entry(path) for name, path in files_of(folder).items()}
    write_whole(folder / RECORD, as_record(subject.kind, subject.identity, subject.content, files))


def as_record(kind: str, identity: Mapping[str, Any], content: str, files: Mapping[str, Any]) -> bytes:
    """The bytes of a `raysft.json`."""
    fields = {"format": _FORMAT, "made_by": f"raysft {__version__}", "kind": kind}
    fields |= {"identity": dict(identity), "content": content, "files": dict(files)}
    return (json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def file_entry(content: Path | bytes) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    if isinstance(content, bytes):
        return {"bytes": len(content), "sha256": _sha256(content)}
    return {"bytes": content.stat().st_size, "sha256": file_digest(content)}


def files_of(folder: Path) -> dict[str, Path]:
    """Name -> path of every file of an exported folder but its record."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {name: path for path in paths if (name := path.relative_to(folder).as_posix()) != RECORD}


def is_whole(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether every file of the record is there with its size; a card may have another one."""
    sizes = {name: path.stat().st_size for name, path in files_of(folder).items()}
    return all(
        name in sizes and (name == CARD or sizes[name] == entry["bytes"]) for name, entry in record["files"].items()
    )


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file: readers see the old content or the new."""
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        hidden.write_bytes(content)
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)


@contextmanager
def exporting_into(out: Path) -> Iterator[Path]:
    """Inside, this process alone exports into `out`, which is made. Gives a scratch folder on the same disk.

    ExportError where another process is at it, or where nothing can be written.
    """
    scratch = out / _SCRATCH
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(scratch, os.O_RDONLY)
    except OSError as error:
        raise ExportError(f"--out {shown(out)}: cannot be written ({error.strerror})") from error
    try:
        _lock(descriptor, out)
        for leftover in scratch.iterdir():  # of an exporter that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        yield scratch
        shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ExportError(f"--out {shown(out)}: another raysft export is writing there") from error


def _check_own(final: Path, record: Mapping[str, Any], subject: Subject) -> None:
    if record["kind"] != subject.kind or record["identity"] != dict(subject.identity):
        raise ExportError(f"{shown(final)}: holds the export of something else ({record['identity']}); left as it is")


def _renew_card(final: Path, record: dict[str, Any], card: str) -> State:
    """Write the card anew if it would read otherwise, unless somebody edited it."""
    path, new = final / CARD, card.encode()
    current = path.read_bytes() if path.is_file() else b""
    written = record["files"].get(CARD, {}).get("sha256")
    if current != new and current and _sha256(current) != written:
        return "there, its edited card kept"
    renewed = current != new
    if renewed:
        write_whole(path, new)
    if renewed or written != _sha256(new):
        record["files"][CARD] = file_entry(new)
        write_whole(final / RECORD, as_record(record["kind"], record["identity"], record["content"], record["files"]))
    return "card renewed" if renewed else "there"


def _sync(folder: Path) -> None:
    for path in (*files_of(folder).values(), folder / RECORD):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
