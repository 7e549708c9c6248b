"""The table `scores` as one sheet: a row for each checkpoint, a column for each task and metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysft.study.tables import Reals, reals

FIELDS = ("model", "dataset", "method", "size", "schedule", "seed", "epoch")
_ROW = ("trial", "epoch", "model")


@dataclass(frozen=True)
class Sheet:
    """Scores of checkpoints: `values` has shape (rows, columns), NaN where nothing was measured.

    `subjects` holds what `FIELDS` says of each row and its `trial`, null for a base model.
    """

    subjects: tuple[Mapping[str, object], ...]
    columns: tuple[str, ...]
    values: Reals

    @property
    def tuned(self) -> npt.NDArray[np.bool_]:
        """Which rows are fine-tunings, shape (rows,)."""
        return np.array([subject["trial"] is not None for subject in self.subjects], dtype=bool)

    def column(self, name: str) -> Reals:
        """Scores of one column, shape (rows,)."""
        return self.values[:, self.columns.index(name)]

    def label(self, row: int) -> str:
        """`model / dataset / method / 1000 rows / cosine / seed 0 / epoch 10`, without what is not known."""
        return label_of(self.subjects[row])


def label_of(subject: Mapping[str, object]) -> str:
    """The name of a checkpoint with the columns `FIELDS` and `trial`."""
    if subject["trial"] is None:
        return f"{subject['model']} (base)"
    words = {"size": "{} rows", "seed": "seed {}", "epoch": "epoch {}"}
    known = [(name, subject[name]) for name in FIELDS if subject[name] is not None]
    return " / ".join(words.get(name, "{}").format(value) for name, value in known)


def score_sheet(scores: pa.Table) -> Sheet:
    """The sheet of a table `scores`, rows and columns in the order in which they first appear; doubles are averaged."""
    tasks, metrics = scores["task"].to_pylist(), scores["metric"].to_pylist()
    several = with_several_metrics(tasks, metrics)
    names = [f"{task} {metric}" if task in several else str(task) for task, metric in zip(tasks, metrics, strict=True)]
    keys = list(zip(*(scores[name].to_pylist() for name in _ROW), strict=True))
    row_at = {key: at for at, key in enumerate(dict.fromkeys(keys))}
    column_at = {name: at for at, name in enumerate(dict.fromkeys(names))}
    first = {row_at[key]: place for place, key in reversed(list(enumerate(keys)))}
    subjects = scores.select(["trial", *FIELDS]).take(pa.array([first[at] for at in range(len(row_at))], pa.int64()))
    values = _filled(
        [row_at[key] for key in keys], [column_at[name] for name in names], reals(scores, "value"), len(row_at)
    )
    return Sheet(tuple(subjects.to_pylist()), tuple(column_at), values[:, : len(column_at)])


def with_several_metrics(tasks: Iterable[str], metrics: Iterable[str]) -> set[str]:
    """Tasks that are scored by more than one metric."""
    counts = Counter(task for task, _ in set(zip(tasks, metrics, strict=True)))
    return {task for task, count in counts.items() if count > 1}


def _filled(rows: list[int], columns: list[int], values: Reals, row_count: int) -> Reals:
    shape = (row_count, max(columns, default=-1) + 1)
    total, count = np.zeros((2, *shape))
    known = np.isfinite(values)
    at = (np.array(rows, dtype=np.intp)[known], np.array(columns, dtype=np.intp)[known])
    np.add.at(total, at, values[known])
    np.add.at(count, at, 1.0)
    return np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
