"""What claims are decided on: the study's tables, and the one variant that each claim is decided in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysft.study.cells import Cell, gain_cells
from raysft.study.gains import final_gains
from raysft.study.matrix import pivot
from raysft.study.schema import STUDY_TABLES
from raysft.study.tables import Reals, reals

Row = dict[str, Any]
_NEARLY = 0.8


@dataclass(frozen=True)
class Evidence:
    """The tables of one study by name; one that is not there has no rows."""

    tables: Mapping[str, pa.Table]

    def rows(self, name: str, **equal: object) -> list[Row]:
        """Rows of a table whose columns equal the values; none where it lacks one of these columns."""
        table = self.tables.get(name)
        if table is None or not set(equal) <= set(table.column_names):
            return []
        for column, value in equal.items():
            here = pc.is_null(table[column]) if value is None else pc.equal(table[column], value)
            table = table.filter(here)
        return table.to_pylist()

    @cached_property
    def gains(self) -> pa.Table:
        """Final gains of every task's primary metric."""
        return final_gains(self.tables.get("gains", STUDY_TABLES["gains"].empty_table()))

    @cached_property
    def cells(self) -> list[Cell]:
        return gain_cells(self.gains) if self.gains.num_rows else []

    @cached_property
    def variant(self) -> str | None:
        """The main variant: of those with nearly the most (model, dataset) pairs a full fine-tuning, if there is one.

        The paper's claims are about full fine-tuning, so a cell that is missing should not decide for another method.
        """
        pairs: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for cell in self.cells:
            pairs[cell.variant].add((cell.model, cell.dataset))
        most = max(map(len, pairs.values()), default=0)
        large = [name for name in pairs if len(pairs[name]) >= _NEARLY * most]
        return min(large, key=lambda name: (not is_full(name), -len(pairs[name]), name), default=None)

    @cached_property
    def main(self) -> list[Cell]:
        """The cells of the main variant."""
        return [cell for cell in self.cells if cell.variant == self.variant]

    @property
    def others(self) -> list[str]:
        """The other variants, sorted."""
        return sorted({cell.variant for cell in self.cells} - {self.variant})

    @property
    def models(self) -> list[str]:
        return sorted({cell.model for cell in self.main})

    @property
    def datasets(self) -> list[str]:
        return sorted({cell.dataset for cell in self.main})

    @property
    def tasks(self) -> list[str]:
        return sorted({cell.task for cell in self.main})

    def of_task(self, task: str) -> dict[tuple[str, str], float]:
        """(model, dataset) -> scaled gain on one task, main variant."""
        return {(cell.model, cell.dataset): cell.gain for cell in self.main if cell.task == task}

    def curves(self) -> list[Row]:
        """Rows of `epoch_gains` of the models, methods and tasks studied: that table is of a whole file of scores.

        What was planned over sizes and epochs is mostly beside the main slice, so those are not chosen from.
        """
        columns = ("model", "method", "task")
        chosen = {name: set(self.gains[name].to_pylist()) for name in columns}
        return [
            row
            for row in self.rows("epoch_gains")
            if row["scaled_gain"] is not None and all(row[name] in chosen[name] for name in columns)
        ]

    @cached_property
    def scales(self) -> dict[str, float]:
        """Task -> scale that its gains are divided by before they are compared with other tasks'."""
        return dict(zip(self.gains["task"].to_pylist(), reals(self.gains, "scale"), strict=True))

    def complete_trials(self) -> tuple[list[tuple[str, str]], Reals]:
        """(model, dataset) of every fine-tuning with all tasks, and its gains, shape (trials, tasks)."""
        found = pivot(self.gains, ("trial",), "task", "scaled_gain")
        rows = self.gains.select(["trial", "model", "dataset"]).to_pylist()
        of = {str(row["trial"]): (row["model"], row["dataset"]) for row in rows}
        whole = np.asarray(np.isfinite(found.values).all(axis=1))
        return [of[name] for name, there in zip(found.rows, whole, strict=True) if there], found.values[whole]


def method_of(variant: str) -> str:
    """The method that a variant's name begins with."""
    return variant.partition(",")[0].strip().lower()


def is_lora(variant: str) -> bool:
    """Whether a variant is LoRA, by the name of its method."""
    return "lora" in method_of(variant)


def is_full(variant: str) -> bool:
    """Whether a variant is full fine-tuning, by the name of its method."""
    return "full" in method_of(variant)
