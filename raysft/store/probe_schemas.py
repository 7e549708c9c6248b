"""The Arrow schemas of what probes measure; `raysft.store.schema` has all others, and says what a schema is."""

from __future__ import annotations

import pyarrow as pa

from raysft.store.columns import FLAG, REAL, TEXT, WHOLE, column

_FACCO = "TwoNN: Facco et al. 2017; MLE: Levina and Bickel 2004, MacKay and Ghahramani 2005; Gride: Denti et al. 2022"
_SPECTRUM = "participation ratio: Gao et al. 2017; effective rank: Roy and Vetterli 2007"
_HALVES = "random groups: Wolter 2007"

DATA_PROPERTIES = pa.schema(
    [
        column(
            "property",
            TEXT,
            "response_ or text_ with nll_per_token, bits_per_byte or perplexity; prompt_, response_ or text_ with "
            "tokens, or, of the data alone (model is null), words, bytes, type_token_ratio, mattr_100 or lzma_ratio; "
            "similarity, of centroids of hidden states in the middle of the stack, similarity_by_layer, of each "
            "layer, and sentence_similarity, of centroids of a sentence model's vectors (model is null). Bits per byte "
            "are over the bytes that `examples` counts",
            source="mattr: Covington and McFall 2010",
        ),
        column("about", TEXT, "the benchmark task a similarity is with; null for properties of the dataset alone"),
        column(
            "statistic",
            TEXT,
            "null: of all rows together (lengths: their mean); else of the rows' own values: mean, q05, q25, q50, q75, "
            "q95",
        ),
        column("layer", WHOLE, "hidden state of a similarity: 0 = embeddings, i = output of layer i; null elsewhere"),
        column("depth", REAL, "layer / layers", "fraction"),
        column("value", REAL, "the value; null where it is not defined"),
        column("unit", TEXT, "unit of the value"),
        column("n", WHOLE, "rows measured", "rows"),
        column("left_out", WHOLE, "rows longer than max_length or the model's context, which are not measured", "rows"),
    ]
)

EXAMPLES = pa.schema(
    [
        column("row", WHOLE, "place, from 0, in the fixed random order that the dataset has for every model and trial"),
        column("text_hash", TEXT, "hash of the text as it is trained on"),
        column("response_nll", REAL, "-log-probability of all that the assistant says, its EOS with it", "nats"),
        column("text_nll", REAL, "-log-probability of the whole text but its first token", "nats"),
        column("prompt_tokens", WHOLE, "tokens without a loss, BOS with them", "tokens"),
        column("response_tokens", WHOLE, "tokens that response_nll is of", "tokens"),
        column("text_tokens", WHOLE, "all tokens of the row", "tokens"),
        column("response_bytes", WHOLE, "UTF-8 length of what the assistant says without special tokens", "bytes"),
        column(
            "text_bytes",
            WHOLE,
            "UTF-8 length of the text that text_nll is of, without special tokens: where no BOS comes first, the first "
            "token's are left out",
            "bytes",
        ),
        column("response_words", WHOLE, "words of what the assistant says, as contamination counts them", "words"),
    ]
)

_EXAMPLE = pa.struct([pa.field(field.name, field.type) for field in EXAMPLES])

# The first row of a result holds all examples; the reducer makes a table of their own of them.
PERPLEXITY = pa.schema([*DATA_PROPERTIES, column("examples", pa.list_(_EXAMPLE), "the rows that were measured")])

_LEVEL = (
    "tensor; or pooled over the tensors of a layer, outside the stack, of a module kind inside it (module), or of the "
    "model; null in tables of before, which hold tensors alone"
)

