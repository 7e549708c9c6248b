"""Properties of a dataset under a base model: perplexity, lengths, and how near its texts are to a benchmark's."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raysft.corpus.example import Example
from raysft.corpus.prompt import Rendered, render_examples
from raysft.corpus.tokenize import TokenisedRow, tokenise_examples, tokenise_texts
from raysft.probes.embeddings import pooled_states_of
from raysft.probes.scoring import Scored, score_rows
from raysft.spec.templates import Template
from raysft.store.probe_schemas import DATA_PROPERTIES


def data_properties(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    template: Template,
    max_length: int,
    pad_id: int,
    token_budget: int,
) -> pa.Table:
    """Perplexity of the responses given their prompts and of the whole texts, and mean lengths, over `examples`.

    Means are over tokens (or bytes) of all rows together, not means of row means. The response is all that the
    assistant says in a row; an EOS counts as a token and has no bytes. Rows of more than `max_length` tokens are left
    out: a part of a text has no bytes of its own. ValueError if all are longer. A table of `schema.DATA_PROPERTIES`.
    """
    tokenised = tokenise_examples(examples, tokenizer, template, sys.maxsize)
    fitting = [index for index, row in enumerate(tokenised) if len(row.ids) <= max_length]
    if not fitting:
        raise ValueError(f"each of {len(examples)} rows has more than max_length {max_length} tokens")
    rows = [tokenised[index] for index in fitting]
    whole = [TokenisedRow.from_token(row.ids, 1) for row in rows]
    rendered = render_examples([examples[index] for index in fitting], tokenizer, template)
    responses = [text for one in rendered for text in _said(one, tokenizer.eos_token)]
    response_bytes = sum(len(text.encode()) for text in responses)
    text_bytes = sum(len(one.text.removesuffix(tokenizer.eos_token).encode()) for one in rendered)
    values = [
        *_likelihoods("response", score_rows(model, rows, pad_id, token_budget), response_bytes),
        *_likelihoods("text", score_rows(model, whole, pad_id, token_budget), text_bytes),
        ("prompt_tokens", float(np.mean([len(row.ids) - row.supervised for row in rows])), "tokens per row"),
        ("response_tokens", float(np.mean([row.supervised for row in rows])), "tokens per row"),
        ("text_tokens", float(np.mean([len(row.ids) for row in rows])), "tokens per row"),
        ("response_words", sum(len(text.split()) for text in responses) / len(rows), "words per row"),
    ]
    return _properties(values, len(rows), about=None)


def similarity(data_centroid: np.ndarray, benchmark_centroid: np.ndarray, origin: np.ndarray) -> float:
    """Cosine of two centroids of hidden states (width,) seen from `origin`, the centroid of reference texts.

    Hidden states share one large common direction, so that cosines from zero are all near 1; taking the reference away
    leaves what tells texts apart.
    """
    first, second = data_centroid - origin, benchmark_centroid - origin
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / scale if scale > 0 else math.nan


def similarity_table(value: float, benchmark: str, rows: int) -> pa.Table:
    """A similarity as a table of `schema.DATA_PROPERTIES`."""
    return _properties([("similarity", value, "cosine")], rows, about=benchmark)


def centroid(
    model: Any, tokenizer: Any, texts: Sequence[str], max_length: int, pad_id: int, token_budget: int
) -> np.ndarray:
    """Mean over texts of the mean-pooled hidden state in the middle of the stack: fp64 (width,)."""
    rows = tokenise_texts(texts, tokenizer, max_length)
    states = pooled_states_of(model, rows, pad_id, token_budget)
    middle: np.ndarray = states[:, states.shape[1] // 2].astype(np.float64).mean(axis=0)
    return middle


def example_texts(examples: Sequence[Example], tokenizer: Any, template: Template) -> list[str]:
    """Each example as the text that is trained on."""
    return [one.text for one in render_examples(examples, tokenizer, template)]


def _said(one: Rendered, eos: str) -> list[str]:
    """What the assistant says in a text, turn by turn, without the EOS that a chat template writes."""
    return [one.text[start:stop].removesuffix(eos) for start, stop in one.spans]


def _likelihoods(what: str, scored: Sequence[Scored], size_in_bytes: int) -> list[tuple[str, float, str]]:
    nats = -sum(entry.log_likelihood for entry in scored)
    per_token = nats / sum(entry.tokens for entry in scored)
    return [
        (f"{what}_nll_per_token", per_token, "nats per token"),
        (f"{what}_perplexity", math.exp(per_token), "1"),
        (f"{what}_bits_per_byte", nats / math.log(2) / size_in_bytes, "bits per byte"),
    ]


def _properties(values: Sequence[tuple[str, float, str]], rows: int, about: str | None) -> pa.Table:
    return pa.Table.from_pylist(
        [{"property": name, "about": about, "value": value, "unit": unit, "n": rows} for name, value, unit in values],
        schema=DATA_PROPERTIES,
    )
