"""From the blocks of a sweep to its trials: full factorials, merged where they mean the same fine-tuning."""

from __future__ import annotations

import functools
import itertools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raysft.spec.blocks import Block, Schedule
from raysft.spec.datasets import DatasetSpec
from raysft.spec.keys import Identity, Part, dataset_identity, key_of, model_identity
from raysft.spec.sweep import (
    FULL_FIELDS,
    LORA_FIELDS,
    MethodSpec,
    SpecError,
    Sweep,
)
from raysft.spec.templates import Template
from raysft.spec.training import SPEED_ONLY, Override


@dataclass(frozen=True)
class Optimisation:
    """Everything about the optimiser that changes the numbers, but for the number of epochs."""

    learning_rate: float
    batch_size: int
    weight_decay: float
    warmup_steps: int
    max_length: int
    max_grad_norm: float
    schedule: Schedule
    dtype: str
    template: str
    chat_template: Path | None = None
    overlong_rows: Literal["refuse", "drop"] = "refuse"

    @property
    def prompt(self) -> Template:
        """The template of the training texts."""
        return Template(self.template, self.chat_template)

    @functools.cached_property
    def identity(self) -> Identity:
        """What of it is in keys: the template by its digest; what came after the first keys only where it is set."""
        fields = {**asdict(self), "template": self.prompt.digest}
        del fields["chat_template"]
        if self.overlong_rows == "refuse":
            del fields["overlong_rows"]
        return Part(fields)


@dataclass(frozen=True)
class Trial:
    """One fine-tuning. `key` names its trajectory; `measured` are the epochs whose checkpoints the sweep asks for."""

    key: str
    identity: Identity
    model: str
    dataset: str
    method: str
    size: int | None
    optimisation: Optimisation
    epochs: int
    seed: int
    measured: tuple[int, ...]
    blocks: tuple[str, ...]

    @property
    def train_identity(self) -> Identity:
        """Identity of the trial's training run: under a constant rate the trajectory does not say where it ends."""
        return self.identity if "epochs" in self.identity else {**self.identity, "epochs": self.epochs}


@dataclass(frozen=True)
class BlockCount:
    """How a block came to its trials and checkpoints."""

    name: str
    factors: str
    trials: int
    checkpoints: int
    new_checkpoints: int


def expand(sweep: Sweep) -> tuple[list[Trial], list[BlockCount]]:
    """All trials of the sweep, each once, trials of one base model next to each other; and the count of each block.

    Trials that differ only in their number of epochs under a constant learning rate are one trial.
    """
    trials: dict[str, Trial] = {}
    counts = []
    parts = _Parts(sweep)
    for block in sweep.grid:
        seen = {(trial.key, epoch) for trial in trials.values() for epoch in trial.measured}
        own: dict[str, Trial] = {}
        for trial in _block_trials(sweep, block, parts):
            own[trial.key] = _merged(own.get(trial.key), trial)
            trials[trial.key] = _merged(trials.get(trial.key), trial)
        checkpoints = {(trial.key, epoch) for trial in own.values() for epoch in trial.measured}
        factors = _factors(sweep, block)
        counts.append(BlockCount(block.name, factors, len(own), len(checkpoints), len(checkpoints - seen)))
    order = {model.name: index for index, model in enumerate(sweep.models)}
    return sorted(trials.values(), key=lambda trial: order[trial.model]), counts


def _merged(first: Trial | None, second: Trial) -> Trial:
    if first is None:
        return second
    measured = tuple(sorted({*first.measured, *second.measured}))
    blocks = (*first.blocks, *(name for name in second.blocks if name not in first.blocks))
    return replace(first, epochs=max(first.epochs, second.epochs), measured=measured, blocks=blocks)


class _Parts:
    """What trials share, made once: identities, of which those of files read them, and optimisations."""

    def __init__(self, sweep: Sweep) -> None:
        self.optimisation = functools.cache(functools.partial(_optimisation, sweep))
        self.models = {model.name: Part(model_identity(model)) for model in sweep.models}
        self.datasets = {dataset.name: Part(dataset_identity(sweep, dataset)) for dataset in sweep.datasets}
        self.methods = {method.name: Part(_method_identity(method)) for method in sweep.methods}


