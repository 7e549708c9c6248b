"""A whole export: the chosen checkpoints, the base models that adapters need beside them, and the tables."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysft.export.bases import Bases
from raysft.export.card import base_card, checkpoint_card
from raysft.export.checkpoints import fill_base, fill_checkpoint
from raysft.export.folders import State, Subject, exporting_into, publish
from raysft.export.mistakes import ExportError
from raysft.export.names import tables_name
from raysft.export.records import CARD_TABLES, Records
from raysft.export.sections import CardOf
from raysft.export.selection import Checkpoint, Choice, select, stored_checkpoints
from raysft.export.tables import fill_tables, table_files, tables_card, tables_digest
from raysft.spec.keys import canonical_json, key_of, model_identity, text_digest
from raysft.spec.mistakes import shown
from raysft.spec.sweep import Sweep
from raysft.store.checkpoints import read_manifest
from raysft.store.layout import DamagedError, Storage, StorageAccessError, StorageError, one_line
from raysft.store.results import read_result, result_path
from raysft.store.schema import TABLES
from raysft.study.tables import read_tables

_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")


@dataclass(frozen=True)
class Options:
    """How to export. `bases`: by model, what adapters name in place of an exported base."""

    license: str | None = None
    bases: Mapping[str, str] = field(default_factory=dict)
    tables: bool = True


@dataclass(frozen=True)
class Selection:
    """What an export is about to write."""

    sweep: Sweep
    storage: Storage
    checkpoints: Sequence[Checkpoint]
    records: Records
    tables: Path
    study: Path


@dataclass(frozen=True)
class Outcome:
    """What became of one folder: its state, or why there is none."""

    name: str
    state: State | None
    why: str = ""


@contextmanager
def selected(sweep: Sweep, storage: Storage, choice: Choice) -> Iterator[Selection]:
    """What `choice` takes of a sweep; inside, its tables are in local folders.

    Raises:
        ExportError: nothing is chosen.
        StorageError: the storage cannot be read, or has no tables.
    """
    if not storage.exists("tables", "trials.parquet"):
        raise StorageError(f"{storage.path('tables')}: no tables yet; `raysft reduce` makes them")
    stored = stored_checkpoints(sweep, storage)
    with _local(storage) as root:
        tables = _read(root / "tables")
        checkpoints = select(stored, choice, tables["scores"])
        yield Selection(sweep, storage, checkpoints, _records(tables), root / "tables", root / "study")


def check_options(sweep: Sweep, options: Options) -> None:
    """ExportError for a licence that is no identifier, or the base of a model that the sweep does not have."""
    if options.license is not None and not _LICENSE.fullmatch(options.license):
        raise ExportError(f"--license {shown(options.license, 80)}: an identifier is wanted, such as apache-2.0 or mit")
    known = [model.name for model in sweep.models]
    for name in options.bases:
        if name not in known:
            raise ExportError(f"--base {shown(name, 80)}: no such model in the sweep; valid: {', '.join(known)}")


def sizes(selection: Selection) -> list[int | None]:
    """Bytes of every chosen checkpoint, by its manifest; None for one that is not whole."""
    found: list[int | None] = []
    for one in selection.checkpoints:
        try:
            manifest = read_manifest(selection.storage, one.folder)
        except DamagedError:
            found.append(None)
        else:
            found.append(sum(int(entry["bytes"]) for entry in manifest["files"].values()))
    return found


def export(selection: Selection, out: Path, options: Options) -> Iterator[Outcome]:
    """Write a selection into folders of `out`; what cannot be written is said, and the others go on.

    Raises:
        ExportError: `out` cannot be made, or an option makes no sense.
        StorageAccessError: the storage does not answer.
    """
    check_options(selection.sweep, options)
    with exporting_into(out) as scratch:
        bases = Bases(selection.sweep, selection.storage, options.bases, scratch)
        yield from _bases(selection, out, options, bases)
        for checkpoint in selection.checkpoints:
            write = functools.partial(_checkpoint, selection, checkpoint, out, options, bases, scratch)
            yield _tried(checkpoint.name, write)
        if options.tables:
            name = tables_name(selection.sweep.name)
            yield _tried(name, functools.partial(_tables, selection, name, out, options))


def _tried(name: str, write: Any) -> Outcome:
    try:
        return Outcome(name, write())
    except StorageAccessError:
        raise
    except (ExportError, StorageError) as error:
        return Outcome(name, None, one_line(error))
    except OSError as error:
        return Outcome(name, None, f"cannot be read or written ({shown(one_line(error), 200)})")


def _checkpoint(
    selection: Selection, checkpoint: Checkpoint, out: Path, options: Options, bases: Bases, scratch: Path
) -> State:
    sweep, storage, trial = selection.sweep, selection.storage, checkpoint.trial
    base = bases.named(trial.model)
    manifest = read_manifest(storage, checkpoint.folder)
    adapter = sweep.method(trial.method).kind == "lora"
    # What names the base is in the files of an adapter: another one makes another folder.
    content = {"files": manifest["files"], "base": [base.reference, base.revision] if adapter else None}
    identity = {"sweep": sweep.name, "trial": trial.key, "epoch": checkpoint.epoch}
    digest = text_digest(canonical_json(content))
    subject = Subject("adapter" if adapter else "checkpoint", checkpoint.name, identity, digest)
    versions = _versions(storage, checkpoint)
    card = checkpoint_card(CardOf(sweep, checkpoint, selection.records, base, versions, options.license))
    return publish(out, subject, lambda target: fill_checkpoint(storage, checkpoint, bases, target, scratch), card)


def _bases(selection: Selection, out: Path, options: Options, bases: Bases) -> Iterator[Outcome]:
    """The base models that the chosen adapters need beside them."""
    sweep = selection.sweep
    trials = [one.trial for one in selection.checkpoints]
    models = dict.fromkeys(trial.model for trial in trials if sweep.method(trial.method).kind == "lora")
    for model in models:
        if bases.is_exported(model):
            yield _tried(bases.export_name(model), functools.partial(_base, selection, model, out, options, bases))


def _base(selection: Selection, model: str, out: Path, options: Options, bases: Bases) -> State:
    sweep, name = selection.sweep, bases.export_name(model)
    spec = sweep.model(model)
    identity = {"sweep": sweep.name, "model": model, "source": "folder" if spec.micro is None else "recipe"}
    subject = Subject("base", name, identity, text_digest(canonical_json(model_identity(spec))))
    card = base_card(sweep, name, model, selection.records.base_scores(model), options.license)
    return publish(out, subject, lambda target: fill_base(bases, model, target), card)


def _tables(selection: Selection, name: str, out: Path, options: Options) -> State:
    files = table_files(selection.tables, selection.study)
    subject = Subject("tables", name, {"sweep": selection.sweep.name}, tables_digest(files))
    card = tables_card(selection.sweep, name, files, options.license)
    return publish(out, subject, lambda target: fill_tables(files, target), card)


def _versions(storage: Storage, checkpoint: Checkpoint) -> dict[str, str]:
    """Of the packages that trained a checkpoint, as the result of its training says; none where that is not there."""
    key = key_of("train", checkpoint.trial.train_identity)
    if not storage.exists(result_path("train", key)):
        return {}
    result = read_result(storage, "train", key)
    metadata = result.schema.metadata or {}
    versions = {str(name): str(found) for name, found in json.loads(metadata.get(b"versions", b"{}")).items()}
    revision = metadata.get(b"git_revision", b"").decode()
    return versions | ({"git revision": revision} if revision else {})


def _read(tables: Path) -> dict[str, pa.Table]:
    return read_tables(tables, {name: TABLES[name] for name in CARD_TABLES})


def _records(tables: Mapping[str, pa.Table]) -> Records:
    try:
        return Records(tables)
    except ValueError as error:
        raise ExportError(f"tables: {one_line(error)}") from error


@contextmanager
def _local(storage: Storage) -> Iterator[Path]:
    """A local folder with the storage's `tables` and `study`."""
    if storage.is_local:
        yield storage.local_path()
        return
    with tempfile.TemporaryDirectory() as scratch:
        for folder in ("tables", "study"):
            if storage.exists(folder):
                storage.download(Path(scratch) / folder, folder)
        yield Path(scratch)
