"""What the texts of a dataset are like, whatever model reads them: lengths, variety of words, compressibility."""

from __future__ import annotations

import lzma
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from raysft.corpus.example import Example
from raysft.probes.data.contamination import example_text, words
from raysft.probes.data.distributions import Measured, mean_length, property_table, spread

MATTR_WINDOW = 100
"""Words of a window of the moving-average type-token ratio."""
_LZMA_PRESET = 6


def text_statistics(examples: Sequence[Example]) -> pa.Table:
    """Lengths in words and bytes, type-token ratios and compressibility of prompts and responses, without a template.

    A prompt is everything of a row that the assistant does not say. Words are those of `contamination.words`: in lower
    case, without punctuation, a character of Chinese or Japanese each. The type-token ratio, distinct words over words,
    falls with the number of words; its moving average over windows of 100 words, from row to row (MATTR, Covington and
    McFall 2010), does not. Compressibility is the length of all texts together as lzma (preset 6) packs them over their
    own, in bytes. A table of `schema.DATA_PROPERTIES`; a ratio that is not defined is null.
    """
    responses = ["\n".join(reply for _, reply in example.turns) for example in examples]
    prompts = [
        "\n".join(filter(None, [example.system, *(asked for asked, _ in example.turns)])) for example in examples
    ]
    measured: list[Measured] = []
    for what, texts in (("prompt", prompts), ("response", responses), ("text", list(map(example_text, examples)))):
        measured += _statistics(what, texts)
    return property_table(measured, len(examples))


def moving_type_token_ratio(tokens: Sequence[str], window: int = MATTR_WINDOW) -> float | None:
    """Mean over all windows of so many words of distinct words / words; None for fewer words than a window has.

    Covington and McFall 2010, "Cutting the Gordian Knot: The Moving-Average Type-Token Ratio (MATTR)".
    """
    count = len(tokens)
    if count < window:
        return None
    seen: dict[str, int] = {}
    before = np.empty(count, dtype=np.int64)  # where the same word stood last
    for place, token in enumerate(tokens):
        before[place] = seen.get(token, -1)
        seen[token] = place
    places = np.arange(count)
    # A word is the first of its kind in the windows that hold it and begin after its last occurrence.
    first = np.maximum(before + 1, np.maximum(places - window + 1, 0))
    last = np.minimum(places, count - window)
    distinct = np.maximum(last - first + 1, 0).sum()
    return float(distinct) / (count - window + 1) / window


def compressibility(texts: Sequence[str]) -> float | None:
    """Bytes of the texts, a line each, packed by lzma (preset 6, with nothing around it) over their bytes in UTF-8."""
    content = "\n".join(texts).encode()
    if not content.strip():
        return None
    filters = [{"id": lzma.FILTER_LZMA2, "preset": _LZMA_PRESET}]
    return len(lzma.compress(content, lzma.FORMAT_RAW, filters=filters)) / len(content)


def _statistics(what: str, texts: Sequence[str]) -> list[Measured]:
    split = [words(text) for text in texts]
    tokens = [token for own in split for token in own]
    counts, sizes = [len(own) for own in split], [len(text.encode()) for text in texts]
    ratio = len(set(tokens)) / len(tokens) if tokens else None
    return [
        mean_length(f"{what}_words", counts, "words per row"),
        *spread(f"{what}_words", counts, "words per row", mean=False),
        mean_length(f"{what}_bytes", sizes, "bytes per row"),
        *spread(f"{what}_bytes", sizes, "bytes per row", mean=False),
        Measured(f"{what}_type_token_ratio", ratio, "types per word"),
        Measured(f"{what}_mattr_{MATTR_WINDOW}", moving_type_token_ratio(tokens), "types per word"),
        Measured(f"{what}_lzma_ratio", compressibility(texts), "bytes per byte"),
    ]
