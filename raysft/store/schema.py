"""The Arrow schemas of every result and table: names, types, units and where each number comes from.

A result file holds the payload columns of its stage (`RESULTS`). The reducer puts the identity columns of the subject
in front (`IDENTITY`) and writes one table per schema in `TABLES`. Raise `SCHEMA_VERSION` when a column changes meaning
or type; adding a nullable column does not need it, because readers pass the schema and fill what is missing with null.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import pyarrow as pa

from raysft.store.columns import FLAG, REAL, TEXT, WHOLE, column
from raysft.store.probe_schemas import (
    CONTAMINATION,
    DATA_PROPERTIES,
    EMBED,
    EXAMPLES,
    INTRINSIC_DIMENSION,
    LOG_LIKELIHOOD,
    NEIGHBOURS,
    PERPLEXITY,
    SKETCHES,
    WEIGHT_CHANGE,
    WEIGHT_SKETCHES,
)

SCHEMA_VERSION = 1


IDENTITY = pa.schema(
    [
        column("trial", TEXT, "key of the fine-tuning; null for a base model"),
        column("model", TEXT, "base model, by its name in the sweep"),
        column("dataset", TEXT, "training set, by its name in the sweep; null for a base model"),
        column("method", TEXT, "method, by its name in the sweep; null for a base model"),
        column("size", WHOLE, "training rows asked for (for a mixture: of each member); null for all rows", "rows"),
        column("learning_rate", REAL, "peak learning rate; null for a base model"),
        column("schedule", TEXT, "learning rate schedule: cosine or constant; null for a base model"),
        column("epochs", WHOLE, "epochs the trial was planned for; null for a base model", "epochs"),
        column("seed", WHOLE, "seed of the trial; null for a base model"),
        column("epoch", WHOLE, "epoch at whose end the checkpoint was taken; 0 = the base model", "epochs"),
        column("template", TEXT, "digest of the training texts' prompt template; null for a base model"),
    ]
)

# Rows of every table are in this order, nulls first, and those of one subject as its results have them.
SORTED_BY = [*(name for name in IDENTITY.names if name != "trial"), "trial"]

TRAINING = pa.schema(
    [
        column("at_epoch", WHOLE, "epoch, from 1", "epochs"),
        column("step", WHOLE, "optimiser steps taken when the epoch ended", "steps"),
        column("loss", REAL, "mean loss of the epoch over its supervised tokens", "nats per token"),
        column("last_loss", REAL, "loss of the epoch's last global batch, before its step", "nats per token"),
        column("grad_norm", REAL, "mean global gradient norm of the epoch, before clipping"),
        column("tokens", WHOLE, "tokens of the epoch, padding not counted", "tokens"),
        column("supervised_tokens", WHOLE, "tokens of the epoch with a loss", "tokens"),
        column("rows", WHOLE, "training rows of the epoch", "rows"),
        column("dropped_rows", WHOLE, "rows left out because max_length left them no supervised token", "rows"),
        column("oom_retries", WHOLE, "steps of the epoch repeated with half the token budget"),
    ]
)

DIVERGENCE = pa.schema(
    [
        column("in_epoch", WHOLE, "epoch, from 1, in which the loss or gradient was not finite", "epochs"),
        column("at_step", WHOLE, "optimiser step, from 1, that was not taken", "steps"),
        column("loss", REAL, "summed loss of that global batch", "nats"),
        column("grad_norm", REAL, "norm of its gradient; not a number where it was not computed"),
    ]
)

_SAMPLE = pa.struct(
    [
        pa.field("doc", WHOLE),
        pa.field("doc_hash", TEXT),
        pa.field("value", REAL),
        pa.field("extracted", FLAG),
        pa.field("gold_bits", REAL),
        pa.field("gold_bytes", WHOLE),
        pa.field("response", TEXT),
        pa.field("degenerate", TEXT),
    ]
)

SCORE_COLUMNS = [
    column("task", TEXT, "lm-eval task"),
    column("metric", TEXT, "lm-eval metric and filter, as metric or metric,filter"),
    column("value", REAL, "score on the task's own scale"),
    column("stderr", REAL, "standard error of the score over the task's items"),
    column("n", WHOLE, "items scored"),
    column("higher_is_better", FLAG, "whether a larger value is a better model"),
    column("chance", REAL, "score of a uniform guess; null where guessing scores nothing meaningful"),
    column("unextracted", REAL, "share of answers from which the task could extract nothing", "fraction"),
    column(
        "degenerate", REAL, "share of generated answers that are empty, repeat themselves or do not end", "fraction"
    ),
    column(
        "bits_per_byte",
        REAL,
        "information in the gold answers given their prompts, over the gold answers' UTF-8 bytes",
        "bits per byte",
    ),
]

EVALUATE = pa.schema([*SCORE_COLUMNS, column("samples", pa.list_(_SAMPLE), "one outcome for each item of the task")])
SCORES = pa.schema(SCORE_COLUMNS)
SAMPLES = pa.schema(
    [
        column("task", TEXT, "lm-eval task"),
        column("metric", TEXT, "lm-eval metric and filter"),
        column("doc", WHOLE, "index of the item in the task"),
        column("doc_hash", TEXT, "hash of the item's prompt and target, equal for every checkpoint"),
        column("value", REAL, "the item's score"),
        column("extracted", FLAG, "whether an answer could be extracted"),
        column("gold_bits", REAL, "information in the gold answer given its prompt", "bits"),
        column("gold_bytes", WHOLE, "UTF-8 length of the gold answer", "bytes"),
        column("response", TEXT, "the model's answer: generated text, or the index of the choice it prefers"),
        column("degenerate", TEXT, "empty, repeating or endless, of a generated answer that is; null of any other"),
    ]
)

PRETRAIN = pa.schema(
    [
        column("folder", TEXT, "where the model lies, relative to the storage"),
        column("family", TEXT, "architecture"),
        column("parameters", WHOLE, "parameters of the model"),
        column("tokens", WHOLE, "tokens seen in pretraining", "tokens"),
        column("loss", REAL, "mean loss of the last tenth of the steps", "nats per token"),
    ]
)

TRIALS = pa.schema(
    [
        column("kind", TEXT, "base or fine-tuning"),
        column("state", TEXT, "done, failed, missing, or diverged: what can be had of it is done"),
        column("blocks", TEXT, "blocks of the grid that ask for the trial, joined by +"),
        column("method_kind", TEXT, "full or lora; null for a base model"),
        column("batch_size", WHOLE, "examples of a global batch; null for a base model", "rows"),
        column("rows", WHOLE, "training rows used; null where not trained", "rows"),
        column("steps", WHOLE, "optimiser steps; null where not trained", "steps"),
        column("supervised_tokens", WHOLE, "supervised tokens over all epochs", "tokens"),
        column("final_loss", REAL, "mean loss of the last epoch", "nats per token"),
        column("diverged_in_epoch", WHOLE, "epoch in which training diverged; null where it did not", "epochs"),
        column("oom_retries", WHOLE, "steps repeated with half the token budget"),
    ]
)

COSTS = pa.schema(
    [
        column("stage", TEXT, "kind of work"),
        column("key", TEXT, "key of the result"),
        column("wall_s", REAL, "wall time", "seconds"),
        column("gpu_s", REAL, "wall time x GPUs held", "seconds"),
        column("host", TEXT, "machine"),
        column("finished_at", TEXT, "UTC time of the commit, ISO 8601"),
        column("versions", TEXT, "packages that made the result, as `raysft 0.1.0; torch 2.13.0; ...`"),
    ]
)

FAILURES = pa.schema(
    [
        column("stage", TEXT, "kind of work, or driver for the process that ran the sweep"),
        column("key", TEXT, "key of the result that is missing, or the driver's id"),
        column("attempt", WHOLE, "attempt, from 1"),
        column("error", TEXT, "exception class"),
        column("message", TEXT, "exception message"),
        column("log", TEXT, "where the traceback lies, relative to the storage"),
        column("host", TEXT, "machine"),
        column("at", TEXT, "UTC time, ISO 8601"),
        column("resolved", FLAG, "whether a later attempt committed the result"),
    ]
)

# stage -> payload of one result file
RESULTS: dict[str, pa.Schema] = {
    "pretrain": PRETRAIN,
    "train": TRAINING,
    "divergence": DIVERGENCE,
    "evaluate": EVALUATE,
    "perplexity": PERPLEXITY,
    "similarity": DATA_PROPERTIES,
    "text_statistics": DATA_PROPERTIES,
    "sentence_similarity": DATA_PROPERTIES,
    "weight_change": WEIGHT_CHANGE,
    "embed": EMBED,
    "neighbours": NEIGHBOURS,
    "intrinsic_dimension": INTRINSIC_DIMENSION,
    "log_likelihood": LOG_LIKELIHOOD,
    "contamination": CONTAMINATION,
}


# Set by the reducer in every table, so that no mean holds such a trial without knowing.
DIVERGED = column("diverged", FLAG, "whether the trial's training ended, then or later, in a loss that is not finite")


def _with_identity(payload: pa.Schema) -> pa.Schema:
    return pa.schema([*IDENTITY, DIVERGED, *payload])


# table -> columns, identity first
TABLES: dict[str, pa.Schema] = {
    "trials": _with_identity(TRIALS),
    "training": _with_identity(TRAINING),
    "scores": _with_identity(SCORES),
    "samples": _with_identity(SAMPLES),
    "data_properties": _with_identity(DATA_PROPERTIES),
    "examples": _with_identity(EXAMPLES),
    "weight_change": _with_identity(pa.schema([field for field in WEIGHT_CHANGE if field.name not in SKETCHES])),
    "weight_sketches": _with_identity(WEIGHT_SKETCHES),
    "intrinsic_dimension": _with_identity(INTRINSIC_DIMENSION),
    "log_likelihood": _with_identity(LOG_LIKELIHOOD),
    "contamination": _with_identity(CONTAMINATION),
    "costs": _with_identity(COSTS),
    "failures": _with_identity(FAILURES),
}


def as_markdown() -> str:
    """`docs/tables.md`: every table with its columns, types, units and sources."""
    lines = [
        "# Tables",
        "",
        "`raysft reduce` writes one Parquet file for each of these into `tables/`, with the same texts as metadata of",
        "its fields. Made by `python -m raysft.store.schema`.",
        "",
        "## Identity, in front of every table",
        "",
        *_columns(pa.schema([*IDENTITY, DIVERGED])),
    ]
    for name, schema in TABLES.items():
        lines += ["", f"## {name}", "", *_columns(list(schema)[len(IDENTITY) + 1 :])]
    return "\n".join(lines) + "\n"


def _columns(fields: Iterable[pa.Field]) -> list[str]:
    rows = ["| column | type | meaning | unit | source |", "| --- | --- | --- | --- | --- |"]
    for field in fields:
        about = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        kind = str(field.type).split("<")[0]
        cells = (f"`{field.name}`", kind, about["meaning"], about.get("unit", ""), about.get("source", ""))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
