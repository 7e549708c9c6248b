"""The weight change of a checkpoint on disk, from two folders: a whole model beside its base, or an adapter of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from raysft.models.layers import layer_count, place_of
from raysft.probes.weights.adapters import Adapter, adapter_updates, embedding_adapter
from raysft.probes.weights.dense_update import dense_update, frobenius_norm
from raysft.probes.weights.files import FileRows, MappedFile, ModelFolder, read_json, tensors_of
from raysft.probes.weights.measures import Measured, WeightsError, weight_change_table
from raysft.probes.weights.rows import Rows, Weights, layouts_of

ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
CPU = torch.device("cpu")
_RESIZED = ("embedding", "output")
# Initialisations of peft that take what the matrices start from out of the base.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.default)?(?:\.weight)?"
)


def weight_change_of_folders(
    base: Path,
    checkpoint: Path,
    device: torch.device = CPU,
    base_dtype: torch.dtype | None = None,
    norms_only: bool = False,
) -> pa.Table:
    """Change of every tensor of a checkpoint's folder from its base's, a table of `schema.WEIGHT_CHANGE`.

    A full checkpoint is streamed beside the base; of a folder with an adapter_config.json the matrices are read, and
    of the base what they adapt. Where a vocabulary was resized the rows that both have are compared.
    `base_dtype`: what the base's weights were turned into before they were trained, None for that of its files.

    Raises:
        WeightsError: a folder is not whole, the checkpoint is of another base, or a weight is not finite.
    """
    original = ModelFolder(base, base_dtype)
    try:
        if (checkpoint / ADAPTER_CONFIG).is_file():
            measured = list(_adapter_changes(original, checkpoint, device))
        else:
            measured = list(_full_changes(original, ModelFolder(checkpoint), device, norms_only))
    finally:
        original.close()
    if not any(one.parameters for one in measured):
        raise WeightsError(f"{checkpoint}: holds no weights to compare with those of {base}")
    return weight_change_table(measured, layer_count(original.weights), original.architecture.family)


def _full_changes(base: ModelFolder, tuned: ModelFolder, device: torch.device, norms_only: bool) -> Iterator[Measured]:
    ours, theirs = _with_outputs(base, tuned)
    for one, other, whose in ((ours, theirs, tuned), (theirs, ours, base)):
        lacking = sorted(one.keys() - other.keys())
        if lacking:
            of = base if whose is tuned else tuned
            raise WeightsError(
                f"{tuned.folder}: its base is another model than {base.folder}: {whose.folder} lacks {len(lacking)} of "
                f"the {len(one)} tensors of {of.folder}, {lacking[0]} first"
            )
    for name, rows in theirs.items():
        _check_shapes(name, ours[name], rows, base.folder, tuned.folder)
    for name, rows in theirs.items():
        yield dense_update(name, ours[name], rows, device, norms_only=norms_only)
    tuned.close()


def _with_outputs(base: ModelFolder, tuned: ModelFolder) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """The weights of both: without an output layer that is the embedding in both, and with it where one has its own."""
    ours: dict[str, Rows] = dict(base.weights)
    theirs: dict[str, Rows] = dict(tuned.weights)
    name = base.output or tuned.output
    if name is None:
        return ours, theirs
    for folder, weights in ((base, ours), (tuned, theirs)):
        if base.is_tied and tuned.is_tied:
            weights.pop(name, None)
        elif folder.is_tied and folder.embedding is not None:
            weights[name] = folder.weights[folder.embedding]
    return ours, theirs


def _check_shapes(name: str, base: Rows, tuned: Rows, base_folder: Path, tuned_folder: Path) -> None:
    """WeightsError unless the shapes are equal, or only the rows of a vocabulary differ."""
    resized = place_of(name, 1).module in _RESIZED and base.shape[1] == tuned.shape[1]
    if base.shape != tuned.shape and not resized:
        raise WeightsError(
            f"{tuned_folder}: its base is another model than {base_folder}: {name} is {_sizes(tuned)} here and "
            f"{_sizes(base)} there"
        )


def _sizes(rows: Rows) -> str:
    return " x ".join(map(str, rows.shape))


def _adapter_changes(base: ModelFolder, checkpoint: Path, device: torch.device) -> Iterator[Measured]:
    config = _lora_config(checkpoint / ADAPTER_CONFIG)
    path, mapped = checkpoint / ADAPTER_FILE, MappedFile()
    found = tensors_of(path)
    factors: dict[str, dict[str, torch.Tensor]] = {}
    whole: dict[str, FileRows] = {}
    for name, (sizes, dtype) in found.items():
        if ".base_layer." in name:
            continue  # the base's own weight, which peft saves beside the matrices of an embedding or output layer
        match = _FACTOR.fullmatch(name)
        if match:
            factors.setdefault(match["module"], {})[match["kind"]] = mapped.tensor(path, name, 0)
        else:
            saved = name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".")
            layouts = layouts_of(saved, sizes, base.architecture)
            whole.update({part: FileRows(mapped, path, name, layout, dtype) for part, layout in layouts.items()})
    adapters = [
        part
        for module, own in factors.items()
        for part in _adapter(module, own, config, checkpoint).parts(base.architecture)
    ]
    for adapter in adapters:
        _check_adapter(adapter, base, checkpoint)
    for name, rows in whole.items():
        if name not in base.weights:
            raise WeightsError(f"{checkpoint}: holds {name}, which the base {base.folder} does not have")
        _check_shapes(name, base.weights[name], rows, base.folder, checkpoint)
    yield from adapter_updates(base.weights, adapters, lambda name: _base_norm(base.weights, name, device), device)
    for name, rows in whole.items():
        yield dense_update(name, base.weights[name], rows, device)
    mapped.close()


def _lora_config(path: Path) -> dict[str, Any]:
    """The configuration of an adapter. WeightsError unless its matrices are all that it changes of the base."""
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise WeightsError(f"{path}: peft_type is {config.get('peft_type')!r}; valid: 'LORA'")
    start = str(config.get("init_lora_weights", "")).lower()
    changing = f"init_lora_weights {start}" if start.startswith(_CHANGES_BASE) else None
    changing = "kasa_config" if config.get("kasa_config") else changing
    if changing:
        raise WeightsError(f"{path}: {changing} changes the base itself; merge it, and compare the merged model")
    return config


def _base_norm(weights: Weights, name: str, device: torch.device) -> float:
    return frobenius_norm(name, weights[name], device)


def _adapter(module: str, own: Mapping[str, torch.Tensor], config: Mapping[str, Any], folder: Path) -> Adapter:
    """The adapter of one module. WeightsError if a matrix is missing, or DoRA adapts an embedding."""
    pairs = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
    pair = next((pair for pair in pairs if set(pair) & own.keys()), pairs[0])
    lacking = [kind for kind in pair if kind not in own]
    if lacking:
        raise WeightsError(f"{folder / ADAPTER_FILE}: holds no {lacking[0]} of {module}")
    a, b = (own[kind] for kind in pair)
    magnitude = own.get("lora_magnitude_vector")
    path = module.removeprefix("base_model.model.")
    scaling = _scaling(path, a.shape[0], config)
    if pair[0] == "lora_embedding_A":
        return embedding_adapter(f"{path}.weight", a, b, scaling, magnitude is not None)
    return Adapter(f"{path}.weight", a, b, scaling, magnitude)


def _scaling(path: str, rank: int, config: Mapping[str, Any]) -> float:
    """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (Kalajdzievski 2023)."""
    patterns = config.get("alpha_pattern") or {}
    own = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", path))
    alpha = float(next(own, config.get("lora_alpha", rank)))
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _check_adapter(adapter: Adapter, base: ModelFolder, folder: Path) -> None:
    rows = base.weights.get(adapter.name)
    if rows is None:
        raise WeightsError(f"{folder}: adapts {adapter.name}, which the base {base.folder} does not have")
    sizes = (len(adapter.b), adapter.a.shape[1])
    if sizes != rows.shape:
        raise WeightsError(
            f"{folder}: its base is another model than {base.folder}: {adapter.name} is "
            f"{' x '.join(map(str, sizes))} here and {_sizes(rows)} there"
        )
