"""The Arrow schemas of what is made of released scores (`raysft study --released`)."""

from __future__ import annotations

import pyarrow as pa

from raysft.store.columns import REAL, TEXT, WHOLE, column
from raysft.study.schema import LINKAGE, LINT

_CAMERON = "Cameron, Gelbach and Miller 2011"

RELEASED_GAINS = pa.schema(
    [
        column("model", TEXT, "base model"),
        column("dataset", TEXT, "training set"),
        column("method", TEXT, "full, lora, ..."),
        column("epoch", WHOLE, "epoch at whose end the checkpoint was taken", "epochs"),
        column("size", WHOLE, "training rows", "rows"),
        column("schedule", TEXT, "learning rate schedule"),
        column("task", TEXT, "benchmark, as its column is called"),
        column("base", REAL, "score of the base model, on the benchmark's own scale"),
        column("score", REAL, "score of the checkpoint, on the benchmark's own scale"),
        column("gain", REAL, "score - base, on the benchmark's own scale"),
    ]
)

RELEASED_SIMILARITY = pa.schema(
    [
        column(
            "kind",
            TEXT,
            "task or dataset: gain vectors; model_by_task or model_by_dataset: lower triangles of each model's own "
            "similarity of tasks or datasets",
        ),
        column("a", TEXT, "name"),
        column("b", TEXT, "name"),
        column("r", REAL, "Pearson correlation of the two vectors, pairwise complete; null where it is not defined"),
        column("n", WHOLE, "entries that both vectors have"),
    ]
)

PCA = pa.schema(
    [
        column("scaling", TEXT, "of each task's gains: raw, minmax to -1 to 1, or zscore"),
        column("component", WHOLE, "principal component, from 1"),
        column("cumulative", REAL, "variance explained by this and all before", "fraction"),
    ]
)

PAIRS = pa.schema(
    [
        column("task", TEXT, "benchmark"),
        column("n", WHOLE, "pairs of a full and a LoRA fine-tuning that agree in all else"),
        column("mean_difference", REAL, "mean of full - LoRA, on the benchmark's own scale"),
        column("low", REAL, "lower end of the 95% interval, errors clustered by model and by dataset", "", _CAMERON),
        column("high", REAL, "upper end of the 95% interval, errors clustered by model and by dataset", "", _CAMERON),
        column("p", REAL, "two-sided p of no difference from the same errors, Student's t"),
        column("q", REAL, "p after Benjamini and Hochberg over the tasks", "", "Benjamini and Hochberg 1995"),
    ]
)

PREDICTION = pa.schema(
    [
        column("target", TEXT, "gain on one task, or all: scaled gains on every task"),
        column("predictors", TEXT, "what the gain is predicted from"),
        column("split", TEXT, "leave_one_model_out or leave_one_dataset_out"),
        column("r2", REAL, "1 - squared error / variance of the held-out gains, folds pooled; negative = worse than 0"),
        column("baseline_r2", REAL, "the same of the mean of the others in the same cell"),
    ]
)

RELEASED_TABLES: dict[str, pa.Schema] = {
    "gains": RELEASED_GAINS,
    "similarity": RELEASED_SIMILARITY,
    "linkage": LINKAGE,
    "pca": PCA,
    "pairs": PAIRS,
    "prediction": PREDICTION,
    "lint": LINT,
}
