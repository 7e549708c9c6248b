"""Perplexity of a dataset under a base model, row by row and together, and its lengths in the base's tokens."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raysft.corpus.example import Example
from raysft.corpus.prompt import Rendered, render_examples
from raysft.corpus.tokenize import TokenisedRow, tokenise_examples
from raysft.probes.data.contamination import words
from raysft.probes.data.distributions import Measured, mean_length, property_table, spread
from raysft.probes.scoring import Reading, most_tokens
from raysft.spec.keys import text_digest
from raysft.spec.templates import Template
from raysft.store.probe_schemas import EXAMPLES, PERPLEXITY


@dataclass(frozen=True)
class FittingRows:
    """The rows of a dataset that fit a model: their places among the examples, from 0, their tokens and their texts.
    `left_out` counts the others."""

    places: list[int]
    tokens: list[TokenisedRow]
    texts: list[Rendered]
    left_out: int


def fitting_rows(
    model: Any, tokenizer: Any, examples: Sequence[Example], template: Template, max_length: int
) -> FittingRows:
    """The `examples` of at most `max_length` tokens that fit the model's context as well.

    A longer row is left out and not cut: a part of a text has no bytes of its own. ValueError if all are longer.
    """
    tokenised = tokenise_examples(examples, tokenizer, template, sys.maxsize)
    most = most_tokens(model, max_length)
    places = [place for place, row in enumerate(tokenised) if len(row.ids) <= most]
    if not places:
        what = "max_length" if most == max_length else "the model's context of"
        raise ValueError(f"each of {len(examples)} rows has more than {what} {most} tokens")
    texts = render_examples([examples[place] for place in places], tokenizer, template)
    return FittingRows(places, [tokenised[place] for place in places], texts, len(examples) - len(places))


def example_table(rows: FittingRows, reading: Reading, tokenizer: Any) -> pa.Table:
    """What one forward pass told of each row: a table of `schema.EXAMPLES`.

    The response is all that the assistant says in a row. Bytes are those of the text that was scored, so that bits per
    byte compare between tokenizers: special tokens, whose names are a tokenizer's own, have none, and neither has a
    row's first token, which nothing predicts and which is text where there is no BOS.
    """
    said, whole = [], []
    special = _special_tokens(tokenizer)
    for one, row in zip(rows.texts, rows.tokens, strict=True):
        first = _unpredicted(one.text, int(row.ids[0]), tokenizer)
        whole.append(special.split(one.text[first:]))
        said.append([part for start, stop in one.spans for part in special.split(one.text[max(start, first) : stop])])
    supervised = [row.supervised for row in rows.tokens]
    return pa.Table.from_pydict(
        {
            "row": rows.places,
            "text_hash": [text_digest(one.text) for one in rows.texts],
            "response_nll": [-entry.log_likelihood for entry in reading.responses],
            "text_nll": [-entry.log_likelihood for entry in reading.texts],
            "prompt_tokens": [len(row.ids) - count for row, count in zip(rows.tokens, supervised, strict=True)],
            "response_tokens": supervised,
            "text_tokens": [len(row.ids) for row in rows.tokens],
            "response_bytes": [sum(len(text.encode()) for text in own) for own in said],
            "text_bytes": [sum(len(text.encode()) for text in own) for own in whole],
            "response_words": [sum(len(words(text)) for text in own) for own in said],
        },
        schema=EXAMPLES,
    )


def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """What finds a tokenizer's special tokens in a text: BOS, EOS, and what a chat template sets turns apart with."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    names = sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)))


def _unpredicted(text: str, first: int, tokenizer: Any) -> int:
    """Characters of `text` that are its first token's, if that is no special one: after a BOS there are none."""
    beginning = str(tokenizer.decode([first], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return len(beginning) if text.startswith(beginning) else 0  # part of a character is none


def data_properties(examples: pa.Table, left_out: int) -> pa.Table:
    """Properties of a dataset under a base model, from the table of its rows.

    Per token and per byte both for all rows together (sums over sums) and as mean and quantiles of the rows' own
    values; a row whose response has no bytes has none per byte. ValueError if no response has any. A table of
    `schema.PERPLEXITY`.
    """
    columns = {name: np.asarray(examples[name], dtype=np.float64) for name in EXAMPLES.names if name != "text_hash"}
    scored_text = columns["text_tokens"] - 1  # nothing predicts a row's first token
    measured = [
        *_likelihoods("response", columns["response_nll"], columns["response_tokens"], columns["response_bytes"]),
        *_likelihoods("text", columns["text_nll"], scored_text, columns["text_bytes"]),
    ]
    for name in ("prompt_tokens", "response_tokens", "text_tokens"):
        lengths = examples[name].to_pylist()
        measured += [mean_length(name, lengths, "tokens per row"), *spread(name, lengths, "tokens per row", mean=False)]
    table = property_table(measured, len(examples), left_out)
    lists = [examples.to_pylist(), *[None] * (len(table) - 1)]
    return table.append_column(PERPLEXITY.field("examples"), pa.array(lists, PERPLEXITY.field("examples").type))


def _likelihoods(what: str, nats: np.ndarray, tokens: np.ndarray, sizes: np.ndarray) -> list[Measured]:
    if not sizes.any():
        raise ValueError(f"no {what} has any text, so that there are no bits per byte")
    per_token = float(nats.sum() / tokens.sum())
    bits = nats / math.log(2)
    known = sizes > 0
    return [
        Measured(f"{what}_nll_per_token", per_token, "nats per token"),
        *spread(f"{what}_nll_per_token", nats / tokens, "nats per token"),
        Measured(f"{what}_perplexity", _perplexity(per_token), "1"),
        Measured(f"{what}_bits_per_byte", float(bits.sum() / sizes.sum()), "bits per byte"),
        *spread(f"{what}_bits_per_byte", bits[known] / sizes[known], "bits per byte"),
    ]


def _perplexity(nll_per_token: float) -> float | None:
    """e to that; None where it is more than a number can be."""
    return math.exp(nll_per_token) if nll_per_token < math.log(sys.float_info.max) else None
