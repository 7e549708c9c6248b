"""What devices are taken to do and cost in estimates, until a sweep's own results tell. Never part of a key."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysft.spec.recipe import Frozen, Name


class NodePrice(Frozen):
    """Money for an hour of a node, in whatever currency all prices are; the node types of `cluster.yaml`, say."""

    node: Name
    per_hour: float = Field(ge=0)
    gpus: float = Field(0, ge=0)
    cpus: float = Field(gt=0)
    labels: dict[str, str] = Field({}, description="Ray labels of the node, as ray.io/market-type: spot")


class Assumed(Frozen):
    """What `plan` reckons with where nothing is measured yet."""

    gpu_flops: float = Field(3.12e14, gt=0, description="peak FLOP/s of a GPU (A100, bfloat16)")
    core_flops: float = Field(1e11, gt=0, description="peak FLOP/s of a CPU core, where a trial holds no GPU")
    training_utilisation: float = Field(0.4, gt=0, le=1, description="share of the peak that training reaches")
    scoring_utilisation: float = Field(0.2, gt=0, le=1, description="the same of benchmarks and probes")
    row_tokens: int = Field(256, ge=1, description="tokens of a training row on average, below its max_length")
    task_items: int = Field(1000, ge=1, description="items of a benchmark task, below evaluation.limit")
    items: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description="task: its number of items, for those that are known"
    )
    item_tokens: int = Field(512, ge=1, description="tokens that are scored or generated for an item")
