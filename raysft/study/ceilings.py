"""How much of the gains is noise, by the errors of scores and by seeds, and what that leaves to explain."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raysft.study.cells import SCOPES
from raysft.study.gains import final_gains
from raysft.study.statistics.noise import Ceiling, noise_ceiling, seed_variance
from raysft.study.statistics.schema import NOISE_CEILINGS
from raysft.study.tables import from_rows

Row = dict[str, Any]


@dataclass(frozen=True)
class _Cell:
    """One (model, dataset, task): its seeds' scaled gains, and error variances of the mean of them."""

    model: str
    dataset: str
    task: str
    gains: tuple[float, ...]
    base: float
    own: float


def noise_ceiling_table(gains: pa.Table) -> pa.Table:
    """A row for each variant, choice of tasks and kind of correlation, of schema `NOISE_CEILINGS`.

    The error of a base model's score is common to its gains, so a model's fixed effect takes it out.
    """
    rows: list[Row] = []
    by_variant: dict[str, list[Row]] = defaultdict(list)
    for row in final_gains(gains).to_pylist():
        by_variant[row["variant"] or ""].append(row)
    for variant, ours in sorted(by_variant.items()):
        for scope, task, chosen in _scopes(ours):
            cells = _cells(chosen)
            rows += [_row(variant, scope, task, cells, effects) for effects in ("none", "fixed")]
    return from_rows(rows, NOISE_CEILINGS)


def _scopes(rows: list[Row]) -> list[tuple[str, str | None, list[Row]]]:
    found: list[tuple[str, str | None, list[Row]]] = []
    for scope in SCOPES:
        chosen = [row for row in rows if scope == "all" or row["matching"] == (scope == "matching")]
        found += [(scope, None, chosen)] if chosen else []
    tasks = sorted({row["task"] for row in rows})
    return found + [("task", task, [row for row in rows if row["task"] == task]) for task in tasks]


def _cells(rows: list[Row]) -> list[_Cell]:
    grouped: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row["model"], row["dataset"], row["task"]].append(row)
    return [_cell(place, seeds) for place, seeds in sorted(grouped.items())]


def _cell(place: tuple[str, str, str], seeds: list[Row]) -> _Cell:
    def variance(name: str) -> float:
        errors = [np.nan if row[name] is None else row[name] / row["scale"] for row in seeds]
        return float(np.mean(np.square(errors)))

    gains = tuple(float(row["scaled_gain"]) for row in seeds)
    return _Cell(*place, gains, variance("base_stderr"), variance("score_stderr") / len(seeds))


def _row(variant: str, scope: str, task: str | None, cells: list[_Cell], effects: str) -> Row:
    pairs: dict[tuple[str, str], list[_Cell]] = defaultdict(list)
    for cell in cells:
        pairs[cell.model, cell.dataset].append(cell)
    fixed = effects == "fixed"
    groups = [[model for model, _ in pairs], [dataset for _, dataset in pairs]] if fixed else []
    gains = np.array([np.mean([np.mean(cell.gains) for cell in ours]) for ours in pairs.values()])
    items = np.array([sum(c.own + (0 if fixed else c.base) for c in ours) / len(ours) ** 2 for ours in pairs.values()])
    each, df = _seed_noise(cells)
    seeds = np.array([sum(each / len(cell.gains) for cell in ours) / len(ours) ** 2 for ours in pairs.values()])
    ceiling = _lower(noise_ceiling(gains, items, groups), noise_ceiling(gains, seeds, groups))
    known = np.isfinite(items)
    return {
        "variant": variant,
        "scope": scope,
        "task": task,
        "effects": effects,
        "n": ceiling.n,
        "variance": ceiling.variance,
        "item_noise": float(items[known].mean()) if known.any() else np.nan,
        "seed_noise": float(seeds.mean()),
        "seed_df": df,
        "reliability": ceiling.reliability,
        "ceiling": ceiling.r,
        "reason": ceiling.reason,
    }


def _seed_noise(cells: list[_Cell]) -> tuple[float, int]:
    """Variance of one seed's gain on one task, pooled over the cells with several seeds."""
    values = np.array([gain for cell in cells for gain in cell.gains])
    labels = [f"{at}" for at, cell in enumerate(cells) for _ in cell.gains]
    return seed_variance(values, labels)


def _lower(items: Ceiling, seeds: Ceiling) -> Ceiling:
    """The ceiling by the larger noise; by errors over items where there is one seed."""
    return seeds if np.nan_to_num(seeds.noise, nan=-1.0) > np.nan_to_num(items.noise, nan=-1.0) else items
