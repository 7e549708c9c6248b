"""Base models: loaded once in a process, handed out with their original weights as often as asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from raysft.models.packing import why_not_packed
from raysft.spec.plan import model_key
from raysft.spec.sweep import ModelSpec, SpecError
from raysft.store.checkpoints import local_folder
from raysft.store.layout import Storage, StorageError, model_folder, one_line


@dataclass
class Base:
    """A base model in memory with its tokenizer and its original weights, by parameter name.

    `changed` names the parameters that something may have written to: whoever trains a parameter says so here.
    `norms` keeps Frobenius norms of the original tensors, by canonical name, for whoever needs them again.
    """

    key: str
    model: Any
    tokenizer: Any
    original: dict[str, torch.Tensor] = field(repr=False)
    changed: set[str] = field(default_factory=set, repr=False)
    norms: dict[str, float] = field(default_factory=dict, repr=False)

    def restore(self) -> Any:
        """The model with its original weights, all parameters trainable, in evaluation mode."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in self.changed:
                    parameter.copy_(self.original[name])
                parameter.requires_grad_(True)
                parameter.grad = None
        self.changed.clear()
        self.model.eval()
        return self.model

    @cached_property
    def why_not_packed(self) -> str | None:
        """Why its rows cannot be packed; None if they can."""
        return why_not_packed(self.model)


class BaseCache:
    """Holds the one base model that this process used last: trials of one base run next to each other."""

    def __init__(self) -> None:
        self._base: Base | None = None

    def get(self, storage: Storage, model: ModelSpec, dtype: str, device: torch.device) -> Base:
        """The base, loaded if it is not the one in memory."""
        key = f"{model_key(model)}:{dtype}:{device}"
        if self._base is None or self._base.key != key:
            self._base = None  # frees the old one before the new one needs its memory
            self._base = load_base(storage, model, dtype, device, key)
        return self._base

    def drop(self) -> None:
        """Forget the base, after a failure that may have left it in any state."""
        self._base = None


def load_base(storage: Storage, model: ModelSpec, dtype: str, device: torch.device, key: str) -> Base:
    """Load a base model from its local folder, the hub, or the storage where the project pretrained it."""
    source, revision = model_source(storage, model)
    loaded, tokenizer = load_folder(source, dtype, revision, model.trust_remote_code, f"models.{model.name}")
    original = _original_weights(loaded, Path(source))
    loaded.to(device).eval()
    return Base(key, loaded, tokenizer, original)


def _original_weights(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a model on the CPU as they were loaded, by parameter name.

    Where a file of `folder` holds the very tensor, it is a view of that file, mapped into memory: the processes of a
    node then share one copy. Otherwise (a hub name, another dtype, weights that `transformers` renamed or fused) it is
    a copy.
    """
    mapped: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        mapped.update(load_file(file))
    original = {}
    for name, parameter in model.named_parameters():
        stored = mapped.get(name)
        same = stored is not None and stored.dtype == parameter.dtype and torch.equal(stored, parameter)
        original[name] = stored if stored is not None and same else parameter.detach().clone()
    return original


def model_source(storage: Storage, model: ModelSpec) -> tuple[str, str | None]:
    """(folder or hub name, revision) that `transformers` can load."""
    if model.micro is not None:
        try:
            return str(local_folder(storage, model_folder(model_key(model)))), None
        except StorageError as error:
            raise SpecError(f"models.{model.name}: not pretrained yet ({error})") from error
    if model.path is not None:
        return str(model.path), None
    assert model.hub is not None
    return model.hub, model.revision


def model_shape(storage: Storage, model: ModelSpec) -> tuple[int, int]:
    """(layers + 1, width) of a base model's hidden states, from its configuration alone."""
    source, revision = model_source(storage, model)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise SpecError(f"models.{model.name}: {source} has no readable configuration ({_why(error)})") from error
    text = config.get_text_config()
    return text.num_hidden_layers + 1, text.hidden_size


def load_folder(
    source: str, dtype: str, revision: str | None = None, trust_remote_code: bool = False, where: str = "model"
) -> tuple[Any, Any]:
    """(model, tokenizer) of a folder or hub name, on the CPU; only safetensors are read, and no code in it is run
    unless `trust_remote_code`. SpecError, starting with `where`, for what cannot be loaded so."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise SpecError(f"{where}: {source} cannot be loaded ({_why(error)})") from error
    return model, tokenizer


def _why(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "it comes with code of its own, which is run only where its entry says trust_remote_code: true"
    return one_line(error)


def pad_id(tokenizer: Any) -> int:
    """Token id to pad with; any will do, since padding is masked and never supervised."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
