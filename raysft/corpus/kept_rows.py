"""Tokenised rows in the sweep's storage: tokenised once, then mapped into memory by every process that trains on them.

Protocol. Rows lie in `tokens/<key>/`, a folder with a manifest like a checkpoint's (see `raysft.store.checkpoints`). A
process that finds none, or a damaged one, tokenises and writes it. Several may do so at once: the key holds all that
decides the rows, so they write the same, and who comes second opens what is there. Processes of a node share the mapped
pages.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from raysft.corpus.tokenize import TokenisedRows
from raysft.spec.grid import Trial
from raysft.spec.keys import STAGE_VERSIONS, Identity, canonical_json, key_of, text_digest
from raysft.spec.templates import Template
from raysft.store.checkpoints import local_folder, read_manifest, sound_folder, write_folder
from raysft.store.layout import Storage, rows_folder

_ARRAYS = ("ids", "offsets", "spans", "span_offsets", "kept")  # of TokenisedRows, each in a file of its own


def kept_rows(storage: Storage, identity: Identity, tokenise: Callable[[], TokenisedRows]) -> TokenisedRows:
    """The rows of `identity`, mapped read-only from the storage, or from a local copy of what lies in a remote one.

    `tokenise` makes them where they are not there or damaged; it must give at least one row, for an empty file cannot
    be mapped. What it raises is raised; OSError or StorageError where the storage cannot be written or read.
    """
    name = rows_folder(key_of("tokenise", identity))
    folder = sound_folder(storage, name)
    if folder is None:
        rows = tokenise()
        facts = {"identity": identity, "dropped": rows.dropped}
        write_folder(storage, name, lambda new: _save(rows, new), facts)
        folder = local_folder(storage, name)
    arrays = {array: _mapped(folder, array) for array in _ARRAYS}
    return TokenisedRows(**arrays, dropped=read_manifest(storage, name)["dropped"])


def rows_identity(trial: Trial, tokenizer: Any, digest: str | None) -> Identity:
    """What decides a trial's rows: its data, template and lengths, and a tokenizer with this `tokenizer_digest`.

    A tokenizer without a digest counts as its model. Whatever raises the version of `train` makes rows anew as well.
    """
    optimisation = trial.identity["optimisation"]
    own: Identity = {"model": trial.identity["model"]}
    if digest is not None:
        own = {"digest": digest, **_words(tokenizer, trial.optimisation.prompt)}
    return {
        "dataset": trial.identity["dataset"],
        "size": trial.identity["size"],
        "template": optimisation["template"],
        "max_length": optimisation["max_length"],
        "overlong_rows": trial.optimisation.overlong_rows,
        "tokenizer": own,
        "train": STAGE_VERSIONS["train"],
    }


def tokenizer_digest(tokenizer: Any) -> str | None:
    """16 hexadecimal digits that are the same for tokenizers that split texts alike; None for one in Python code.

    Truncation and padding are settings of the last call, and no part of it.
    """
    if not getattr(tokenizer, "is_fast", False):
        return None
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    split = {key: value for key, value in backend.items() if key not in ("truncation", "padding")}
    how = {"class": type(tokenizer).__name__, "split_special_tokens": tokenizer.split_special_tokens}
    return text_digest(canonical_json({"backend": split, **how}))


def _words(tokenizer: Any, template: Template) -> Identity:
    """What a tokenizer says under a template: its BOS and EOS, its chat template where that is used, and the special
    tokens that a chat template names. Others are left out: lm-eval sets the padding token when it first evaluates."""
    own = canonical_json(tokenizer.chat_template) if template.is_chat and template.file is None else ""
    source = template.file.read_text(encoding="utf-8") if template.is_chat and template.file is not None else own
    special = tokenizer.special_tokens_map.items()
    return {
        "special": {name: token for name, token in special if name in ("bos_token", "eos_token") or name in source},
        "chat_template": text_digest(own),
    }


def _save(rows: TokenisedRows, folder: Path) -> None:
    for array in _ARRAYS:
        np.save(_file(folder, array), getattr(rows, array))


def _mapped(folder: Path, array: str) -> np.ndarray:
    # A plain view of the mapping: slices of np.memmap itself take several times as long.
    return np.asarray(np.load(_file(folder, array), mmap_mode="r"))


def _file(folder: Path, array: str) -> Path:
    return folder / f"{array}.npy"
