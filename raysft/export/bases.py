"""What an export takes of a base model: its tokenizer, and how an adapter names it.

A base from the hub is named, with its revision. One that the project pretrained, or that is a folder of this machine,
is exported beside its adapters, unless the user says what stands for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from raysft.export.mistakes import ExportError
from raysft.export.names import base_name
from raysft.spec.mistakes import shown
from raysft.spec.plan import model_key
from raysft.spec.sweep import ModelSpec, Sweep
from raysft.store.checkpoints import local_folder
from raysft.store.layout import Storage, model_folder, one_line

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
)
MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
CODE_FILES = ("*.py",)  # of models that come with code of their own

_REPOSITORY = re.compile(r"(?!\.)[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Named:
    """How an adapter names its base: `reference` for peft, and `repository` where that is one of the hub."""

    reference: str
    revision: str | None = None
    repository: str | None = None

    @property
    def is_beside(self) -> bool:
        """Whether it is an export beside the adapter."""
        return self.repository is None and self.reference.startswith("./")


class Bases:
    """The base models of a sweep. `given`: by name, what adapters name instead: `ORG/NAME[@REVISION]` or a path."""

    def __init__(self, sweep: Sweep, storage: Storage, given: Mapping[str, str], scratch: Path) -> None:
        self._sweep = sweep
        self._storage = storage
        self._given = {name: _named(reference) for name, reference in given.items()}
        self._scratch = scratch
        self._folders: dict[str, Path] = {}

    def named(self, model: str) -> Named:
        """How an adapter of this base names it."""
        spec = self._sweep.model(model)
        if model in self._given:
            return self._given[model]
        if spec.hub is not None:
            return Named(spec.hub, spec.revision, spec.hub)
        return Named(f"./{self.export_name(model)}")

    def is_exported(self, model: str) -> bool:
        """Whether adapters of this base need it beside them."""
        return model not in self._given and self._sweep.model(model).hub is None

    def export_name(self, model: str) -> str:
        """Name of the exported base."""
        return base_name(self._sweep.name, model, model_key(self._sweep.model(model)))

    def tokenizer_files(self, model: str) -> dict[str, Path]:
        """Name in the export -> file, of everything a tokenizer is loaded from.

        Raises:
            ExportError: they cannot be had.
        """
        spec = self._sweep.model(model)
        found = _matching(self._folder(spec), _tokenizer_files(spec))
        if not any(name.startswith("tokenizer") or name.endswith((".model", ".tiktoken")) for name in found):
            raise ExportError(f"models.{model}: no tokenizer beside it")
        return found

    def model_files(self, model: str) -> dict[str, Path]:
        """Name in the export -> file, of everything a base that is exported is loaded from."""
        spec = self._sweep.model(model)
        return _matching(self._folder(spec), (*MODEL_FILES, *_tokenizer_files(spec)))

    def _folder(self, spec: ModelSpec) -> Path:
        """A local folder with the base's files, found once; of one from the hub only its tokenizer's."""
        if spec.name not in self._folders:
            self._folders[spec.name] = self._found(spec)
        return self._folders[spec.name]

    def _found(self, spec: ModelSpec) -> Path:
        if spec.micro is not None:
            return local_folder(self._storage, model_folder(model_key(spec)), self._scratch)
        if spec.path is not None:
            if not spec.path.is_dir():
                raise ExportError(f"models.{spec.name}.path: no folder {shown(spec.path)} on this machine")
            return spec.path
        assert spec.hub is not None
        with _hub_errors(f"models.{spec.name}: the tokenizer of {spec.hub}"):
            return Path(
                snapshot_download(spec.hub, revision=spec.revision, allow_patterns=list(_tokenizer_files(spec)))
            )


def _tokenizer_files(spec: ModelSpec) -> tuple[str, ...]:
    return (*TOKENIZER_FILES, *(CODE_FILES if spec.trust_remote_code else ()))


def _named(reference: str) -> Named:
    repository, _, revision = reference.partition("@")
    if _REPOSITORY.fullmatch(repository) and not Path(reference).exists():
        return Named(repository, revision or None, repository)
    return Named(reference)


def _matching(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return {path.relative_to(folder).as_posix(): path for path in paths}


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """The hub's errors, which are OSErrors and ValueErrors, as one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ExportError(f"{what} cannot be had ({shown(one_line(error), 300)})") from error
