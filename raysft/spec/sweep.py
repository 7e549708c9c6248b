"""The typed YAML of a sweep. `load_sweep` reads one; every mistake in it is a `SpecError` of one line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from raysft.spec.mistakes import describe
from raysft.spec.recipe import Frozen, MicroRecipe
from raysft.spec.resources import Held, Resources
from raysft.spec.shape import ModelShape

Schedule = Literal["cosine", "constant"]
Keep = Literal["measured", "last", "none"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class SpecError(ValueError):
    """A mistake in a sweep: where it is, what was found and what is valid."""


class Override(Frozen):
    """Optimisation settings that one model, dataset or method has of its own."""

    learning_rate: float | None = Field(None, gt=0)
    batch_size: int | None = Field(None, ge=1)
    weight_decay: float | None = Field(None, ge=0)
    warmup_steps: int | None = Field(None, ge=0)
    max_length: int | None = Field(None, ge=8)
    max_grad_norm: float | None = Field(None, gt=0)


class ModelSpec(Frozen):
    """A base model: a local folder, a hub name with its revision, or a recipe that the project pretrains itself."""

    name: Name
    path: Path | None = None
    hub: str | None = None
    revision: str = "main"
    micro: MicroRecipe | None = None
    trust_remote_code: bool = False
    shape: ModelShape | None = Field(None, description="published sizes, for planning without the network")
    override: Override = Override()

    @model_validator(mode="after")
    def _one_source(self) -> ModelSpec:
        _exactly_one(self, "path", "hub", "micro")
        return self


class Columns(Frozen):
    """Which columns of a file hold what; where `instruction` is not given, well-known layouts are recognised."""

    instruction: str | None = None
    input: str | None = None
    response: str | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> Columns:
        if (self.instruction is None) != (self.response is None) or (self.input and not self.instruction):
            raise ValueError("name both instruction and response, or neither")
        return self


class SkillRows(Frozen):
    """Rows of a generated skill (see raysft/corpus/skills.py)."""

    skill: str
    rows: int = Field(256, ge=1)
    seed: int = 0


class Mixture(Frozen):
    """Other datasets of the sweep, `size` rows of each; `without` leaves one of them out."""

    of: tuple[Name, ...] = Field(min_length=1)
    without: Name | None = None

    @model_validator(mode="after")
    def _something_left(self) -> Mixture:
        if self.without is not None and self.without not in self.of:
            raise ValueError(f"without: {self.without!r} is not one of: {', '.join(self.of)}")
        if not self.members:
            raise ValueError("without leaves nothing")
        return self

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(name for name in self.of if name != self.without)


class DatasetSpec(Frozen):
    """An instruction dataset: a local file, a hub name with its revision, generated rows, or a mixture."""

    name: Name
    path: Path | None = None
    hub: str | None = None
    revision: str = "main"
    subset: str | None = None
    split: str = "train"
    generated: SkillRows | None = None
    mixture: Mixture | None = None
    columns: Columns = Columns()
    where: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="keep rows whose column is one of these"
    )
    incomplete_rows: Literal["refuse", "drop"] = Field(
        "refuse", description="rows without instruction or response, or whose turns are not in order"
    )
    turns: Literal["first", "all"] = Field("first", description="of a conversation: its first exchange, or the whole")
    rows: int | None = Field(None, ge=1, description="published number of rows, for planning without the network")
    override: Override = Override()

    @model_validator(mode="after")
    def _one_source(self) -> DatasetSpec:
        _exactly_one(self, "path", "hub", "generated", "mixture")
        if self.mixture is not None and self.turns != "first":
            raise ValueError(f"turns belongs to the members of a mixture, found turns: {self.turns} with mixture")
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


class Training(Frozen):
    """Optimisation defaults; the overrides of model, dataset and method go before them, in this order of strength."""

    learning_rate: float = Field(1e-5, gt=0)
    batch_size: int = Field(32, ge=1, description="examples of a global batch")
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(
        0, ge=0, description="steps of linear warm-up; in steps, so that longer runs contain shorter ones"
    )
    max_length: int = Field(1024, ge=8, description="tokens; longer rows are cut at the end")
    max_grad_norm: float = Field(1.0, gt=0)
    dtype: Literal["float32", "bfloat16", "pure_bfloat16"] = Field(
        "float32",
        description="bfloat16 computes in it and keeps fp32 weights; pure_bfloat16 holds the base's weights in it too",
    )
    template: str = Field("paper", description="paper, alpaca, chat, or a text with {instruction} and {response}")
    chat_template: Path | None = Field(None, description="a Jinja file for template: chat, instead of each base's own")
    overlong_rows: Literal["refuse", "drop"] = Field(
        "refuse", description="rows that max_length leaves without a supervised token; the number dropped is recorded"
    )
    token_budget: int = Field(4096, ge=8, description="tokens of a micro-batch, padding counted; not part of any key")
    packing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="rows end to end instead of padded, attention within each; auto: where it pays and the "
        "model's numbers stay the same; not part of any key",
    )
    activation_checkpointing: bool = Field(
        False, description="compute activations again in backward: less memory, a third more work; not part of any key"
    )
    compile: bool = Field(
        False, description="torch.compile each layer, a minute or more at the start; not part of any key"
    )


SPEED_ONLY = {"token_budget", "packing", "activation_checkpointing", "compile"}
"""Settings of training that change its speed and memory, and no numbers."""


class Block(Frozen):
    """A full factorial of its axes; a sweep's grid is the union of its blocks. An axis left out takes every name."""

    name: Name = "grid"
    models: tuple[Name, ...] | None = Field(None, min_length=1)
    datasets: tuple[Name, ...] | None = Field(None, min_length=1)
    methods: tuple[Name, ...] | None = Field(None, min_length=1)
    sizes: tuple[Annotated[int, Field(ge=1)] | Literal["all"], ...] = Field(("all",), min_length=1)
    schedules: tuple[Schedule, ...] = Field(("cosine",), min_length=1)
    epochs: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(None, min_length=1)
    measure: Literal["last", "every"] | tuple[Annotated[int, Field(ge=1)], ...] = "last"

    @field_validator("models", "datasets", "methods", "sizes", "schedules", "epochs", "seeds", "learning_rates")
    @classmethod
    def _distinct(cls, axis: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        twice = sorted({str(value) for value in axis or () if list(axis or ()).count(value) > 1})
        if twice:
            raise ValueError(f"an axis holds each value once, found twice: {', '.join(twice)}")
        return axis

    @model_validator(mode="after")
    def _measured_epochs_exist(self) -> Block:
        if isinstance(self.measure, tuple):
            late = [epoch for epoch in self.measure if epoch > min(self.epochs)]
            if late:
                raise ValueError(f"measure: epoch {late[0]} is never reached by epochs: {list(self.epochs)}")
        return self


class Evaluation(Frozen):
    """lm-evaluation-harness tasks, by name; `include` lists folders with task YAML of the user's own."""

    tasks: tuple[str, ...] = ()
    include: tuple[Path, ...] = ()
    limit: int | None = Field(None, ge=1, description="items of each task; all when left out")
    template: str | None = Field(
        None, description="a template, as under training, around each task's prompt; the prompt alone when left out"
    )
    batch_size: int = Field(64, ge=1, description="requests of a batch; not part of any key")

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({task for task in tasks if tasks.count(task) > 1})
        if twice:
            raise ValueError(f"each task once, found twice: {', '.join(twice)}")
        return tasks


class PerplexityProbe(Frozen):
    """Perplexity, lengths and benchmark similarity of each dataset under each base model."""

    rows: int = Field(512, ge=1, description="rows of each dataset, and texts of each benchmark, that are measured")


class WeightChangeProbe(Frozen):
    """Relative Frobenius norm of the change of every tensor."""


class IntrinsicDimensionProbe(Frozen):
    """TwoNN, MLE and Gride of the training texts' hidden states, before and after."""

    texts: int = Field(1000, ge=20)
    neighbours: int = Field(20, ge=2, description="k of the MLE, and the largest order of Gride")
    batch_size: int = Field(32, ge=1, description="texts of a batch; not part of any key")
    keep_embeddings: bool = Field(False, description="keep the hidden states after the estimates; not part of any key")

    @model_validator(mode="after")
    def _enough_texts(self) -> IntrinsicDimensionProbe:
        if self.neighbours >= self.texts:
            raise ValueError(f"neighbours must be below texts, found {self.neighbours} and {self.texts}")
        return self


class LogLikelihoodProbe(Frozen):
    """Log-likelihood vector over a fixed text set: `shipped`, `skills` (generated statements), or one text a line."""

    texts: Literal["shipped", "skills"] | Path = "shipped"
    max_length: int = Field(1024, ge=8, description="tokens; longer texts are cut at the end")


class Probes(Frozen):
    """What is measured besides benchmarks; `null` turns a probe off."""

    perplexity: PerplexityProbe | None = PerplexityProbe()
    weight_change: WeightChangeProbe | None = WeightChangeProbe()
    intrinsic_dimension: IntrinsicDimensionProbe | None = IntrinsicDimensionProbe()
    log_likelihood: LogLikelihoodProbe | None = LogLikelihoodProbe()


class Checkpoints(Frozen):
    """Which weights stay in the storage once everything about them is measured."""

    keep: Keep = "measured"


class Sweep(Frozen):
    """A whole experiment."""

    name: Name
    storage: str
    models: tuple[ModelSpec, ...] = Field(min_length=1)
    datasets: tuple[DatasetSpec, ...] = Field(min_length=1)
    methods: tuple[MethodSpec, ...] = Field(min_length=1)
    training: Training = Training()
    grid: tuple[Block, ...] = Field(min_length=1)
    evaluation: Evaluation = Evaluation()
    probes: Probes = Probes()
    resources: Resources = Resources()
    checkpoints: Checkpoints = Checkpoints()

    @field_validator("models", "datasets", "methods", "grid")
    @classmethod
    def _unique_names(cls, entries: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [entry.name for entry in entries]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"names must differ, found twice: {', '.join(twice)}")
        return entries

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
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise SpecError(f"{path}: expected a mapping of fields, found {type(content).__name__}")
    if storage is not None:
        content = {**content, "storage": storage}
    return _absolute(parse_sweep(content, str(path)), path.resolve().parent)


def parse_sweep(content: dict[Any, Any], where: str) -> Sweep:
    """Validate the content of a YAML; `where` starts the message of the SpecError."""
    try:
        return Sweep.model_validate(content)
    except ValidationError as error:
        raise SpecError(f"{where}: {describe(error, Sweep)}") from error


def resolved_yaml(sweep: Sweep) -> str:
    """The sweep with every default written out, as YAML."""
    return yaml.safe_dump(sweep.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _exactly_one(entry: Frozen, *fields: str) -> None:
    given = [field for field in fields if getattr(entry, field) is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(fields)}; found {', '.join(given) or 'none'}")


def _check_names(where: str, wanted: tuple[str, ...], entries: tuple[Any, ...]) -> None:
    valid = [entry.name for entry in entries]
    for name in wanted:
        if name not in valid:
            raise ValueError(f"{where}: unknown name {name!r}; valid: {', '.join(valid)}")


def _absolute(sweep: Sweep, folder: Path) -> Sweep:
    """Make the paths of models, datasets, tasks and texts independent of where a worker runs."""

    def located(path: Path | None) -> Path | None:
        return None if path is None else (folder / path.expanduser()).resolve()

    models = tuple(
        model.model_copy(
            update={
                "path": located(model.path),
                "micro": model.micro
                and model.micro.model_copy(
                    update={"texts": tuple(str(located(Path(text))) for text in model.micro.texts)}
                ),
            }
        )
        for model in sweep.models
    )
    datasets = tuple(dataset.model_copy(update={"path": located(dataset.path)}) for dataset in sweep.datasets)
    include = tuple((folder / path.expanduser()).resolve() for path in sweep.evaluation.include)
    training = sweep.training.model_copy(update={"chat_template": located(sweep.training.chat_template)})
    probes = sweep.probes
    likelihood = probes.log_likelihood
    if likelihood is not None and isinstance(likelihood.texts, Path):
        likelihood = likelihood.model_copy(update={"texts": located(likelihood.texts)})
        probes = probes.model_copy(update={"log_likelihood": likelihood})
    storage = sweep.storage if "://" in sweep.storage else str(Path(sweep.storage).expanduser().resolve())
    evaluation = sweep.evaluation.model_copy(update={"include": include})
    return sweep.model_copy(
        update={
            "models": models,
            "datasets": datasets,
            "training": training,
            "evaluation": evaluation,
            "probes": probes,
            "storage": storage,
        }
    )
