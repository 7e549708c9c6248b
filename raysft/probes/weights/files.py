"""Model folders on disk, read shard by shard and block by block; nothing of a model is ever in memory as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from raysft.models.layers import architecture_of, place_of
from raysft.probes.weights.measures import WeightsError
from raysft.probes.weights.rows import Layout, layouts_of
from raysft.spec.shape import FAMILIES
from raysft.store.layout import one_line

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SCALE = re.compile(r"(?:.*[._])?weight_scale(?:_inv)?")  # what quantised weights are to be multiplied by
_MAPPED = 32 << 20  # bytes read of a file until it is mapped anew, so that the pages read so far are let go
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def tensors_of(path: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name -> (sizes, dtype) of everything in a safetensors file that is a weight.

    WeightsError for a damaged file, and for one of quantised weights, which mean nothing without their scales.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118  it is no mapping
            found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({one_line(error)})") from error
    scale = next((name for name in found if _SCALE.fullmatch(name)), None)
    if scale is not None:
        raise WeightsError(f"{path}: holds {scale}, so its weights are quantised; save them dequantised first")
    return {name: (sizes, _DTYPES[dtype]) for name, (sizes, dtype) in found.items() if dtype in _DTYPES}


@dataclass
class MappedFile:
    """The one file of a folder that is mapped into memory, at any time."""

    _path: Path | None = None
    _handle: Any = field(default=None, repr=False)
    _read: int = 0

    def tensor(self, path: Path, name: str, used: int) -> torch.Tensor:
        """The tensor `name` of a file, not yet read; `used` bytes of it are about to be."""
        if self._path != path or self._read > _MAPPED:
            self.close()
            self._path, self._handle = path, safe_open(path, framework="pt")
        self._read += used
        return self._handle.get_tensor(name)

    def close(self) -> None:
        """Let go of the file."""
        self._path, self._handle, self._read = None, None, 0


@dataclass(frozen=True)
class FileRows:
    """Rows of a tensor in a file, read in `dtype`."""

    mapped: MappedFile
    path: Path
    name: str
    layout: Layout
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        return self.layout.shape

    @property
    def is_matrix(self) -> bool:
        return len(self.layout.sizes) == 2

    def read(self, low: int, high: int) -> torch.Tensor:
        used = (high - low) * self.shape[1] * self.dtype.itemsize
        return self.layout.rows(self.mapped.tensor(self.path, self.name, used), low, high).to(self.dtype)


class ModelFolder:
    """A folder of safetensors with a config.json: its weights by canonical name, in `weights`.

    They are read in `dtype`, where that is given, or else in that of the files.
    WeightsError for a folder without weights, for a shard that its index names and that is not there, that is damaged
    or that holds quantised weights.
    """

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        self.folder = folder
        self.config = _config(folder)
        self.architecture = architecture_of(self.config)
        self._dtype = dtype
        self._mapped = MappedFile()
        self.weights = self._weights()

    def _weights(self) -> dict[str, FileRows]:
        listed = _index(self.folder)
        found: dict[str, FileRows] = {}
        for path in list(_shard_paths(self.folder)):
            here = tensors_of(path)
            lacking = [name for name, file in listed.items() if file == path.name and name not in here]
            if lacking:
                raise WeightsError(f"{path}: holds no {lacking[0]}, which {INDEX} says is there")
            for name, (sizes, dtype) in here.items():
                for part, layout in layouts_of(name, sizes, self.architecture).items():
                    if part in found:
                        raise WeightsError(f"{path}: {name} and {found[part].name} are both {part}")
                    found[part] = FileRows(self._mapped, path, name, layout, self._dtype or dtype)
        return found

    @cached_property
    def embedding(self) -> str | None:
        """Canonical name of the token embeddings; those of positions are others."""
        names = (name for name in self.weights if place_of(name, 1).module == "embedding")
        return next((name for name in names if not name.startswith(("wpe.", "embed_positions."))), None)

    @cached_property
    def output(self) -> str | None:
        """Canonical name of the output layer's matrix, if it is stored."""
        names = (name for name in self.weights if place_of(name, 1).module == "output" and name.endswith(".weight"))
        return next(names, None)

    @property
    def is_tied(self) -> bool:
        """Whether the output layer is the embedding. A configuration that does not say it means what its family does by
        default, or, of a family that is not known, that what is not stored is tied."""
        text = self.config.get("text_config")
        own = text.get("tie_word_embeddings") if isinstance(text, Mapping) else None
        said = self.config.get("tie_word_embeddings", own)
        if said is not None:
            return bool(said)
        family = FAMILIES.get(self.architecture.family)
        return self.output is None or (family is not None and family.tied)

    def close(self) -> None:
        """Let go of the files."""
        self._mapped.close()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file. WeightsError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not readable JSON ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected an object, found {type(content).__name__}")
    return content


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}


def _index(folder: Path) -> dict[str, str]:
    """Name -> file, of the folder's index; empty without one."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise WeightsError(f"{path}: expected a weight_map of names to files")
    return listed


def _shard_paths(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise WeightsError(f"{folder}: no such folder")
    files = sorted(set(_index(folder).values()))
    for file in files:
        if Path(file).name != file:
            raise WeightsError(f"{folder / INDEX}: names {file}, which is not in the folder itself")
        if not (folder / file).is_file():
            raise WeightsError(f"{folder / INDEX}: names {file}, which is not there")
        yield folder / file
    if not files:
        found = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("trainer"))
        # The one that `transformers` reads: a folder may hold the same weights again in another layout.
        found = [path for path in found if path.name == SINGLE] or found
        if not found:
            raise WeightsError(f"{folder}: holds no .safetensors file; pickled weights are not read")
        yield from found
