"""The FLOP model: how much a work computes, from its model's sizes and its data's, before anything is measured.

A forward pass takes 2 FLOP for each parameter and token, a backward pass as much for the activations and again for the
weights that train (Kaplan et al. 2020, section 2.1; attention over the length of a row is left out). So training takes
6 N a token, LoRA little more than 4 N, evaluation and probes 2 N.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raysft.spec.datasets import DatasetSpec
from raysft.spec.shape import ModelShape
from raysft.spec.size import adapted, shape_of, trainable_parameters, trained_layers
from raysft.spec.suites import split_shots
from raysft.spec.sweep import MethodSpec, ModelSpec, Sweep
from raysft.spec.units import SHIPPED_TEXTS, Work, text_count

TRAINING = frozenset({"pretrain", "train", "divergence"})

_TOKEN_BYTES = 4  # of plain text, for files whose rows are not counted
_SKILL_TEXTS = 1000  # generated statements of the likelihood probe, a short sentence each
_SKILL_TOKENS = 16


@dataclass(frozen=True)
class Load:
    """What a work computes. `amount` does not depend on the model: tokens, or pairs of texts for an intrinsic
    dimension; None if the data do not tell. `flops` is None if the model's sizes do not tell either; `unknown` says
    which field would."""

    amount: float | None
    flops: float | None
    unknown: str = ""


class FlopModel:
    """Loads of a sweep's works."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._shapes = {model.name: _shape_if_here(model) for model in sweep.models}

    def load(self, work: Work, max_length: int | None = None) -> Load:
        """What a work computes; `max_length` is that of the trial it belongs to, the sweep's own if it has none."""
        length = max_length or self.sweep.training.max_length
        amount, shape = self._amount(work, length), self._shapes[work.subject.model]
        if shape is None:
            return Load(amount, None, f"models.{work.subject.model}.shape")
        if amount is None:
            return Load(None, None, f"datasets.{work.subject.dataset}.rows")
        recomputes = self.sweep.training.activation_checkpointing
        method = None if work.subject.method is None else self.sweep.method(work.subject.method)
        return Load(amount, amount * flops_per_token(work.stage, shape, method, recomputes))

    def _amount(self, work: Work, length: int) -> float | None:
        """Tokens of a work, over all its epochs; weights that are compared count as one."""
        sweep, assumed, subject = self.sweep, self.sweep.resources.assumed, work.subject
        row = min(assumed.row_tokens, length)
        if work.stage == "train":
            tokens = self._dataset_tokens(sweep.dataset(subject.dataset or ""), subject.size, row)
            return None if tokens is None else tokens * (subject.epochs or 1)
        if work.stage == "pretrain":
            recipe = sweep.model(subject.model).micro
            return 0.0 if recipe is None else float(recipe.steps * recipe.batch_size * recipe.sequence_length)
        if work.stage == "evaluate":
            name = work.about or ""
            items = assumed.items.get(name, assumed.items.get(split_shots(name)[0], assumed.task_items))
            return float(min(items, sweep.evaluation.limit or items) * assumed.item_tokens)
        if work.stage in ("text_statistics", "sentence_similarity"):
            return 0.0
        if work.stage in ("perplexity", "similarity"):
            return self._property_tokens(work, row)
        if work.stage == "log_likelihood":
            return self._likelihood_tokens()
        if work.stage in ("embed", "neighbours", "intrinsic_dimension"):
            texts = text_count(sweep, work.about or "", subject.size)
            pairs = 0.0 if work.stage == "neighbours" else float(texts**2)  # which come with the estimates
            return float(texts * row) if work.stage == "embed" else pairs
        return 1.0

    def _property_tokens(self, work: Work, row: int) -> float:
        """Tokens of a work's share: a dataset's pass is one for its perplexity and all its similarities, a benchmark's
        one for the similarities of all datasets."""
        probe = self.sweep.probes.perplexity
        tokens = float(row * (1 if probe is None else probe.rows))
        shared = tokens / (1 + len(self.sweep.evaluation.tasks))
        return shared if work.stage == "perplexity" else shared + tokens / len(self.sweep.datasets)

    def _likelihood_tokens(self) -> float:
        probe = self.sweep.probes.log_likelihood
        if probe is None or probe.texts == "skills":
            return float(_SKILL_TEXTS * _SKILL_TOKENS)
        return _size(SHIPPED_TEXTS if probe.texts == "shipped" else Path(probe.texts)) / _TOKEN_BYTES

    def _dataset_tokens(self, dataset: DatasetSpec, size: int | None, row: int) -> float | None:
        """Tokens of an epoch. A file of rows that nobody counted is taken as text, four bytes a token."""
        if dataset.mixture is not None:
            parts = [self._dataset_tokens(self.sweep.dataset(name), size, row) for name in dataset.mixture.members]
            known = [part for part in parts if part is not None]
            return sum(known) if len(known) == len(parts) else None
        rows = dataset.generated.rows if dataset.generated is not None else dataset.rows
        if size is not None or rows is not None:
            return float(row * min(count for count in (size, rows) if count is not None))
        return _size(dataset.path) / _TOKEN_BYTES if dataset.path is not None and dataset.path.is_file() else None


def _shape_if_here(model: ModelSpec) -> ModelShape | None:
    """Sizes of a model; None as well for a folder that is on another machine, where the sweep runs."""
    if model.path is not None and not model.path.is_dir():
        return model.shape
    return shape_of(model)


def flops_per_token(stage: str, shape: ModelShape, method: MethodSpec | None, recomputes: bool = False) -> float:
    """FLOP of a stage for each unit of its amount; `recomputes`: activation checkpointing, a second forward pass."""
    parameters = shape.parameter_count()
    if stage == "train" and method is not None:
        return training_flops(shape, method, recomputes)
    if stage in TRAINING:
        return 6.0 * parameters
    if stage in ("neighbours", "intrinsic_dimension"):
        return 1.0 * shape.hidden * (shape.layers + 1)  # each product is of two texts, and used for both
    return 2.0 * parameters


def training_flops(shape: ModelShape, method: MethodSpec, recomputes: bool = False) -> float:
    """FLOP of a training step for each token: forward; back through the layers from the lowest that trains, which
    activation checkpointing runs forward once more; and the gradients of what trains.

    6 N where the whole model trains. A LoRA's own matrices are run through besides the model's. SpecError for a depth
    range without a layer.
    """
    trained = trainable_parameters(shape, method)
    run = shape.parameter_count() + (trained if method.kind == "lora" else 0)
    through = run * _share_behind(shape, method)
    return 2.0 * run + (4.0 if recomputes else 2.0) * through + 2.0 * trained


def _share_behind(shape: ModelShape, method: MethodSpec) -> float:
    """Share of the layers that a backward pass goes through."""
    if method.kind == "full":
        lowest = 0 if method.depth is None else trained_layers(shape, method)[0]
    else:
        lowest = min((layer for layer, _ in adapted(shape, method) if layer is not None), default=0)
    return (shape.layers - lowest) / shape.layers


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
