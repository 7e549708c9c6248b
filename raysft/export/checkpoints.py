"""A checkpoint of the storage as a folder that `transformers` or peft loads as it is.

What training writes is the whole model, whichever part of it a method trained, or an adapter alone; neither comes with
a tokenizer. Weights are copied and their checksums compared with the manifest's: an export is whole, and does not
depend on the storage.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from raysft.export.bases import Bases, Named
from raysft.export.folders import CARD
from raysft.export.mistakes import ExportError
from raysft.export.selection import Checkpoint
from raysft.spec.digests import digest_of
from raysft.spec.mistakes import shown
from raysft.store.checkpoints import file_digest, local_folder, read_manifest
from raysft.store.layout import DamagedError, Storage

ADAPTER_CONFIG = "adapter_config.json"
_CHAT_TEMPLATE = "chat_template.jinja"


def fill_checkpoint(storage: Storage, checkpoint: Checkpoint, bases: Bases, target: Path, scratch: Path) -> None:
    """Write a checkpoint, its base's tokenizer and its chat template into the folder `target`.

    Raises:
        DamagedError: the checkpoint is not what its manifest says.
        ExportError: its base's tokenizer or its chat template cannot be had.
    """
    model = checkpoint.trial.model
    copy_stored(storage, checkpoint.folder, target, scratch)
    copy_files(bases.tokenizer_files(model), target)
    template = chat_template(checkpoint)
    if template is not None:
        (target / _CHAT_TEMPLATE).write_bytes(template)
    config = target / ADAPTER_CONFIG
    if config.is_file():
        name_base(config, bases.named(model))
    elif (config := target / "config.json").is_file():
        _drop(config, "_name_or_path")  # of the machine that trained it


def fill_base(bases: Bases, model: str, target: Path) -> None:
    """Write a base model and its tokenizer into the folder `target`."""
    copy_files(bases.model_files(model), target)


def copy_stored(storage: Storage, folder: str, target: Path, scratch: Path) -> None:
    """Copy the files of a complete folder of the storage, but for its README. DamagedError where one is damaged."""
    manifest = read_manifest(storage, folder)
    files = [name for name in manifest["files"] if name != CARD]
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DamagedError(f"{folder}: its manifest names {shown(name, 80)}, which is no file of a folder")
    if storage.is_local:
        copy_files({name: storage.local_path(folder, name) for name in files}, target)
    else:
        place = local_folder(storage, folder, scratch)
        copy_files({name: place / name for name in files}, target)
        shutil.rmtree(place)
    for name in files:
        if file_digest(target / name) != manifest["files"][name]["sha256"]:
            raise DamagedError(f"{folder}/{name}: damaged, its SHA-256 is not the manifest's")


def copy_files(files: Mapping[str, Path], target: Path) -> None:
    """Copy files under the names that they are to have. Never a link: a storage is cleaned up one day."""
    for name, path in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)


def name_base(config: Path, base: Named) -> None:
    """Have an adapter's configuration name its base; training wrote the folder of its own machine there."""
    content = json.loads(config.read_bytes())
    content |= {"base_model_name_or_path": base.reference, "revision": base.revision}
    _write(config, content)


def chat_template(checkpoint: Checkpoint) -> bytes | None:
    """The chat template that a trial was given in a file; None where its tokenizer brings its own, or none was used.

    Raises:
        ExportError: the file is not here, or is not the one of the training.
    """
    optimisation = checkpoint.trial.optimisation
    file = optimisation.chat_template
    if not optimisation.prompt.is_chat or file is None:
        return None
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ExportError(f"training.chat_template: {shown(file)} cannot be read ({error.strerror})") from error
    if digest_of(str(file), lambda: file_digest(file)) != file_digest(file):
        raise ExportError(f"training.chat_template: {shown(file)} is not the one that the sweep was trained with")
    return content


def _drop(config: Path, field: str) -> None:
    content = json.loads(config.read_bytes())
    if content.pop(field, None) is not None:
        _write(config, content)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
