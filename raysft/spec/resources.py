"""What trials hold while they run: processes, CPUs, GPUs, and on which nodes. Never part of a key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from raysft.spec.rates import Assumed, NodePrice
from raysft.spec.recipe import Frozen

Strategy = Literal["ddp", "zero1", "zero2", "zero3"]
Labels = dict[str, str]


@dataclass(frozen=True)
class Shape:
    """Processes of equal size, each of which has to find its CPUs and GPUs on one node that has the labels."""

    workers: int
    cpus: float
    gpus: float
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def size(self) -> tuple[float, float]:
        """(GPUs, CPUs) of all workers: what counts as larger."""
        return self.workers * self.gpus, self.workers * self.cpus

    def bundle(self) -> dict[str, float]:
        """What one worker takes, by the names that Ray has for it."""
        return {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount}

    def __str__(self) -> str:
        each = ", ".join(f"{amount:g} {name}" for name, amount in self.bundle().items())
        where = "".join(f" on {key}={value}" for key, value in self.labels)
        return f"{each}{where}" if self.workers == 1 else f"{self.workers} workers of {each}{where}"


class Held(Frozen):
    """What a trial holds."""

    workers: int = Field(1, ge=1, description="data-parallel processes of a trial")
    strategy: Strategy = Field(
        "ddp", description="what each worker holds: everything, or by ZeRO a part of optimiser, gradients, weights"
    )
    offload: bool = Field(False, description="ZeRO only: optimiser state, and under zero3 weights, in the CPU's memory")
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0, description="a share of a GPU below 1, whole GPUs above")
    memory_per_worker: float | None = Field(
        None, gt=0, description="GB (10^9 bytes) of a worker's GPU, or of its CPU memory; what cannot fit is named"
    )
    labels: Labels = Field({}, description="Ray labels of the workers' nodes, as ray.io/market-type: spot")

    @model_validator(mode="after")
    def _zero_only(self) -> Held:
        if self.offload and self.strategy == "ddp":
            raise ValueError("offload belongs to strategy: zero1, zero2 or zero3, found with strategy: ddp")
        return self

    @model_validator(mode="after")
    def _whole_gpus(self) -> Held:
        if self.gpus_per_worker > 1 and not self.gpus_per_worker.is_integer():
            raise ValueError(f"gpus_per_worker is a share below 1 or a whole number, found {self.gpus_per_worker:g}")
        return self

    @property
    def shape(self) -> Shape:
        return Shape(self.workers, self.cpus_per_worker, self.gpus_per_worker, tuple(sorted(self.labels.items())))

    @property
    def measures_in_place(self) -> bool:
        """Whether a trial is measured by the process that trains it, while the model is in its memory.

        Several workers would wait for one that measures, and ZeRO has no model that could be measured: there each
        epoch is measured from its checkpoint, as a unit of work that holds `Resources.measuring`.
        """
        return self.workers == 1 and self.strategy == "ddp"


class Rule(Frozen):
    """Resources of some trials, where they differ: of these models (all) and these methods (all)."""

    models: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    workers: int | None = Field(None, ge=1)
    strategy: Strategy | None = None
    offload: bool | None = None
    cpus_per_worker: float | None = Field(None, gt=0)
    gpus_per_worker: float | None = Field(None, ge=0)
    memory_per_worker: float | None = Field(None, gt=0)
    labels: Labels | None = None

    def holds_for(self, model: str, method: str) -> bool:
        return (self.models is None or model in self.models) and (self.methods is None or method in self.methods)


class Measuring(Frozen):
    """What a process holds that measures base models, or checkpoints that were trained elsewhere."""

    cpus: float | None = Field(None, gt=0, description="a trial's cpus_per_worker if not given")
    gpus: float | None = Field(None, ge=0, description="a trial's gpus_per_worker if not given")
    labels: Labels | None = Field(None, description="a trial's if not given")


class Resources(Held):
    """What trials hold, and what of them differs by model and method; a later rule is stronger."""

    rules: tuple[Rule, ...] = ()
    measuring: Measuring = Measuring()
    driver_labels: Labels = Field({}, description="nodes of the processes that only wait for a trial's workers")
    max_retries: int = Field(2, ge=0, description="restarts of a trial whose process died")
    prices: tuple[NodePrice, ...] = Field((), description="of the cluster's node types, so that estimates say money")
    assumed: Assumed = Assumed()

    def of(self, model: str, method: str) -> Held:
        """What the trials of a model and a method hold. ValueError if rules together make no sense."""
        held = {name: getattr(self, name) for name in Held.model_fields}
        for rule in self.rules:
            if rule.holds_for(model, method):
                held |= {name: value for name in Held.model_fields if (value := getattr(rule, name)) is not None}
        return Held(**held)

    @property
    def measuring_shape(self) -> Shape:
        """One process that measures."""
        own, default = self.measuring, self.shape
        cpus = default.cpus if own.cpus is None else own.cpus
        gpus = default.gpus if own.gpus is None else own.gpus
        labels = default.labels if own.labels is None else tuple(sorted(own.labels.items()))
        return Shape(1, cpus, gpus, labels)
