"""How a method changes the base: which parameters train, where the adapters sit, what a checkpoint holds.

A trial gets a `Tuned` from `apply_method`, trains `Tuned.model`, and calls `detach` at the end, so that the base model
is whole again for the next trial.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers.modeling_layers import GradientCheckpointingLayer

from raysft.models.layers import layer_count, layer_index
from raysft.models.load import Base
from raysft.models.noise import RowDropout, RowNoise, add_neftune
from raysft.models.packing import pack_attention
from raysft.spec.shape import layers_within
from raysft.spec.sweep import MethodSpec

ADAPTER_FILE = "adapter_model.safetensors"


@dataclass
class Tuned:
    """A base with a method applied. `model` is what trains: the base itself, or peft's wrapper of it."""

    base: Base
    method: MethodSpec
    model: Any
    noise: RowNoise | None = None
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Named parameters that have a gradient."""
        return [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    @contextmanager
    def plain(self) -> Iterator[Any]:
        """The tuned model as a plain `transformers` model, LoRA merged; afterwards the base weights are exact again.

        peft's own unmerging subtracts what it added, which rounds; the original weights are copied back instead.
        """
        was_training = self.model.training
        self.model.eval()
        if self.method.kind == "full":
            yield self.model
        else:
            self.model.merge_adapter()
            try:
                yield self.base.model
            finally:
                self.model.unmerge_adapter()
                self._restore_adapted_weights()
        self.model.train(was_training)

    def _restore_adapted_weights(self) -> None:
        with torch.no_grad():
            for name, module in self.lora_modules():
                module.get_base_layer().weight.copy_(self.base.original[f"{name}.weight"])

    def lora_modules(self) -> list[tuple[str, Any]]:
        """(name in the base model, peft layer) of every adapted module."""
        prefix = "base_model.model."
        return [
            (name.removeprefix(prefix), module)
            for name, module in self.model.named_modules()
            if hasattr(module, "lora_A") and hasattr(module, "get_base_layer")
        ]

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write the checkpoint's weights: the whole model, or the adapter alone; `weights` if they are elsewhere."""
        self.model.save_pretrained(folder, safe_serialization=True, state_dict=weights)

    def load(self, folder: Path) -> None:
        """Take over the weights that `save` wrote."""
        if self.method.kind == "lora":
            set_peft_model_state_dict(self.model, load_file(folder / ADAPTER_FILE))
            return
        saved: dict[str, torch.Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            if not file.name.startswith("trainer"):
                saved.update(load_file(file))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(saved[name])

    def on_detach(self, undo: Callable[[], None]) -> None:
        """Have `undo` called when the method is taken off."""
        self._undo.append(undo)

    def detach(self) -> None:
        """Take the method off again: adapters removed, original weights back."""
        while self._undo:
            self._undo.pop()()
        if self.method.kind == "lora":
            self.base.model = self.model.unload()
        self.base.restore()


def apply_method(base: Base, method: MethodSpec, seed: int) -> Tuned:
    """Apply `method` to the base with its original weights; LoRA matrices are drawn after seeding with `seed`.

    ValueError if the method does not fit the model.
    """
    model = base.restore()
    chosen = layers_within(method.depth, layer_count(base.original))
    tuned = _full(base, method, chosen) if method.kind == "full" else _lora(base, method, chosen, seed)
    if method.neftune_alpha > 0:
        tuned.noise = tuned.noise or RowNoise()
        handle = add_neftune(model.get_input_embeddings(), method.neftune_alpha, tuned.noise)
        tuned.on_detach(handle.remove)
    return tuned


def prepare(tuned: Tuned, activation_checkpointing: bool, compiled: bool, packed: bool) -> None:
    """Turn on what changes the speed and memory of training, and no numbers, until `detach`.

    Layers are compiled one by one: all of a model have one graph, and what is around them stays free to change.
    """
    model = tuned.base.model
    if packed:
        tuned.on_detach(pack_attention(model))
    if activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        tuned.on_detach(model.gradient_checkpointing_disable)
    if compiled:
        for layer in [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
            layer.compile(dynamic=True)
            tuned.on_detach(partial(setattr, layer, "_compiled_call_impl", None))


def packs(
    base: Base, wanted: Literal["auto", "on", "off"], dtype: str, device: torch.device, compiled: bool = False
) -> bool:
    """Whether to train on packed rows, by `training.packing`. ValueError if it is on and the base cannot be packed."""
    # Attention row by row pays on a CPU, where kernels are short, unless each number of rows is compiled anew.
    pays = dtype != "float32" if device.type == "cuda" else device.type == "cpu" and not compiled
    if wanted == "off" or (wanted == "auto" and not pays):
        return False
    if wanted == "on" and base.why_not_packed:
        raise ValueError(f"training.packing: on, but {base.why_not_packed}; use auto or off")
    return base.why_not_packed is None


def _full(base: Base, method: MethodSpec, layers: list[int]) -> Tuned:
    for name, parameter in base.model.named_parameters():
        trains = method.depth is None or layer_index(name) in layers
        parameter.requires_grad_(trains)
    if method.freeze_embeddings:
        base.model.get_input_embeddings().weight.requires_grad_(False)
    base.changed.update(name for name, parameter in base.model.named_parameters() if parameter.requires_grad)
    return Tuned(base, method, base.model)


def _lora(base: Base, method: MethodSpec, layers: list[int], seed: int) -> Tuned:
    torch.manual_seed(seed)
    tied = _tied(base.model)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=_targets(base.model, method, layers),
        use_rslora=method.rslora,
        use_dora=method.dora,
        init_lora_weights=True if method.init == "kaiming" else method.init,
    )
    try:
        tuned = Tuned(base, method, get_peft_model(base.model, config))
    except ValueError as error:
        raise ValueError(f"methods.{method.name}.targets: {' '.join(str(error).split())}") from error
    shared = [name for name, _ in tuned.lora_modules() if f"{name}.weight" in tied]
    if shared:
        tuned.detach()
        raise ValueError(
            f"methods.{method.name}.targets: {shared[0]} has the weight of {tied[f'{shared[0]}.weight']} too in this "
            "base, and merged they would both change; valid are modules whose weight is their own"
        )
    if method.dropout > 0:
        tuned.noise = RowNoise()
        for name, module in tuned.lora_modules():
            module.lora_dropout["default"] = RowDropout(method.dropout, tuned.noise, name)
    return tuned


def _tied(model: Any) -> dict[str, str]:
    """Parameter -> another module that has the very same one, such as the embeddings and a tied output layer."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied: dict[str, str] = {}
    for first, *others in names.values():
        for other in others:
            tied |= {first: other.removesuffix(".weight"), other: first.removesuffix(".weight")}
    return tied


def _targets(model: Any, method: MethodSpec, layers: list[int]) -> str | list[str]:
    """What peft adapts: the method's own targets, or, within a depth range, the full names of the modules there."""
    if method.depth is None:
        return method.targets if isinstance(method.targets, str) else list(method.targets)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and layer_index(f"{name}.") in layers
        and (method.targets == "all-linear" or name.rsplit(".", 1)[-1] in method.targets)
    ]
    if not names:
        raise ValueError(f"methods.{method.name}.targets: nothing named {method.targets} in layers {layers}")
    return names
