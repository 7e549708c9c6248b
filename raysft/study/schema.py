"""The Arrow schemas of the study's tables: names, types, units and where each number comes from."""

from __future__ import annotations

import pyarrow as pa

from raysft.store.columns import FLAG, REAL, TEXT, WHOLE, column
from raysft.store.schema import IDENTITY
from raysft.study.claims.schema import CLAIMS
from raysft.study.statistics.schema import (
    LAYER_TESTS,
    MATRIX_COMPARISONS,
    NOISE_CEILINGS,
    PAIRS,
    PREDICTION,
    TEST_COLUMNS,
)

_VARIANT = column("variant", TEXT, "method, and whatever else differs between trials of that method: size, epochs, ...")
_FINAL = column("final", FLAG, "whether this is the trial's last measured epoch")

GAINS = pa.schema(
    [
        *IDENTITY,
        _VARIANT,
        _FINAL,
        column("task", TEXT, "lm-eval task"),
        column("metric", TEXT, "lm-eval metric and filter"),
        column("primary", FLAG, "whether this is the metric the study uses for the task"),
        column("matching", FLAG, "whether the names of dataset and task share a stem"),
        column("base", REAL, "score of the base model, on the task's own scale"),
        column("score", REAL, "score of the checkpoint, on the task's own scale"),
        column("gain", REAL, "score - base, or base - score where lower is better; positive = better"),
        column("base_stderr", REAL, "standard error of the base model's score, floored (see docs/study.md)"),
        column("score_stderr", REAL, "standard error of the checkpoint's score, floored (see docs/study.md)"),
        column("stderr", REAL, "sqrt(base_stderr^2 + score_stderr^2)"),
        column("z", REAL, "gain / stderr; null where stderr is null or zero"),
        column("scale", REAL, "1 or 100 of a share of items, else the smallest power of ten that holds every score"),
        column("scaled_gain", REAL, "gain / scale: what is averaged over tasks and correlated"),
        column("bits_gain", REAL, "fall in bits per byte of the gold answers; positive = better", "bits/byte"),
    ]
)

GAIN_MATRIX = pa.schema(
    [
        _VARIANT,
        column("dataset", TEXT, "training set"),
        column("task", TEXT, "lm-eval task"),
        column("matching", FLAG, "whether the names of dataset and task share a stem"),
        column("gain", REAL, "mean over models of the mean over seeds of the final gain"),
        column("stderr", REAL, "item-sampling standard error of that mean; seeds share their base model's error"),
        column("z", REAL, "gain / stderr; null where stderr is null or zero"),
        column("scaled_gain", REAL, "the same mean of scaled_gain"),
        column("bits_gain", REAL, "the same mean of bits_gain", "bits/byte"),
        column("models", WHOLE, "base models averaged"),
        column("cells", WHOLE, "checkpoints averaged"),
    ]
)

EPOCH_GAINS = pa.schema(
    [
        column("model", TEXT, "base model"),
        column("method", TEXT, "full, lora, ..."),
        column("learning_rate", REAL, "peak learning rate"),
        column("schedule", TEXT, "learning rate schedule"),
        column("epochs", WHOLE, "epochs the trials were planned for; null where not known", "epochs"),
        column("size", WHOLE, "training rows; null = all of the dataset", "rows"),
        column("epoch", WHOLE, "epoch at whose end the checkpoints were taken", "epochs"),
        column("task", TEXT, "task"),
        column("gain", REAL, "mean over datasets of the mean over seeds of the gain, on the task's own scale"),
        column("scaled_gain", REAL, "the same mean of scaled_gain"),
        column("stderr", REAL, "standard error of scaled_gain from its spread over datasets; null with one dataset"),
        column("datasets", WHOLE, "datasets averaged: those that have every epoch of the curve"),
        column(
            "same_datasets", FLAG, "whether curves of all sizes of such trials and this task are over the same ones"
        ),
    ]
)

_KIND = column(
    "kind",
    TEXT,
    "task, dataset or model: of gain vectors; model_by_task or model_by_dataset: of the lower triangles of each "
    "model's own similarity of tasks or of datasets",
)

SIMILARITY = pa.schema(
    [
        _KIND,
        column("a", TEXT, "name"),
        column("b", TEXT, "name"),
        column("r", REAL, "Pearson correlation of the two vectors, pairwise complete"),
        column("n", WHOLE, "entries that both vectors have"),
        column("reason", TEXT, "why r is null"),
    ]
)

LINKAGE = pa.schema(
    [
        _KIND,
        column("step", WHOLE, "merge, from 0"),
        column("left", WHOLE, "cluster, numbered as in scipy.cluster.hierarchy.linkage"),
        column("right", WHOLE, "cluster, numbered as in scipy.cluster.hierarchy.linkage"),
        column("left_name", TEXT, "name, where the cluster is one task, dataset or model"),
        column("right_name", TEXT, "name, where the cluster is one task, dataset or model"),
        column("distance", REAL, "average of 1 - r between the two clusters"),
        column("count", WHOLE, "leaves of the new cluster"),
    ]
)

