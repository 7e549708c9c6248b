"""The Arrow schemas of a recommendation."""

from __future__ import annotations

import pyarrow as pa

from raysft.store.columns import REAL, TEXT, WHOLE, column

_TASK = column("task", TEXT, "benchmark; all tasks: the mean of gains over their scales")
_SCALED = "over the task's scale"

RECOMMENDATIONS = pa.schema(
    [
        _TASK,
        column("rank", WHOLE, "place of the dataset for this task, 1 = largest predicted gain"),
        column("dataset", TEXT, "training set"),
        column("predicted", REAL, "predicted gain, on the task's own scale"),
        column("low", REAL, "lower end of the prediction interval", source="Barber et al. 2021"),
        column("high", REAL, "upper end of the prediction interval", source="Barber et al. 2021"),
        column("mean_of_others", REAL, "mean gain of the other models on this dataset and task"),
        column("scale", REAL, "what gains are divided by before tasks are averaged"),
        column("level", REAL, "of the interval: as asked for, at most models / (models + 1) of the task", "fraction"),
        column("models", WHOLE, "other models with this gain"),
    ]
)

ACCURACIES = pa.schema(
    [
        _TASK,
        column("n", WHOLE, "(model, dataset) pairs predicted while their model was held out"),
        column("models", WHOLE, "models held out in turn"),
        column(
            "r2",
            REAL,
            "by properties: 1 - squared errors / squared deviations from the mean, over these",
        ),
        column("baseline_r2", REAL, "the same of the mean of the others"),
        column("rank_correlation", REAL, "Spearman's rho of predicted and true gains over datasets, mean over models"),
        column("baseline_rank_correlation", REAL, "the same of the mean of the others"),
        column(
            "regret", REAL, f"gain of the best dataset less that of the one ranked first, mean over models, {_SCALED}"
        ),
        column("baseline_regret", REAL, "the same of the mean of the others"),
    ]
)
