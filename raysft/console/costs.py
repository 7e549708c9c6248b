"""Costs as a table and as JSON: what was measured beside what was estimated, and what that rests on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from raysft.spec.cost import Estimate, GroupCost
from raysft.spec.sweep import Sweep


def cost_table(estimate: Estimate, actual: bool) -> Table:
    """Costs by group; `actual` shows what is done beside what the FLOP model said of it."""
    priced = any(cost.total_money is not None and cost.total_money > 0 for cost in estimate.groups)
    columns = ["cost", *(["done", "modelled"] if actual else []), "left", *(["total"] if actual else [])]
    table = Table(*columns, *(["money"] if priced else []), "basis")
    for cost in estimate.groups:
        done = [duration(cost.done_s, cost.device), duration(cost.modelled_done_s, cost.device)]
        cells = [cost.group, *(done if actual else []), duration(cost.left_s, cost.device)]
        cells += [duration(cost.total_s, cost.device)] if actual else []
        table.add_row(*cells, *([_money(cost, actual)] if priced else []), cost.basis)
    return table


def cost_notes(sweep: Sweep, estimate: Estimate) -> Iterator[str]:
    """Lines on what the table assumes, and lacks."""
    if any(cost.bases["modelled"] for cost in estimate.groups):
        assumed, devices = sweep.resources.assumed, {cost.device for cost in estimate.groups}
        peaks = {"GPU": assumed.gpu_flops, "core": assumed.core_flops}
        speeds = " and ".join(f"{peaks[device] / 1e12:,.3g} TFLOP/s a {device}" for device in sorted(devices))
        yield (
            f"Modelled from FLOP, by resources.assumed: {speeds}, of which training reaches "
            f"{assumed.training_utilisation:.0%} and all else {assumed.scoring_utilisation:.0%}; "
            f"rows of {assumed.row_tokens:,} tokens, tasks of {assumed.task_items:,} items "
            f"of {assumed.item_tokens:,} tokens"
        )
    if any(cost.bases["scaled"] for cost in estimate.groups):
        yield "Scaled: the same, times how far it was off where results of the stage are measured"
    if estimate.unknown:
        yield f"Cost unknown for what these would tell: {', '.join(estimate.unknown)}"
    for shape in estimate.unpriced:
        yield f"No node type of resources.prices takes {shape}"


def cost_facts(estimate: Estimate) -> dict[str, Any]:
    """The same for a program: device seconds."""
    return {
        "groups": [_group_facts(cost) for cost in estimate.groups],
        "results_read": estimate.measured,
        "unknown": list(estimate.unknown),
        "unpriced": list(estimate.unpriced),
    }


def duration(seconds: float, device: str) -> str:
    """Device time for people: 12 GPU-s, 3.4 core-min, 1,234 GPU-h."""
    size, unit = next((pair for pair in ((1, "s"), (60, "min")) if seconds < 99.5 * pair[0]), (3600, "h"))
    amount = seconds / size
    digits = 0 if amount >= 9.95 or amount == 0 else 1
    return f"{amount:,.{digits}f} {device}-{unit}"


def _money(cost: GroupCost, actual: bool) -> str:
    if cost.total_money is None:
        return "unknown"
    return f"{cost.done_money:,.2f} of {cost.total_money:,.2f}" if actual else f"{cost.left_money:,.2f}"


def _group_facts(cost: GroupCost) -> dict[str, Any]:
    return {
        "group": cost.group,
        "device": cost.device,
        "results": {"done": cost.done, "read": cost.read, "left": cost.left, "unknown": cost.unknown},
        "done_s": cost.done_s,
        "left_s": cost.left_s,
        "flop_model_done_s": cost.modelled_done_s,
        "flop_model_left_s": cost.modelled_left_s,
        "done_money": cost.done_money,
        "left_money": cost.left_money,
        "basis": dict(cost.bases),
    }