PCA = pa.schema(
    [
        column("scaling", TEXT, "of each task's gains: raw (on its own scale), minmax to -1 to 1, or zscore"),
        column("component", WHOLE, "principal component of trials x tasks, from 1"),
        column("cumulative", REAL, "variance explained by this and all before", "fraction"),
    ]
)

CORRELATIONS = pa.schema(
    [
        column("predictor", TEXT, "a data property, similarity, or weight_change"),
        column("depth", REAL, "depth of the weight change; null for properties of data", "fraction"),
        _VARIANT,
        column("scope", TEXT, "gain over all, matching or other tasks; one task; or cells (model, dataset, task)"),
        column("task", TEXT, "the task, where the scope is one task"),
        column("n", WHOLE, "points"),
        column("models", WHOLE, "base models among the points"),
        column("datasets", WHOLE, "datasets among the points"),
        column("pearson", REAL, "plain Pearson correlation: confounded by model and dataset"),
        column("spearman", REAL, "plain Spearman correlation"),
        column("slope", REAL, "least-squares slope of gain on the predictor"),
        column("within", REAL, "partial correlation given model and dataset (and task, for cells)"),
        column("within_slope", REAL, "slope with model and dataset fixed effects (the within estimator)"),
        column("within_df", WHOLE, "residual degrees of freedom of the fixed-effects fit"),
        column("within_p", REAL, "two-sided p of within_slope, Student's t"),
        column("reason", TEXT, "why a coefficient is null"),
        *TEST_COLUMNS,
    ]
)

WEIGHT_CHANGE_BY_DEPTH = pa.schema(
    [
        *IDENTITY,
        _VARIANT,
        _FINAL,
        column("layer", WHOLE, "index of the transformer layer"),
        column("depth", REAL, "layer / (layers - 1)", "fraction"),
        column("relative_change", REAL, "sqrt(sum change_norm^2) / sqrt(sum base_norm^2) over the layer's tensors"),
        column("tensors", WHOLE, "tensors pooled"),
    ]
)

LAYER_SIMILARITY = pa.schema(
    [
        _VARIANT,
        column("a", TEXT, "base model"),
        column("b", TEXT, "base model"),
        column("depth", REAL, "depth in the stack; null: the mean curve over all depths", "fraction"),
        column("r", REAL, "Pearson correlation of the two models' weight changes over datasets, or of their curves"),
        column("n", WHOLE, "datasets, or depths, that both have"),
        column("reason", TEXT, "why r is null"),
    ]
)

UPDATE_SIMILARITY = pa.schema(
    [
        column("model", TEXT, "base model that both trials have"),
        column("layer", WHOLE, "index of the transformer layer; null for the whole model"),
        column("depth", REAL, "layer / (layers - 1); null for the whole model", "fraction"),
        column("trial_a", TEXT, "key of one fine-tuning"),
        column("dataset_a", TEXT, "its training set"),
        column("variant_a", TEXT, "its variant"),
        column("seed_a", WHOLE, "its seed"),
        column("trial_b", TEXT, "key of the other fine-tuning"),
        column("dataset_b", TEXT, "its training set"),
        column("variant_b", TEXT, "its variant"),
        column("seed_b", WHOLE, "its seed"),
        column("cosine", REAL, "cosine of W' - W of the two at their last measured epoch, from sketches"),
        column("stderr", REAL, "standard error of the cosine from its sketches, rather too large than too small"),
        column(
            "left_overlap",
            REAL,
            "share of the 4 leading output directions that both have, mean over tensors, from sketches: 0 = unrelated",
            source="Hu et al. 2021, section 7.2",
        ),
        column("right_overlap", REAL, "the same of the leading input directions", source="Hu et al. 2021, section 7.2"),
    ]
)

UPDATE_SIMILARITY_MEANS = pa.schema(
    [
        column("kind", TEXT, "dataset: pairs of trials of one variant; variant: pairs of one dataset"),
        column("a", TEXT, "dataset or variant"),
        column("b", TEXT, "dataset or variant; equal to a for trials that differ in their seed"),
        column("cosine", REAL, "mean over pairs and base models of the cosine of whole updates"),
        column("left_overlap", REAL, "the same mean of left_overlap"),
        column("right_overlap", REAL, "the same mean of right_overlap"),
        column("pairs", WHOLE, "pairs averaged"),
    ]
)

INTRINSIC_DIMENSION_BY_DEPTH = pa.schema(
    [
        *IDENTITY,
        _VARIANT,
        _FINAL,
        column("texts_of", TEXT, "dataset whose training texts were embedded"),
        column("estimator", TEXT, "twonn, mle or gride"),
        column("scale", WHOLE, "neighbours the estimate looks at"),
        column("layer", WHOLE, "hidden state: 0 = embeddings, i = output of layer i"),
        column("depth", REAL, "layer / layers", "fraction"),
        column("before", REAL, "intrinsic dimension in the base model"),
        column("after", REAL, "intrinsic dimension in the checkpoint"),
        column("change", REAL, "after - before; null where n and base_n differ, since only at equal n they compare"),
        column("n", WHOLE, "texts used in the checkpoint", "texts"),
        column("base_n", WHOLE, "texts used in the base model", "texts"),
    ]
)