def _block_trials(sweep: Sweep, block: Block, parts: _Parts) -> list[Trial]:
    datasets = block.datasets or [dataset.name for dataset in sweep.datasets]
    for dataset, size in itertools.product(datasets, block.sizes):
        _check_size(sweep, block, sweep.dataset(dataset), size)
    axes = itertools.product(
        block.models or [model.name for model in sweep.models],
        datasets,
        block.methods or [method.name for method in sweep.methods],
        block.sizes,
        block.learning_rates or (None,),
        block.schedules,
        block.epochs,
        block.seeds,
    )
    trials = []
    for model, dataset, method, size, learning_rate, schedule, epochs, seed in axes:
        optimisation = parts.optimisation(model, dataset, method, learning_rate, schedule)
        rows = None if size == "all" else size
        length = {} if schedule == "constant" else {"epochs": epochs}
        identity = Part(
            model=parts.models[model],
            dataset=parts.datasets[dataset],
            method=parts.methods[method],
            size=rows,
            optimisation=optimisation.identity,
            seed=seed,
            **length,
        )
        trials.append(
            Trial(
                key=key_of("train", identity),
                identity=identity,
                model=model,
                dataset=dataset,
                method=method,
                size=rows,
                optimisation=optimisation,
                epochs=epochs,
                seed=seed,
                measured=_measured(block, epochs),
                blocks=(block.name,),
            )
        )
    return trials


def _measured(block: Block, epochs: int) -> tuple[int, ...]:
    if block.measure == "last":
        return (epochs,)
    if block.measure == "every":
        return tuple(range(1, epochs + 1))
    return tuple(sorted(set(block.measure)))


def _optimisation(
    sweep: Sweep, model: str, dataset: str, method: str, learning_rate: float | None, schedule: Schedule
) -> Optimisation:
    values: dict[str, Any] = sweep.training.model_dump(exclude=SPEED_ONLY)
    named = (sweep.model(model), sweep.dataset(dataset), sweep.method(method))
    grid = Override(learning_rate=learning_rate)
    for override in (*(entry.override for entry in named), grid):  # the later wins
        values.update(override.model_dump(exclude_none=True))
    return Optimisation(schedule=schedule, **values)


def _method_identity(method: MethodSpec) -> Identity:
    own = FULL_FIELDS if method.kind == "full" else LORA_FIELDS
    return method.model_dump(mode="json", include={"kind", "depth", "neftune_alpha", *own})


def _check_size(sweep: Sweep, block: Block, dataset: DatasetSpec, size: int | str) -> None:
    """Refuse a size above a row count that is known without opening the data."""
    if dataset.mixture is not None:
        for name in dataset.mixture.members:
            _check_size(sweep, block, sweep.dataset(name), size)
        return
    known = dataset.generated.rows if dataset.generated is not None else dataset.rows
    if isinstance(size, int) and known is not None and size > known:
        raise SpecError(f"grid.{block.name}.sizes: {size} rows asked of dataset {dataset.name}, which has {known}")


def _factors(sweep: Sweep, block: Block) -> str:
    """The block as a product: `12 models x 10 datasets x 2 methods x cosine x 10 epochs, last`."""

    def counted(values: tuple[Any, ...] | None, every: tuple[Any, ...], noun: str) -> str:
        count = len(values or every)
        return f"{count} {noun}" + ("" if count == 1 else "s")

    sizes = "/".join(str(size) for size in block.sizes)
    epochs = "/".join(str(epochs) for epochs in block.epochs)
    measured = block.measure if isinstance(block.measure, str) else "epochs " + ",".join(map(str, block.measure))
    parts = [
        counted(block.models, sweep.models, "model"),
        counted(block.datasets, sweep.datasets, "dataset"),
        counted(block.methods, sweep.methods, "method"),
        f"size {sizes}",
        "/".join(block.schedules),
        counted(block.seeds, (), "seed"),
        f"{epochs} epochs, checkpoints measured: {measured}",
    ]
    if block.learning_rates:
        parts.insert(4, f"{len(block.learning_rates)} learning rates")
    return " x ".join(parts)
