"""The typed YAML of a sweep. `load_sweep` reads one; every mistake in it is a `SpecError` of one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from raysft.spec.blocks import Block
from raysft.spec.datasets import DatasetSpec
from raysft.spec.evaluation import Evaluation
from raysft.spec.judge import located_judge
from raysft.spec.mistakes import SpecError as SpecError  # of this package's, by the name that others know
from raysft.spec.mistakes import describe, shown
from raysft.spec.probes import Probes
from raysft.spec.reading import read_yaml
from raysft.spec.recipe import Frozen, MicroRecipe, Name, exactly_one, found_twice
from raysft.spec.resources import Held, Resources
from raysft.spec.shape import ModelShape
from raysft.spec.training import Override, Training
from raysft.store.layout import StorageError, check_address

Keep = Literal["measured", "last", "none"]


class ModelSpec(Frozen):
    """A base model: a local folder, a hub name with its revision, or a recipe that the project pretrains itself."""

    name: Name
    path: Path | None = None
    hub: str | None = Field(None, min_length=1)
    revision: str = "main"
    micro: MicroRecipe | None = None
    trust_remote_code: bool = False
    shape: ModelShape | None = Field(None, description="published sizes, for planning without the network")
    override: Override = Override()

    @model_validator(mode="after")
    def _one_source(self) -> ModelSpec:
        exactly_one(self, "path", "hub", "micro")
        return self


LORA_FIELDS = ("rank", "alpha", "dropout", "targets", "rslora", "dora", "init")
FULL_FIELDS = ("freeze_embeddings",)


class MethodSpec(Frozen):
    """How the weights are trained: all of them, or LoRA; either can be restricted to a range of depths.

    `depth: [0.4, 0.8]` trains only the layers whose layer / (layers - 1) lies in that closed range. `rslora` scales by
    alpha / sqrt(rank); `dora` (Liu et al. 2024) learns each column's norm apart from its direction.
    """

    name: Name
    kind: Literal["full", "lora"]
    rank: int = Field(8, ge=1)
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    rslora: bool = False
    dora: bool = False
    init: Literal["kaiming", "gaussian", "orthogonal"] = Field("kaiming", description="how LoRA matrices are drawn")
    freeze_embeddings: bool = Field(False, description="full only: the input embeddings stay, and a tied output layer")
    neftune_alpha: float = Field(0.0, ge=0, description="noise on the embeddings in training; 0 is none, 5 is usual")
    depth: tuple[float, float] | None = None
    override: Override = Override()

    @field_validator("depth")
    @classmethod
    def _ordered(cls, depth: tuple[float, float] | None) -> tuple[float, float] | None:
        if depth is not None and not 0 <= depth[0] <= depth[1] <= 1:
            raise ValueError(f"must be [low, high] with 0 <= low <= high <= 1, found {list(depth)}")
        return depth

    @model_validator(mode="after")
    def _lora_only(self) -> MethodSpec:
        wrong = LORA_FIELDS if self.kind == "full" else FULL_FIELDS
        given = [name for name in wrong if getattr(self, name) != type(self).model_fields[name].default]
        if given:
            right = "lora" if self.kind == "full" else "full"
            raise ValueError(f"{', '.join(given)} belong to kind: {right}, found with kind: {self.kind}")
        return self


MOST_NAMES = 1000
"""Entries of models, datasets, methods and grid."""
MOST_TRIALS = 100_000
"""Of a sweep, each block counted by itself. A plan of so many takes some seconds and a gigabyte."""
MOST_RESULTS = 2_000_000
"""Of a sweep: benchmarks of every checkpoint, and of every base model and dataset."""


class Checkpoints(Frozen):
    """Which weights stay in the storage once everything about them is measured."""

    keep: Keep = "measured"


class Sweep(Frozen):
    """A whole experiment."""

    name: Name
    storage: str = Field(min_length=1)
    models: tuple[ModelSpec, ...] = Field(min_length=1, max_length=MOST_NAMES)
    datasets: tuple[DatasetSpec, ...] = Field(min_length=1, max_length=MOST_NAMES)
    methods: tuple[MethodSpec, ...] = Field(min_length=1, max_length=MOST_NAMES)
    training: Training = Training()
    grid: tuple[Block, ...] = Field(min_length=1, max_length=MOST_NAMES)
    evaluation: Evaluation = Evaluation()
    probes: Probes = Probes()
    resources: Resources = Resources()
    checkpoints: Checkpoints = Checkpoints()

    @field_validator("models", "datasets", "methods", "grid")
    @classmethod
    def _unique_names(cls, entries: tuple[Any, ...]) -> tuple[Any, ...]:
        if twice := found_twice(entry.name for entry in entries):
            raise ValueError(f"names must differ, found twice: {twice}")
        return entries

    @model_validator(mode="after")
    def _has_bounds(self) -> Sweep:
        """What would take minutes and gigabytes to write down is counted, and refused before anything is made of it."""
        sizes = len(self.models), len(self.datasets), len(self.methods)
        counts = [block.count(*sizes) for block in self.grid]
        trials, checkpoints = sum(own for own, _ in counts), sum(own for _, own in counts)
        if trials > MOST_TRIALS:
            raise ValueError(f"grid: comes to {trials:,} trials; valid: at most {MOST_TRIALS:,}")
        results = (checkpoints + sizes[0] * sizes[1]) * (1 + len(self.evaluation.tasks))
        if results > MOST_RESULTS:
            found = f"{checkpoints:,} checkpoints x {len(self.evaluation.tasks)} benchmarks"
            raise ValueError(f"grid: {found} are more results than a sweep may have; valid: at most {MOST_RESULTS:,}")
        if (rules := len(self.resources.rules)) * sizes[0] * sizes[2] > MOST_RESULTS:
            raise ValueError(f"resources.rules: {rules} rules are too many for {sizes[0]} models x {sizes[2]} methods")
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> Sweep:
        for block in self.grid:
            for axis in ("models", "datasets", "methods"):
                _check_names(f"grid.{block.name}.{axis}", getattr(block, axis) or (), getattr(self, axis))
        plain = tuple(dataset for dataset in self.datasets if dataset.mixture is None)
        for dataset in self.datasets:
            if dataset.mixture is not None:
                _check_names(f"datasets.{dataset.name}.mixture.of", dataset.mixture.of, plain)
        return self

    @model_validator(mode="after")
    def _rules_make_sense(self) -> Sweep:
        for index, rule in enumerate(self.resources.rules):
            for axis in ("models", "methods"):
                _check_names(f"resources.rules.{index}.{axis}", getattr(rule, axis) or (), getattr(self, axis))
        for model in self.models if self.resources.rules else ():
            for method in self.methods:
                try:
                    self.resources_of(model.name, method.name)
                except ValidationError as error:
                    where = f"resources.rules: {model.name} x {method.name}"
                    raise ValueError(f"{where}: {describe(error, Held)}") from error
        return self

    @model_validator(mode="after")
    def _chat_template_is_used(self) -> Sweep:
        used = "chat" in (self.training.template, self.evaluation.template)
        if self.training.chat_template is not None and not used:
            raise ValueError(
                f"training.chat_template belongs to template: chat, found with template: {self.training.template!r}"
            )
        return self

    def dataset(self, name: str) -> DatasetSpec:
        return next(dataset for dataset in self.datasets if dataset.name == name)

    def model(self, name: str) -> ModelSpec:
        return next(model for model in self.models if model.name == name)

    def method(self, name: str) -> MethodSpec:
        return next(method for method in self.methods if method.name == name)

    def resources_of(self, model: str, method: str) -> Held:
        """What the trials of a base model and a method hold."""
        return self.resources.of(model, method)


def load_sweep(path: Path, storage: str | None = None) -> Sweep:
    """Read a sweep from YAML; relative paths in it are relative to the file's folder, `storage` to the current one.

    Raises SpecError. `storage` replaces the YAML's own.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        found = "nothing" if content is None else "a list" if isinstance(content, list) else "a single value"
        raise SpecError(f"{shown(path)}: expected a mapping of fields, found {found}")
    if storage is not None:
        content = {**content, "storage": storage}
    return _absolute(parse_sweep(content, shown(path)), path.resolve().parent)