WEIGHT_CHANGE = pa.schema(
    [
        column("level", TEXT, _LEVEL),
        column("tensor", TEXT, "name, the same in every family but for what it says: layers.3.self_attn.q_proj.weight"),
        column("module", TEXT, "kind of module: q_proj, up_proj, norm, embedding, ...; null for a layer and the model"),
        column("layer", WHOLE, "index of the transformer layer; null outside the stack"),
        column("depth", REAL, "layer / (layers - 1); null outside the stack", "fraction"),
        column("tensors", WHOLE, "tensors pooled: those of the model, or those that LoRA adapts"),
        column("parameters", WHOLE, "entries compared"),
        column("base_norm", REAL, "Frobenius norm of the base's tensors"),
        column(
            "change_norm", REAL, "Frobenius norm of the difference; for LoRA of s B A", source="field: ||W' - W||_F"
        ),
        column("relative_change", REAL, "change_norm / base_norm, of all tensors pooled"),
        column("mean_relative_change", REAL, "mean over modules of their relative change; null for a tensor"),
        column(
            "mean_absolute_change",
            REAL,
            "mean absolute difference of an entry; for LoRA estimated from 64 rows and the norms of all, to about 1%",
        ),
        column("stable_rank", REAL, "||D||_F^2 / s_1^2", source="Rudelson and Vershynin 2007"),
        column(
            "singular_values",
            pa.list_(REAL),
            "first 8 singular values of the difference, largest first, of matrices; for LoRA exact, else never too "
            "large, and too small by about 3% where they hardly fall off",
            source="Musco and Musco 2015, block Krylov iteration",
        ),
        column("zero_fraction", REAL, "share of entries that did not change; null for LoRA and DoRA", "fraction"),
        column("dtype", TEXT, "dtype of the tuned weights, in which they were trained or stored; of LoRA's matrices"),
        column("base_dtype", TEXT, "dtype of the base's weights as they were read"),
        column(
            "low_precision",
            FLAG,
            "whether a difference was taken from weights in bfloat16, float16 or 8 bits, which lose what is small "
            "beside them",
        ),
        column("rows_left_out", WHOLE, "rows of a resized vocabulary that only one of the two has", "rows"),
        column("sketch", pa.list_(pa.float32()), "of a layer, or of all outside (raysft/probes/weights/sketches.py)"),
        column("left_directions", pa.list_(pa.float32()), "sketches of the 4 leading output directions, row by row"),
        column("right_directions", pa.list_(pa.float32()), "sketches of the 4 leading input directions, row by row"),
    ]
)

# In the result of a checkpoint, and in a table of their own: nobody reads megabytes for norms.
SKETCHES = ("sketch", "left_directions", "right_directions")
WEIGHT_SKETCHES = pa.schema(
    [
        WEIGHT_CHANGE.field(name)
        for name in ("level", "tensor", "module", "layer", "depth", "change_norm", "stable_rank", *SKETCHES)
    ]
)

INTRINSIC_DIMENSION = pa.schema(
    [
        column("texts_of", TEXT, "dataset whose training texts were embedded"),
        column("same_texts", TEXT, "equal for a base and its checkpoints where the texts are the same"),
        column("layer", WHOLE, "hidden state: 0 = embeddings, i = output of layer i"),
        column("depth", REAL, "layer / layers", "fraction"),
        column(
            "estimator",
            TEXT,
            "twonn, mle or gride; participation_ratio or effective_rank, of the covariance; neighbourhood_overlap, the "
            "share of neighbours in common with the base; or the name of a further estimator of scikit-dimension",
            source=f"{_FACCO}; {_SPECTRUM}",
        ),
        column(
            "scale",
            WHOLE,
            "neighbours: k for the MLE and the overlap, the larger order n2 for Gride, 2 for TwoNN; 0 for all others",
        ),
        column(
            "value",
            REAL,
            "estimated intrinsic dimension, or what the estimator's name says; null where there is none",
            source=_FACCO,
        ),
        column(
            "low",
            REAL,
            "lower end of a 95% interval: value - 1.96 standard errors, of which one is half the root mean square "
            "difference of the estimates on the two halves of random splits of the texts; null for estimators that "
            "have none, and without half-samples",
            source=_HALVES,
        ),
        column("high", REAL, "its upper end: value + 1.96 standard errors", source=_HALVES),
        column("n", WHOLE, "distinct texts used; of a random sample for estimators of scale 0", "texts"),
        column("duplicates", WHOLE, "texts left out because an equal text or embedding was already in", "texts"),
    ]
)

NEIGHBOURS = pa.schema(
    [
        column("layer", WHOLE, "hidden state: 0 = embeddings, i = output of layer i"),
        column("text", WHOLE, "index of the text in the training set"),
        column("neighbours", pa.list_(pa.int32()), "indices of the nearest texts in this layer, the nearest first"),
    ]
)

EMBED = pa.schema(
    [
        column("folder", TEXT, "where the embeddings lie, relative to the storage"),
        column("texts", WHOLE, "texts embedded", "texts"),
        column("layers", WHOLE, "hidden states per text, embeddings included"),
        column("width", WHOLE, "entries of one hidden state"),
        column("pooling", TEXT, "how tokens became one vector"),
        column("dropped", WHOLE, "texts left out because the trial drops them as too long", "texts"),
    ]
)

LOG_LIKELIHOOD = pa.schema(
    [
        column("text", WHOLE, "index in the fixed text set"),
        column("text_hash", TEXT, "hash of the text"),
        column("log_likelihood", REAL, "total log-probability of the text", "nats", "Oyama et al. 2025"),
        column("tokens", WHOLE, "tokens scored", "tokens"),
        column("bytes", WHOLE, "UTF-8 length of the text", "bytes"),
        column("bos", FLAG, "whether texts start with BOS; without it the first token is scored after EOS"),
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
