"""The Arrow schemas of the tables of tests: names, types, units and where each number comes from."""

from __future__ import annotations

import pyarrow as pa

from raysft.store.columns import FLAG, REAL, TEXT, WHOLE, column

_VARIANT = column("variant", TEXT, "method, and whatever else differs between trials of that method: size, epochs, ...")
_SCOPE = column("scope", TEXT, "gain over all, matching or other tasks, or of one task")
_TASK = column("task", TEXT, "the task, where the scope is one task")
_REASON = column("reason", TEXT, "why a number is null")

TEST_COLUMNS: tuple[pa.Field, ...] = (
    column("permutation_p", REAL, "two-sided p of pearson, whole models and whole datasets permuted"),
    column("permutation_q", REAL, "permutation_p after Benjamini-Hochberg over the rows of one variant and scope"),
    column("pearson_low", REAL, "pearson: lower end of the 95% two-way bootstrap interval", source="Owen 2007"),
    column("pearson_high", REAL, "pearson: upper end of the 95% two-way bootstrap interval", source="Owen 2007"),
    column("within_q", REAL, "within_p after Benjamini-Hochberg over the rows of one variant and scope"),
    column("within_low", REAL, "within: lower end of the 95% two-way bootstrap interval; wide", source="Owen 2007"),
    column("within_high", REAL, "within: upper end of the 95% two-way bootstrap interval; wide", source="Owen 2007"),
    column("mixed_slope", REAL, "slope with random intercepts of model and dataset (REML)"),
    column("mixed_stderr", REAL, "standard error of mixed_slope"),
    column("mixed_df", REAL, "degrees of freedom of the strata in which the predictor varies, combined"),
    column("mixed_p", REAL, "two-sided p of mixed_slope, Student's t"),
    column("mixed_q", REAL, "mixed_p after Benjamini-Hochberg over the rows of one variant and scope"),
    column("tests_reason", TEXT, "why an interval or a mixed-effects number is null"),
)

LAYER_TESTS = pa.schema(
    [
        _VARIANT,
        _SCOPE,
        _TASK,
        column("effects", TEXT, "none: plain correlation; fixed: given model and dataset"),
        column("depth", REAL, "depth of the weight change", "fraction"),
        column("n", WHOLE, "(model, dataset) pairs"),
        column("layers", WHOLE, "depths that were compared"),
        column("r", REAL, "correlation of weight change at this depth with gain"),
        column("strongest", FLAG, "whether |r| is the largest of all depths"),
        column("p", REAL, "two-sided p of this depth by itself, whole models and datasets permuted"),
        column("p_max", REAL, "p adjusted for taking the strongest of all depths", source="Westfall and Young 1993"),
        column(
            "q",
            REAL,
            "of the strongest depth, p_max after Benjamini-Hochberg over scopes and tasks of one variant and effects",
        ),
        column("permutations", WHOLE, "permutations tried"),
        column("exact", FLAG, "whether these were all there are"),
        column("chosen", REAL, "share of two-way bootstrap resamples in which this depth is the strongest", "fraction"),
        _REASON,
    ]
)

NOISE_CEILINGS = pa.schema(
    [
        _VARIANT,
        _SCOPE,
        _TASK,
        column("effects", TEXT, "none: of plain correlations; fixed: of those given model and dataset"),
        column("n", WHOLE, "(model, dataset) pairs whose gain has a standard error"),
        column("variance", REAL, "variance of the scaled gains, or of what fixed effects leave of them"),
        column("item_noise", REAL, "mean variance of their errors, from standard errors over items"),
        column("seed_noise", REAL, "the same from seeds: variance between them over their number; null with one seed"),
        column("seed_df", WHOLE, "degrees of freedom of seed_noise"),
        column("reliability", REAL, "1 - larger noise / variance, at least 0: the ceiling of an R2"),
        column("ceiling", REAL, "sqrt(reliability): the ceiling of a correlation", source="Spearman 1904"),
        _REASON,
    ]
)

_CAMERON = "Cameron, Gelbach and Miller 2011"

PAIRS = pa.schema(
    [
        column("task", TEXT, "task"),
        column("first", TEXT, "method"),
        column("second", TEXT, "method"),
        column("n", WHOLE, "pairs of a trial of each that agree in model, dataset, size, schedule, epoch and seed"),
        column("models", WHOLE, "base models among the pairs"),
        column("datasets", WHOLE, "datasets among the pairs"),
        column("mean_difference", REAL, "mean of the gain under first - that under second, on the task's own scale"),
        column("scale", REAL, "scale of the task, as in gains"),
        column("stderr", REAL, "its standard error, clustered by model and by dataset", "", _CAMERON),
        column("df", WHOLE, "degrees of freedom of stderr: the fewer of models and datasets, less one"),
        column("low", REAL, "lower end of the 95% interval, errors clustered by model and by dataset", "", _CAMERON),
        column("high", REAL, "upper end of the 95% interval, errors clustered by model and by dataset", "", _CAMERON),
        column("p", REAL, "two-sided p of no difference from the same errors, Student's t"),
        column("q", REAL, "p after Benjamini-Hochberg over the tasks of one pair of methods"),
        column("t_p", REAL, "p of the paired t test, which takes pairs as independent"),
        column("wilcoxon_p", REAL, "p of the signed-rank test, which takes pairs as independent"),
        _REASON,
    ]
)

PREDICTION = pa.schema(
    [
        _VARIANT,
        column("target", TEXT, "what is predicted: gain over all, matching or other tasks, or a task's name"),
        column(
            "predictors",
            TEXT,
            "base score and properties of the data in the base model's eyes, joined by ' + ', or mean of the others",
        ),
        column("form", TEXT, "alone: by the predictors; added: mean of the others, corrected by them; or baseline"),
        column("split", TEXT, "leave_one_model_out or leave_one_dataset_out"),
        column("n", WHOLE, "(model, dataset) pairs predicted while held out"),
        column("groups", WHOLE, "models or datasets held out in turn"),
        column("r2", REAL, "1 - squared errors / squared deviations from the mean, over the held-out pairs"),
        column("baseline_r2", REAL, "the same for the mean of the others"),
        column("rmse", REAL, "root mean squared error, scaled gain"),
        column("baseline_rmse", REAL, "the same for the mean of the others"),
        column("skill", REAL, "1 - squared errors / squared errors of the mean of the others; above 0 is better"),
        column("skill_low", REAL, "lower end of its 95% interval, held-out groups resampled"),
        column("skill_high", REAL, "upper end of its 95% interval, held-out groups resampled"),
        _REASON,
    ]
)

MATRIX_COMPARISONS = pa.schema(
    [
        column("kind", TEXT, "what the matrices are over: task, dataset or model"),
        column("a", TEXT, "one matrix"),
        column("b", TEXT, "the other"),
        column("n", WHOLE, "tasks, datasets or models that have every entry in both"),
        column("r", REAL, "Pearson's r of the entries below the diagonals"),
        column("spearman", REAL, "Spearman's rho of them"),
        column("p", REAL, "two-sided p of r, rows and columns permuted together", source="Mantel 1967"),
        column("permutations", WHOLE, "permutations tried"),
        column("exact", FLAG, "whether these were all there are"),
        column("q", REAL, "p after Benjamini-Hochberg over the table"),
        _REASON,
    ]
)
