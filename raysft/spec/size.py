"""How much a method trains and what checkpoints take: exact counts from a base model's sizes, before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from raysft.spec.grid import Trial
from raysft.spec.shape import Matrix, ModelShape, folder_shape, layers_within, recipe_shape
from raysft.spec.sweep import Keep, MethodSpec, ModelSpec, SpecError, Sweep

GB = 1e9

POLICIES: tuple[Keep, ...] = ("measured", "last", "none")


@dataclass(frozen=True)
class Retention:
    """What a policy of `checkpoints.keep` leaves in the storage at the end, and what it needs before: numbers of
    checkpoints and bytes. `unknown` are the models without sizes, whose checkpoints are counted but not weighed."""

    keep: Keep
    checkpoints: int
    bytes: int
    bytes_meanwhile: int
    unknown: tuple[str, ...]


def shape_of(model: ModelSpec) -> ModelShape | None:
    """Sizes of a base model: those the sweep gives, or of its recipe, or of its local config.json; None if unknown."""
    if model.shape is not None:
        return model.shape
    if model.micro is not None:
        return recipe_shape(model.micro)
    if model.path is None:
        return None
    try:
        return folder_shape(model.path)
    except (OSError, ValueError) as error:
        where = f"models.{model.name}.path: {model.path / 'config.json'}"
        raise SpecError(f"{where}: cannot be read ({' '.join(str(error).split())})") from error


def trained_layers(shape: ModelShape, method: MethodSpec) -> list[int]:
    """Layers of the method's depth range; SpecError if the model has none there."""
    try:
        return layers_within(method.depth, shape.layers)
    except ValueError as error:
        raise SpecError(f"methods.{method.name}.depth: {error}") from error


def adapted(shape: ModelShape, method: MethodSpec) -> list[tuple[int | None, Matrix]]:
    """Modules that a LoRA adapts, each with its layer; None for the output layer and the embedding.

    peft's rules: `all-linear` is every linear module but the output layer; a name stands for every module whose full
    name is it or ends with it after a dot. Within a depth range only the linear modules of its layers count, and a
    name is the last part of a module's.
    """
    matrices = shape.layer_matrices()
    inside = [(layer, matrix) for layer in trained_layers(shape, method) for matrix in matrices]
    if method.targets == "all-linear":
        return [*inside]
    if method.depth is not None:
        return [(layer, matrix) for layer, matrix in inside if matrix.name.rsplit(".", 1)[-1] in method.targets]
    embedding = Matrix("model.embed_tokens", shape.vocabulary, shape.hidden)
    outside = [matrix for matrix in (embedding, shape.output_matrix()) if _is_target(matrix.name, method)]
    named = [(layer, matrix) for layer, matrix in inside if _is_target(f"model.layers.{layer}.{matrix.name}", method)]
    return [*named, *((None, matrix) for matrix in outside)]


def trainable_parameters(shape: ModelShape, method: MethodSpec) -> int:
    """Parameters that `method` trains: rank x (inputs + outputs) of each module under LoRA (Hu et al. 2021), and its
    outputs once more under DoRA (Liu et al. 2024); layers of the depth range, or the whole model, otherwise."""
    if method.kind == "lora":
        modules = [matrix for _, matrix in adapted(shape, method)]
        magnitudes = sum(matrix.outputs for matrix in modules) if method.dora else 0
        return method.rank * sum(matrix.inputs + matrix.outputs for matrix in modules) + magnitudes
    if method.depth is not None:
        return len(trained_layers(shape, method)) * shape.layer_parameters()
    return shape.parameter_count() - (shape.vocabulary * shape.hidden if method.freeze_embeddings else 0)


def weight_bytes(dtype: str) -> int:
    """Bytes of a weight of a base that trains with this `training.dtype`; bfloat16 alone keeps fp32 weights."""
    return 2 if dtype == "pure_bfloat16" else 4


def checkpoint_bytes(shape: ModelShape, method: MethodSpec, dtype: str = "float32") -> int:
    """Bytes of a checkpoint's tensors: the whole model as it is held, or the adapter alone, which is always in fp32.

    peft adds the base's own embedding or output layer where it is adapted. Headers and JSON add some kilobytes.
    """
    if method.kind == "full":
        return weight_bytes(dtype) * shape.parameter_count()
    beside = [matrix for layer, matrix in adapted(shape, method) if layer is None]
    base = weight_bytes(dtype) * sum(matrix.inputs * matrix.outputs for matrix in beside)
    return base + 4 * trainable_parameters(shape, method)


def kept_epochs(trial: Trial, keep: Keep) -> set[int]:
    """Epochs whose checkpoints are written. The last one always is: hidden states are taken from it after the trial."""
    return {*(trial.measured if keep == "measured" else ()), trial.epochs}


def retention(sweep: Sweep, trials: Iterable[Trial], keep: Keep) -> Retention:
    """What the trials' checkpoints take under a policy; `none` deletes them once everything about them is measured."""
    epochs: Counter[tuple[str, str, str]] = Counter()
    for trial in trials:
        epochs[trial.model, trial.method, trial.optimisation.dtype] += len(kept_epochs(trial, keep))
    total, unknown = 0, []
    for (model, method, dtype), count in epochs.items():
        shape = shape_of(sweep.model(model))
        if shape is not None:
            total += count * checkpoint_bytes(shape, sweep.method(method), dtype)
        elif model not in unknown:
            unknown.append(model)
    left = 0 if keep == "none" else 1
    return Retention(keep, left * sum(epochs.values()), left * total, total, tuple(unknown))


def decimal(count: float) -> str:
    """Bytes for people, in decimal units: 1.2 TB, 34 GB, 5.6 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _is_target(name: str, method: MethodSpec) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in method.targets)
