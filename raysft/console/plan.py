"""A plan for people and for programs: trials, stages, sizes, costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from raysft.console.costs import cost_facts, cost_notes, cost_table
from raysft.spec.cost import Estimate
from raysft.spec.memory import memory_needs, too_large
from raysft.spec.plan import Plan
from raysft.spec.size import POLICIES, decimal, retention
from raysft.spec.sweep import Sweep


def plan_facts(made: Plan, estimate: Estimate) -> dict[str, Any]:
    """Everything that `raysft plan` says, as JSON."""
    return {
        **progress_facts(made),
        "blocks": [vars(block) for block in made.blocks],
        "checkpoint_storage": [asdict(retention(made.sweep, made.trials, keep)) for keep in POLICIES],
        "worker_memory": [
            {"model": need.model, "method": need.method, "trials": need.trials, "bytes": round(need.bytes)}
            for need in memory_needs(made.sweep, made.trials)
        ],
        "cost": cost_facts(estimate),
        "missing_units": [str(unit) for unit in made.missing_units()],
    }


def progress_facts(made: Plan) -> dict[str, Any]:
    """What of a plan changes with its storage, by stage."""
    return {
        "sweep": made.sweep.name,
        "storage": made.sweep.storage,
        "trials": len(made.trials),
        "checkpoints": _checkpoints(made),
        "stages": {
            stage: {"done": done, "planned": planned} for stage, (done, planned) in made.count_by_stage().items()
        },
        "damaged": list(made.damaged),
    }


def print_plan(console: Console, made: Plan, estimate: Estimate, compared: bool) -> None:
    """`compared`: the plan was made with a look at its storage."""
    for shown in _parts(made, estimate):
        console.print(shown)
    looked = "" if compared else " (not looked at: a plan uses no network; see `raysft status`)"
    console.print(f"{len(made.missing_units())} units of work are missing in {made.sweep.storage}{looked}")
    moving = ", ".join(_moving_revisions(made.sweep))
    if moving:
        console.print(f"Revision main moves with the hub; pin a commit, so that the sweep can be repeated: {moving}")
    for line in damaged_lines(made):
        console.print(line)


def damaged_lines(made: Plan) -> list[str]:
    return [f"{path}: truncated; `raysft run` moves it aside and redoes it" for path in made.damaged]


def _parts(made: Plan, estimate: Estimate) -> Iterator[RenderableType]:
    blocks = Table("block", "is", "trials", "checkpoints", "of them new", title=made.sweep.name)
    for block in made.blocks:
        counts = (str(block.trials), str(block.checkpoints), str(block.new_checkpoints))
        blocks.add_row(block.name, block.factors, *counts)
    yield blocks
    yield f"{len(made.trials)} trials, {_checkpoints(made)} fine-tuned checkpoints to measure"
    stages = Table("stage", "done", "missing")
    for stage, (done, planned) in made.count_by_stage().items():
        stages.add_row(stage, str(done), str(planned - done))
    yield stages
    yield from _sizes(made)
    yield cost_table(estimate, actual=any(cost.done for cost in estimate.groups))
    yield from cost_notes(made.sweep, estimate)


def _checkpoints(made: Plan) -> int:
    return sum(len(trial.measured) for trial in made.trials)


def _sizes(made: Plan) -> Iterator[RenderableType]:
    """What the checkpoints take under each policy, and what a training step needs of a worker."""
    table = Table("checkpoints.keep", "checkpoints", "storage")
    for keep in POLICIES:
        kept = retention(made.sweep, made.trials, keep)
        size = decimal(kept.bytes) if kept.bytes_meanwhile else "unknown"
        if kept.bytes_meanwhile > kept.bytes:
            size += f", {decimal(kept.bytes_meanwhile)} until the run ends"
        chosen = " (chosen)" if keep == made.sweep.checkpoints.keep else ""
        table.add_row(keep + chosen, f"{kept.checkpoints:,}", size)
    yield table
    unknown = retention(made.sweep, made.trials, "last").unknown
    if unknown:
        yield f"Not in it, size unknown for (their `shape` would tell): {', '.join(unknown)}"
    largest = max(memory_needs(made.sweep, made.trials), key=lambda need: need.bytes, default=None)
    if largest is not None:
        yield f"A training step needs up to {decimal(largest.bytes)} of a worker ({largest.model} x {largest.method})"
    yield from too_large(made.sweep, made.missing_trials())


def _moving_revisions(sweep: Sweep) -> list[str]:
    """Hub names without a pinned revision: their key says `main`, whatever main was when they were loaded."""
    models = [f"models.{model.name}" for model in sweep.models if model.hub and model.revision == "main"]
    return models + [f"datasets.{data.name}" for data in sweep.datasets if data.hub and data.revision == "main"]
