"""Base models: loaded once in a process, handed out with their original weights as often as asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from raysft.spec.plan import model_key
from raysft.spec.sweep import ModelSpec, SpecError
from raysft.store.checkpoints import local_folder
from raysft.store.layout import Storage, StorageError, model_folder, one_line


@dataclass
class Base:
    """A base model in memory with its tokenizer and a copy of its original weights, by parameter name."""

    key: str
    model: Any
    tokenizer: Any
    original: dict[str, torch.Tensor] = field(repr=False)

    def restore(self) -> Any:
        """The model with its original weights, all parameters trainable, in evaluation mode."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.original[name])
                parameter.requires_grad_(True)
                parameter.grad = None
        self.model.eval()
        return self.model


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
    loaded.to(device).eval()
    original = {name: parameter.detach().clone() for name, parameter in loaded.named_parameters()}
    return Base(key, loaded, tokenizer, original)


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
        raise SpecError(f"models.{model.name}: {source} has no readable configuration ({one_line(error)})") from error
    text = config.get_text_config()
    return text.num_hidden_layers + 1, text.hidden_size


def load_folder(
    source: str, dtype: str, revision: str | None = None, trust_remote_code: bool = False, where: str = "model"
) -> tuple[Any, Any]:
    """(model, tokenizer) of a folder or hub name, on the CPU; only safetensors are read."""
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
        raise SpecError(f"{where}: {source} cannot be loaded ({one_line(error)})") from error
    return model, tokenizer


def pad_id(tokenizer: Any) -> int:
    """Token id to pad with; any will do, since padding is masked and never supervised."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
