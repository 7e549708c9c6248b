"""What a study knows that bears on a model no trial has seen: gains of others, and properties of base models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysft.study.cells import Cell
from raysft.study.claims.data import LENGTH, PERPLEXITY
from raysft.study.correlate import dataset_properties, task_similarities
from raysft.study.gains import final_gains
from raysft.study.maps import centred
from raysft.study.matrix import pivot
from raysft.study.statistics.new_model import Panel
from raysft.study.tables import Reals, reals

ALL_TASKS = "all tasks"
_NAMED = 12  # names that a message lists

Values = dict[tuple[str, str], float]


class RecommendError(ValueError):
    """A recommendation that cannot be made; the message is one line that says why and what is valid."""


def named(what: str, wanted: Iterable[str], there: Sequence[str]) -> None:
    """RecommendError for the first of `wanted` that is not `there`."""
    for name in wanted:
        if name not in there:
            more = f", and {len(there) - _NAMED} more" if len(there) > _NAMED else ""
            raise RecommendError(f"{what} {name}: not in this study, which has {', '.join(there[:_NAMED])}{more}")


class Known:
    """Gains of the other models, and what is known of every base model before it is trained.

    `others` are the models with gains, `has_trials` whether the model itself is one of the study's. `predictors` are
    empty where nothing is known of the model, and `why_nothing` then says so.
    """

    def __init__(self, cells: Sequence[Cell], gains: pa.Table, sweep: Mapping[str, pa.Table], model: str) -> None:
        self.model = model
        self.has_trials = any(cell.model == model for cell in cells)
        self._cells = [cell for cell in cells if cell.model != model]
        self.others = tuple(sorted({cell.model for cell in self._cells}))
        self.datasets = sorted({cell.dataset for cell in self._cells})
        self.tasks = sorted({cell.task for cell in self._cells})
        final = final_gains(gains)
        self.scales: dict[str, float] = dict(zip(final["task"].to_pylist(), reals(final, "scale"), strict=True))
        self._properties = dataset_properties(sweep["data_properties"]) if "data_properties" in sweep else {}
        self._similarities = task_similarities(sweep["data_properties"]) if "data_properties" in sweep else {}
        self._distances = _distances(sweep.get("log_likelihood"), [*self.others, model])
        self._base_scores = _base_scores(gains, sweep.get("scores"), self.scales)
        self.predictors, self.why_nothing = self._usable()
        if not self._heard_of():
            raise RecommendError(
                f"model {model}: neither trials, properties nor base scores of it are in this study, which has "
                f"{', '.join(self.others[:_NAMED])}; give a model's folder, or --properties FILE with what was measured"
            )
        if len(self.others) < 2:
            raise RecommendError(
                f"model {model}: {len(self.others)} other model in this study; 2 needed to tell how much models differ"
            )

    def narrow(self, datasets: Sequence[str], tasks: Sequence[str]) -> None:
        """Keep these datasets and tasks (all, if empty) that at least two other models have gains on."""
        named("dataset", datasets, self.datasets)
        named("task", tasks, self.tasks)
        self.tasks = list(dict.fromkeys(tasks)) or self.tasks
        models: dict[str, set[str]] = {name: set() for name in self.datasets}
        for cell in self._cells:
            if cell.task in self.tasks:
                models[cell.dataset].add(cell.model)
        lone = [name for name in datasets if len(models[name]) < 2]
        if lone:
            raise RecommendError(f"dataset {lone[0]}: {len(models[lone[0]])} other model has gains on it, 2 needed")
        wanted = list(dict.fromkeys(datasets)) or self.datasets
        self.datasets = [name for name in wanted if len(models[name]) > 1]
        if not self.datasets:
            raise RecommendError("no dataset has gains of two other models")
        self._check_properties(datasets)

    def panels(self) -> dict[str, Panel]:
        """Task -> gains of the other models and, in the last row, NaN for the model; first the mean of all tasks."""
        of = {(cell.task, cell.model, cell.dataset): cell.gain for cell in self._cells}
        gains = {
            task: np.array([[of.get((task, model, name), np.nan) for name in self.datasets] for model in self._models])
            for task in self.tasks
        }
        found = {task: Panel(gains[task], self._x(task), self._used_distances) for task in self.tasks}
        if len(self.tasks) < 2:
            return found
        mean = np.mean([gains[task] for task in self.tasks], axis=0)  # of complete cells alone: tasks differ in level
        if not np.isfinite(mean).any(axis=0).all() or np.isfinite(mean).any(axis=1).sum() < 2:
            return found
        return {ALL_TASKS: Panel(mean, self._x(None), self._used_distances), **found}

    @property
    def _models(self) -> list[str]:
        return [*self.others, self.model]

    @property
    def _used_distances(self) -> Reals | None:
        return self._distances if "log-likelihood vector" in self.predictors else None

    def _heard_of(self) -> bool:
        measured = any(model == self.model for values in self._properties.values() for model, _ in values)
        return self.has_trials or measured or self._distances is not None or self.model in self._base_scores

    def _usable(self) -> tuple[tuple[str, ...], str]:
        """Predictors that the model and all others have, or why there is none."""
        found = [name for names in (PERPLEXITY, LENGTH) if (name := self._first(names)) is not None]
        if self._similarities and self._everyone({model for model, _, _ in self._similarities}):
            found.append("similarity")
        if self._distances is not None:
            found.append("log-likelihood vector")
        if self._everyone(self._base_scores):
            found.append("base score")
        if found:
            return tuple(found), ""
        if self._properties:
            return (), f"the study has properties of datasets, but none under {self.model}"
        return (), "this study has neither properties of datasets nor base scores of every model"

    def _first(self, names: Sequence[str]) -> str | None:
        return next(
            (name for name in names if self._everyone({model for model, _ in self._properties.get(name, {})})), None
        )

    def _everyone(self, models: Iterable[str]) -> bool:
        return set(self._models) <= set(models)

    def _check_properties(self, asked: Sequence[str]) -> None:
        """RecommendError if a dataset lacks a property under the model; datasets that nobody asked for are dropped."""
        for name in self.predictors:
            values = self._properties.get(name)
            lacking = [] if values is None else [one for one in self.datasets if (self.model, one) not in values]
            wanted = [one for one in lacking if one in asked]
            if wanted:
                raise RecommendError(f"dataset {wanted[0]}: no {name} of it under {self.model} was measured")
            self.datasets = [one for one in self.datasets if one not in lacking]
        if not self.datasets:
            raise RecommendError(f"no dataset of this study has properties under {self.model}")

    def _x(self, task: str | None) -> Reals:
        """Predictors of every model and dataset but the likelihood vector, shape (models, datasets, predictors)."""
        columns = [self._column(name, task) for name in self.predictors if name != "log-likelihood vector"]
        return np.stack(columns, axis=2) if columns else np.zeros((len(self._models), len(self.datasets), 0))

    def _column(self, name: str, task: str | None) -> Reals:
        tasks = self.tasks if task is None else [task]

        def value(model: str, dataset: str) -> float:
            if name == "similarity":
                return _mean(self._similarities.get((model, dataset, one), np.nan) for one in tasks)
            if name == "base score":
                return _mean(self._base_scores[model].get(one, np.nan) for one in tasks)
            found = self._properties[name].get((model, dataset), np.nan)
            # Lengths and perplexities differ by factors.
            return (
                float(np.log(found)) if not name.endswith(("nll_per_token", "bits_per_byte")) and found > 0 else found
            )

        return np.array([[value(model, dataset) for dataset in self.datasets] for model in self._models])


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else np.nan


def _distances(log_likelihood: pa.Table | None, models: Sequence[str]) -> Reals | None:
    """About the root of twice the KL divergence between base models, shape (models, models); None if one has no "
    "vector."""
    if log_likelihood is None:
        return None
    base = log_likelihood.filter(pc.is_null(log_likelihood["trial"]))
    base = base.filter(pc.is_in(base["model"], pa.array(models, pa.string())))
    base = base.set_column(base.column_names.index("text"), "text", base["text"].cast(pa.string()))
    found = pivot(base, ("model",), "text", "log_likelihood")
    if set(found.rows) != set(models):
        return None
    whole = np.isfinite(found.values).all(axis=0)
    if not whole.any():
        return None
    vectors = centred(found.values[:, whole])[[found.rows.index(name) for name in models]]
    return np.sqrt(((vectors[:, None] - vectors[None]) ** 2).sum(axis=2) / vectors.shape[1])


def _base_scores(gains: pa.Table, scores: pa.Table | None, scales: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Model -> task -> score of the base model over the task's scale: from the gains, or a model's own base rows."""
    found: dict[str, dict[str, float]] = {}
    final = final_gains(gains)
    rows = list(zip(final["model"].to_pylist(), final["task"].to_pylist(), reals(final, "base"), strict=True))
    metrics = dict(zip(final["task"].to_pylist(), final["metric"].to_pylist(), strict=True))
    if scores is not None and scores.num_rows:
        base = scores.filter(pc.is_null(scores["trial"])).select(["model", "task", "metric", "value"]).to_pylist()
        rows += [
            (row["model"], row["task"], row["value"])
            for row in base
            if row["value"] is not None and metrics.get(row["task"]) == row["metric"]
        ]
    for model, task, value in rows:
        if np.isfinite(value):
            found.setdefault(model, {})[task] = float(value) / scales[task]
    return found