_OYAMA = "Oyama et al. 2025"

MAP = pa.schema(
    [
        *IDENTITY,
        _VARIANT,
        column("x", REAL, "first coordinate of the map", source=_OYAMA),
        column("y", REAL, "second coordinate of the map", source=_OYAMA),
        column("projection", TEXT, "tsne or pca"),
        column("perplexity", REAL, "t-SNE's perplexity; null for PCA"),
        column("texts", WHOLE, "texts of the log-likelihood vectors"),
        column("clipped_below", REAL, "log-likelihoods below this, 2% of all, were raised to it", "nats", _OYAMA),
        column("mean_log_likelihood", REAL, "mean over the texts, before clipping", "nats per text"),
        column("from_base", REAL, "||q - q_base||^2 / texts, about twice the KL from its base", "nats", _OYAMA),
        column("kl_from_base", REAL, "from_base / 2 / mean bytes of a text / ln 2", "bits per byte", _OYAMA),
    ]
)

MAP_LAYOUTS = pa.schema(
    [
        *IDENTITY,
        _VARIANT,
        column("projection", TEXT, "pca, tsne, or umap where umap-learn is installed"),
        column("x", REAL, "first coordinate"),
        column("y", REAL, "second coordinate"),
        column("scale", REAL, "t-SNE's perplexity or UMAP's neighbours; null for PCA"),
        column("projection_seed", WHOLE, "seed of the projection; null for PCA"),
    ]
)

TRAJECTORIES = pa.schema(
    [
        *IDENTITY,
        _VARIANT,
        column(
            "from_epoch", WHOLE, "epoch that the step starts from, 0 = the base model; it ends at `epoch`", "epochs"
        ),
        column("two_kl", REAL, "||q - q_from||^2 / texts of the step: about twice its KL divergence", "nats", _OYAMA),
        column("from_start", REAL, "the same from the trial's first known epoch, the base if it is there", "nats"),
        column("cosine_to_previous", REAL, "cosine of the step and the one before it; null for the first"),
        column("cosine_to_total", REAL, "cosine of the step and the way from the first known epoch to the last"),
        column("straightness", REAL, "distance from the first known epoch over the length of the path until here"),
    ]
)

MAP_DISTANCES = pa.schema(
    [
        column("a", TEXT, "name of a row of the map: model, or model / dataset / variant / seed / epoch"),
        column("b", TEXT, "name of a row of the map"),
        column("two_kl", REAL, "||q_a - q_b||^2 / texts: about twice the KL divergence per text", "nats", _OYAMA),
        column("kl", REAL, "estimate of the KL divergence: two_kl / 2 / mean bytes of a text / ln 2", "bits per byte"),
    ]
)

CHECKS = pa.schema(
    [
        column("check", TEXT, "what was counted"),
        column("value", REAL, "the count"),
        column("of", REAL, "out of how many; null where there is no whole"),
        column("note", TEXT, "what it means, or why something was left out"),
    ]
)

LINT = pa.schema(
    [
        column("check", TEXT, "what was looked for"),
        column(
            "severity", TEXT, "error: numbers are wrong; warning: they say less than they seem to; note: not checked"
        ),
        column("subject", TEXT, "rows, column, trials or table that it was found in"),
        column("detail", TEXT, "what was found, with its numbers"),
    ]
)

STUDY_TABLES: dict[str, pa.Schema] = {
    "gains": GAINS,
    "gain_matrix": GAIN_MATRIX,
    "epoch_gains": EPOCH_GAINS,
    "similarity": SIMILARITY,
    "linkage": LINKAGE,
    "pca": PCA,
    "pairs": PAIRS,
    "correlations": CORRELATIONS,
    "layer_tests": LAYER_TESTS,
    "matrix_comparisons": MATRIX_COMPARISONS,
    "noise_ceilings": NOISE_CEILINGS,
    "prediction": PREDICTION,
    "weight_change_by_depth": WEIGHT_CHANGE_BY_DEPTH,
    "layer_similarity": LAYER_SIMILARITY,
    "update_similarity": UPDATE_SIMILARITY,
    "update_similarity_means": UPDATE_SIMILARITY_MEANS,
    "intrinsic_dimension_by_depth": INTRINSIC_DIMENSION_BY_DEPTH,
    "map": MAP,
    "map_distances": MAP_DISTANCES,
    "map_layouts": MAP_LAYOUTS,
    "trajectories": TRAJECTORIES,
    "checks": CHECKS,
    "lint": LINT,
    "claims": CLAIMS,
}
