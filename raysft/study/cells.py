"""The grid's cells: one gain for each model, dataset and task, averaged over seeds, and over tasks where asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raysft.study.gains import final_gains
from raysft.study.tables import aggregate, real_array, reals

Pair = tuple[str, str]  # (model, dataset)

SCOPES = ("all", "matching", "other")


@dataclass(frozen=True)
class Cell:
    """The final scaled gain of one (variant, model, dataset, task), averaged over seeds.

    `base` is the base model's score over the task's scale.
    """

    variant: str
    model: str
    dataset: str
    task: str
    matching: bool
    gain: float
    base: float


@dataclass(frozen=True)
class Slice:
    """The cells of one variant and one choice of tasks: a scope of `SCOPES`, or "task" with its name."""

    variant: str
    scope: str
    task: str | None
    cells: tuple[Cell, ...]

    def gains(self) -> dict[Pair, float]:
        """(model, dataset) -> mean gain over the slice's tasks."""
        return self._means([cell.gain for cell in self.cells])

    def bases(self) -> dict[Pair, float]:
        """(model, dataset) -> mean score of the base model on the slice's tasks."""
        return self._means([cell.base for cell in self.cells])

    def _means(self, values: Sequence[float]) -> dict[Pair, float]:
        grouped: dict[Pair, list[float]] = {}
        for cell, value in zip(self.cells, values, strict=True):
            grouped.setdefault((cell.model, cell.dataset), []).append(value)
        return {key: float(np.mean(found)) for key, found in grouped.items()}


def gain_cells(gains: pa.Table) -> list[Cell]:
    """Every cell of the main slice, sorted."""
    keys = ["variant", "model", "dataset", "task", "matching"]
    final = final_gains(gains)
    final = final.append_column("scaled_base", real_array(reals(final, "base") / reals(final, "scale")))
    rows = aggregate(final, keys, ("scaled_gain", "mean"), ("scaled_base", "mean")).to_pylist()
    return [
        Cell(**{key: row[key] for key in keys}, gain=row["scaled_gain_mean"], base=row["scaled_base_mean"])
        for row in rows
    ]


def slices(cells: list[Cell]) -> Iterator[Slice]:
    """For each variant: all tasks, the matching ones, the others, then every task by itself; empty ones left out.

    A mean over tasks is only of pairs that have them all (see `comparable`): tasks differ in how much there is to gain.
    """
    for variant in sorted({cell.variant for cell in cells}):
        ours = [cell for cell in cells if cell.variant == variant]
        whole = comparable(ours)
        for scope in SCOPES:
            chosen = tuple(cell for cell in whole if scope == "all" or cell.matching == (scope == "matching"))
            if chosen:
                yield Slice(variant, scope, None, chosen)
        for task in sorted({cell.task for cell in ours}):
            yield Slice(variant, "task", task, tuple(cell for cell in ours if cell.task == task))


def comparable(cells: list[Cell]) -> list[Cell]:
    """Cells of one variant, less the tasks that fewer than half of the (model, dataset) pairs have, and then less the
    pairs that lack one of the others."""
    tasks: dict[Pair, set[str]] = {}
    for cell in cells:
        tasks.setdefault((cell.model, cell.dataset), set()).add(cell.task)
    counts = Counter(task for of_pair in tasks.values() for task in of_pair)
    common = {task for task, count in counts.items() if 2 * count >= len(tasks)}
    whole = {pair for pair, of_pair in tasks.items() if of_pair >= common}
    return [cell for cell in cells if cell.task in common and (cell.model, cell.dataset) in whole]


def not_comparable(cells: list[Cell]) -> dict[str, str]:
    """What `comparable` leaves out of each variant, for people: what -> why."""
    found = {}
    for variant in sorted({cell.variant for cell in cells}):
        ours = [cell for cell in cells if cell.variant == variant]
        kept = comparable(ours)
        tasks = sorted({cell.task for cell in ours} - {cell.task for cell in kept})
        pairs = {(cell.model, cell.dataset) for cell in ours}
        lacking = len(pairs - {(cell.model, cell.dataset) for cell in kept})
        if tasks:
            found[f"{', '.join(tasks)} in means over tasks of {variant}"] = "fewer than half of the pairs have it"
        if lacking:
            found[f"{lacking} of {len(pairs)} pairs in means over tasks of {variant}"] = "some task is missing"
    return found
