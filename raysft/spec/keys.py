"""Content keys: hashes of what a result means, never of where or how it runs.

An identity is JSON-able data. Two things with equal identities have equal numbers, up to what the hardware rounds.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysft.spec.datasets import DatasetSpec
from raysft.spec.digests import digest_of
from raysft.spec.mistakes import shown
from raysft.spec.probes import SentenceModel
from raysft.spec.sweep import ModelSpec, SpecError, Sweep

Identity = dict[str, Any]

# Raised by hand when the meaning of a stage changes: results of the old meaning are then no longer found.
STAGE_VERSIONS: dict[str, int] = {
    "pretrain": 1,
    "tokenise": 1,
    "train": 2,
    "divergence": 1,
    "evaluate": 2,
    "perplexity": 2,
    "similarity": 2,
    "text_statistics": 1,
    "sentence_similarity": 1,
    "weight_change": 2,
    "embed": 2,
    "neighbours": 1,
    "intrinsic_dimension": 3,
    "log_likelihood": 3,
    "contamination": 1,
}
# Raised when raysft/corpus/skills.py generates other text for the same request.
GENERATED_TEXT_VERSION = 1

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


class Part(Identity):
    """An identity that is in those of many results, and is written once for all of them; it is not changed later."""

    @functools.cached_property
    def text(self) -> str:
        """It as `canonical_json`."""
        return _object(self)


_LARGE = 64 << 20  # bytes; smaller files are hashed quicker than looked up
_MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


def key_of(stage: str, identity: Mapping[str, Any]) -> str:
    """20 hexadecimal digits that name the result of `stage` for `identity`."""
    content = f'{{"identity":{canonical_json(identity)},"stage":"{stage}","version":{STAGE_VERSIONS[stage]}}}'
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def canonical_json(content: Any) -> str:
    """One text for one content: sorted keys, no spaces, shortest float that reads back equal, no NaN."""
    if isinstance(content, Part):
        return content.text
    if isinstance(content, dict):
        return _object(content)
    return str(content) if type(content) is int else _ENCODER.encode(content)


def _object(content: Identity) -> str:
    return "{" + ",".join([_name(name) + canonical_json(content[name]) for name in sorted(content)]) + "}"


@functools.cache
def _name(name: str) -> str:
    return f"{_ENCODER.encode(name)}:"


def model_identity(model: ModelSpec) -> Identity:
    """What the base model is: its files' digest, its hub revision, or its recipe."""
    if model.micro is not None:
        recipe = model.micro.model_dump(mode="json", exclude={"texts"})
        texts = [file_digest(Path(text), f"models.{model.name}.micro.texts") for text in model.micro.texts]
        return {"micro": recipe, "texts": texts, "generated_text": GENERATED_TEXT_VERSION if model.micro.corpus else 0}
    if model.path is not None:
        return {"folder": folder_digest(model.path, f"models.{model.name}.path")}
    return {"hub": model.hub, "revision": model.revision}


def sentence_model_identity(model: SentenceModel) -> Identity:
    """What a sentence-embedding model is: its files' digest, or its hub revision."""
    if model.path is not None:
        return {"folder": folder_digest(model.path, "probes.perplexity.sentence_model.path")}
    return {"hub": model.hub, "revision": model.revision}


def dataset_identity(sweep: Sweep, dataset: DatasetSpec) -> Identity:
    """What the dataset is, whatever its name and wherever its file lies."""
    if dataset.mixture is not None:
        return {"mixture": [dataset_identity(sweep, sweep.dataset(name)) for name in dataset.mixture.members]}
    if dataset.generated is not None:
        return {"generated": dataset.generated.model_dump(mode="json"), "version": GENERATED_TEXT_VERSION}
    selection: Identity = {
        "columns": dataset.columns.model_dump(mode="json"),
        "where": {column: sorted(values) for column, values in dataset.where.items()},
        "incomplete_rows": dataset.incomplete_rows,
    }
    if dataset.turns != "first":
        selection["turns"] = dataset.turns
    if dataset.path is not None:
        return {"file": file_digest(dataset.path, f"datasets.{dataset.name}.path"), **selection}
    source = {"hub": dataset.hub, "revision": dataset.revision, "subset": dataset.subset, "split": dataset.split}
    return {**source, **selection}


def folder_digest(folder: Path, where: str) -> str:
    """Digest of a model folder: names and contents of its weights, configuration and tokenizer files."""
    return digest_of(str(folder), lambda: _folder_digest(folder, where))


def _folder_digest(folder: Path, where: str) -> str:
    with _reading(folder, where):
        if not folder.is_dir():
            raise SpecError(f"{where}: no folder {shown(folder)}")
        files = sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)})
        if not (folder / "config.json").is_file():
            raise SpecError(f"{where}: {shown(folder)} holds no config.json, so it is not a model folder")
        if not any(path.suffix == ".safetensors" for path in files):
            raise SpecError(f"{where}: {shown(folder)} holds no .safetensors file; pickled weights are not read")
    contents = {path.name: _file_digest(path, where) for path in files if path.name != "manifest.json"}
    return hashlib.sha256(canonical_json(contents).encode()).hexdigest()


def text_digest(text: str) -> str:
    """Short digest of a text, for identities and for matching items between results."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path, where: str) -> str:
    """SHA-256 of a file's content; SpecError, starting with `where`, if there is no such file."""
    return digest_of(str(path), lambda: _file_digest(path, where))


def _file_digest(path: Path, where: str) -> str:
    with _reading(path, where):
        if not path.is_file():
            raise SpecError(f"{where}: no file {shown(path)}")
        status = path.stat()
        return _remembered_digest(str(path), status.st_size, status.st_mtime_ns)


@contextmanager
def _reading(path: Path, where: str) -> Iterator[None]:
    """SpecError for what the file system says against it: no permission, a name that is too long."""
    try:
        yield
    except OSError as error:
        raise SpecError(f"{where}: {shown(error.filename or path)} cannot be read ({error.strerror})") from error


@functools.cache
def _remembered_digest(path: str, size: int, modified_ns: int) -> str:
    """SHA-256 of a file; large files are remembered by path, size and time of change, since weights take minutes."""
    remembered = _digest_cache() / hashlib.sha256(f"{path}\0{size}\0{modified_ns}".encode()).hexdigest()
    if size > _LARGE and remembered.is_file():
        return remembered.read_text()
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if size > _LARGE:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        whole = remembered.with_suffix(f".{os.getpid()}")  # renamed when written: nobody reads half a digest
        whole.write_text(digest.hexdigest())
        whole.rename(remembered)
    return digest.hexdigest()


def _digest_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "raysft" / "digests"
