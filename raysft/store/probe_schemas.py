"""The Arrow schemas of what probes measure; `raysft.store.schema` has all others, and says what a schema is."""

from __future__ import annotations

import pyarrow as pa

from raysft.store.columns import REAL, TEXT, WHOLE, column

_FACCO = "TwoNN: Facco et al. 2017; MLE: Levina and Bickel 2004, MacKay and Ghahramani 2005; Gride: Denti et al. 2022"

DATA_PROPERTIES = pa.schema(
    [
        column(
            "property",
            TEXT,
            "response_ or text_ with nll_per_token, bits_per_byte or perplexity; prompt_tokens, response_tokens, "
            "text_tokens or response_words, means per row; similarity, of centroids of hidden states",
        ),
        column("about", TEXT, "the benchmark task a similarity is with; null for properties of the dataset alone"),
        column("value", REAL, "the value"),
        column("unit", TEXT, "unit of the value"),
        column("n", WHOLE, "rows measured", "rows"),
    ]
)

WEIGHT_CHANGE = pa.schema(
    [
        column("tensor", TEXT, "parameter name in the base model"),
        column("module", TEXT, "kind of module: q_proj, up_proj, norm, embedding, ..."),
        column("layer", WHOLE, "index of the transformer layer; null outside the stack"),
        column("depth", REAL, "layer / (layers - 1); null outside the stack", "fraction"),
        column("parameters", WHOLE, "entries of the tensor"),
        column("base_norm", REAL, "Frobenius norm of the base tensor"),
        column(
            "change_norm", REAL, "Frobenius norm of the difference; for LoRA of s B A", source="field: ||W' - W||_F"
        ),
        column("relative_change", REAL, "change_norm / base_norm"),
        column("zero_fraction", REAL, "share of entries that did not change; null for LoRA", "fraction"),
        column("dtype", TEXT, "dtype the difference was taken from"),
    ]
)

INTRINSIC_DIMENSION = pa.schema(
    [
        column("texts_of", TEXT, "dataset whose training texts were embedded"),
        column("layer", WHOLE, "hidden state: 0 = embeddings, i = output of layer i"),
        column("depth", REAL, "layer / layers", "fraction"),
        column("estimator", TEXT, "twonn, mle or gride", source=_FACCO),
        column("scale", WHOLE, "neighbours: k for the MLE, the larger order n2 for Gride, 2 for TwoNN"),
        column("value", REAL, "estimated intrinsic dimension", source=_FACCO),
        column("n", WHOLE, "texts used", "texts"),
        column("duplicates", WHOLE, "texts left out because an equal text or embedding was already in", "texts"),
    ]
)

EMBED = pa.schema(
    [
        column("folder", TEXT, "where the embeddings lie, relative to the storage"),
        column("texts", WHOLE, "texts embedded", "texts"),
        column("layers", WHOLE, "hidden states per text, embeddings included"),
        column("width", WHOLE, "entries of one hidden state"),
        column("pooling", TEXT, "how tokens became one vector"),
    ]
)

LOG_LIKELIHOOD = pa.schema(
    [
        column("text", WHOLE, "index in the fixed text set"),
        column("text_hash", TEXT, "hash of the text"),
        column("log_likelihood", REAL, "total log-probability of the text", "nats", "Oyama et al. 2025"),
        column("tokens", WHOLE, "tokens scored", "tokens"),
        column("bytes", WHOLE, "UTF-8 length of the text", "bytes"),
    ]
)

_MATCHED = pa.struct(
    [pa.field("task", TEXT), pa.field("doc", WHOLE), pa.field("text_hash", TEXT), pa.field("ngram_overlap", REAL)]
)

CONTAMINATION = pa.schema(
    [
        column("task", TEXT, "lm-eval task, or a group with all its members"),
        column("ngram", WHOLE, "n of the n-grams", "words", "Brown et al. 2020, appendix C"),
        column("items", WHOLE, "items of the benchmark"),
        column("too_short", WHOLE, "items of fewer than n words, which are in no overlap"),
        column(
            "overlap", REAL, "share of items, prompt and gold answer, with an n-gram of the training set", "fraction"
        ),
        column("ngram_overlap", REAL, "share of the items' n-grams that are in the training set", "fraction"),
        column("longest_match", WHOLE, "most words in a row of an item whose every n-gram is in the set", "words"),
        column(
            "matched",
            pa.list_(_MATCHED),
            "items with an overlap: leaf task, index there (`doc` of samples), hash of prompt and gold answer, share "
            "of its n-grams",
        ),
    ]
)