def parse_sweep(content: dict[Any, Any], where: str) -> Sweep:
    """Validate the content of a YAML; `where` starts the message of the SpecError."""
    address = content.get("storage")
    try:
        if isinstance(address, str) and "://" in address:  # before pydantic, which says what it found: a secret, maybe
            check_address(address)
        return Sweep.model_validate(content)
    except ValidationError as error:
        raise SpecError(f"{where}: {describe(error, Sweep)}") from error
    except StorageError as error:
        raise SpecError(f"{where}: {error}") from error


def resolved_yaml(sweep: Sweep) -> str:
    """The sweep with every default written out, as YAML."""
    return yaml.safe_dump(sweep.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _check_names(where: str, wanted: tuple[str, ...], entries: tuple[Any, ...]) -> None:
    valid = {entry.name: None for entry in entries}
    for name in wanted:
        if name not in valid:
            raise ValueError(f"{where}: unknown name {name!r}; valid: {', '.join(valid)}")


def _absolute(sweep: Sweep, folder: Path) -> Sweep:
    """Make the paths of models, datasets, tasks and texts independent of where a worker runs."""

    def located(path: Path | str, where: str, start: Path = folder) -> Path:
        try:
            return (start / Path(path).expanduser()).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a circle of links, an unknown ~user, a NUL
            raise SpecError(f"{where}: '{shown(path, 80)}' is no path here ({shown(error)})") from error

    models, datasets = [], []
    for model in sweep.models:
        own: dict[str, Any] = {}
        if model.path is not None:
            own["path"] = located(model.path, f"models.{model.name}.path")
        if model.micro is not None:
            texts = [str(located(text, f"models.{model.name}.micro.texts")) for text in model.micro.texts]
            own["micro"] = model.micro.model_copy(update={"texts": tuple(texts)})
        models.append(model.model_copy(update=own))
    for dataset in sweep.datasets:
        path = dataset.path and located(dataset.path, f"datasets.{dataset.name}.path")
        datasets.append(dataset.model_copy(update={"path": path}))
    include = tuple(located(path, "evaluation.include") for path in sweep.evaluation.include)
    chat_template = sweep.training.chat_template and located(sweep.training.chat_template, "training.chat_template")
    training = sweep.training.model_copy(update={"chat_template": chat_template})
    probes = sweep.probes
    likelihood = probes.log_likelihood
    if likelihood is not None and isinstance(likelihood.texts, Path):
        likelihood = likelihood.model_copy(update={"texts": located(likelihood.texts, "probes.log_likelihood.texts")})
        probes = probes.model_copy(update={"log_likelihood": likelihood})
    if probes.perplexity is not None and (sentences := probes.perplexity.sentence_model) and sentences.path:
        path = located(sentences.path, "probes.perplexity.sentence_model.path")
        sentences = sentences.model_copy(update={"path": path})
        perplexity = probes.perplexity.model_copy(update={"sentence_model": sentences})
        probes = probes.model_copy(update={"perplexity": perplexity})
    storage = sweep.storage if "://" in sweep.storage else str(located(sweep.storage, "storage", Path()))
    judge = sweep.evaluation.judge and located_judge(sweep.evaluation.judge, located)
    data = {
        name: _located_data(source, f"evaluation.data.{name}", located)
        for name, source in sweep.evaluation.data.items()
    }
    evaluation = sweep.evaluation.model_copy(update={"include": include, "data": data, "judge": judge})
    return sweep.model_copy(
        update={
            "models": tuple(models),
            "datasets": tuple(datasets),
            "training": training,
            "evaluation": evaluation,
            "probes": probes,
            "storage": storage,
        }
    )


def _located_data(
    source: Path | dict[str, Path], where: str, located: Callable[[Path, str], Path]
) -> Path | dict[str, Path]:
    if isinstance(source, dict):
        return {split: located(path, f"{where}.{split}") for split, path in source.items()}
    return located(source, where)
