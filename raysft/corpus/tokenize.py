"""The one way from an example to token ids: exactly one BOS, the template's text, a supervised EOS.

A text is tokenised once and whole. Where the prompt ends and the assistant begins is a place between characters; a
token that reaches over such a place belongs to what comes after. At the start of a reply it holds the first thing that
a model has to say, which no other token says. At its end it holds text of the next turn, which a model must not say.
Whoever generates gives the prompt's tokens, and finds that training went on from just these.

Rows are kept (see `kept_rows`): when the same examples start to give others, raise STAGE_VERSIONS["tokenise"].
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from raysft.corpus.example import Example
from raysft.corpus.prompt import common_length, render_examples
from raysft.spec.templates import Template

Span = tuple[int, int]
Ids = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]

_BLOCK = 1024  # texts tokenised at a time: the offsets of a whole dataset would take gigabytes


@dataclass(frozen=True, slots=True, eq=False)
class TokenisedRow:
    """Token ids of one example, int32; those in `spans` (half-open, ascending, disjoint, not empty) have a loss.

    `ids` may be a view of a mapped file, which nobody can write to. They can be given as any sequence of numbers.
    """

    ids: Ids
    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", np.asarray(self.ids, np.int32))

    @classmethod
    def from_token(cls, ids: Sequence[int] | Ids, start: int) -> TokenisedRow:
        """The row whose tokens from `start` on all have a loss."""
        return cls(np.asarray(ids, np.int32), ((start, len(ids)),) if start < len(ids) else ())

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return sum(stop - start for start, stop in self.spans)

    def cut(self, length: int) -> TokenisedRow:
        """The first `length` tokens of the row."""
        spans = tuple((start, min(stop, length)) for start, stop in self.spans if start < length)
        return TokenisedRow(self.ids[:length], spans)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenisedRow):
            return NotImplemented
        return self.spans == other.spans and np.array_equal(self.ids, other.ids)

    def __hash__(self) -> int:
        return hash((self.ids.tobytes(), self.spans))


@dataclass(frozen=True, eq=False)
class TokenisedRows(Sequence[TokenisedRow]):
    """A sequence of rows, held as flat arrays so that it can lie in files and be mapped from them.

    `ids` are int32 (tokens,): row i has those from `offsets[i]` up to `offsets[i + 1]`, int64 (rows + 1,). In the same
    way `span_offsets` say which of `spans`, int32 (spans, 2), are its own; these count from its first token. `kept`,
    int64 (rows,), are the indices of the examples that the rows come from, `dropped` is the number of the others.
    """

    ids: Ids
    offsets: Places
    spans: Ids
    span_offsets: Places
    kept: Places
    dropped: int

    @classmethod
    def of(cls, rows: Sequence[TokenisedRow], kept: Sequence[int], dropped: int) -> TokenisedRows:
        """The arrays of `rows`."""
        spans = [span for row in rows for span in row.spans]
        return cls(
            np.concatenate([np.empty(0, np.int32), *(row.ids for row in rows)]),
            _offsets([len(row.ids) for row in rows]),
            np.array(spans, np.int32).reshape(-1, 2),
            _offsets([len(row.spans) for row in rows]),
            np.array(kept, np.int64),
            dropped,
        )

    def __len__(self) -> int:
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> TokenisedRow: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TokenisedRow, ...]: ...
    def __getitem__(self, index: int | slice) -> TokenisedRow | tuple[TokenisedRow, ...]:
        if isinstance(index, slice):
            return tuple(self._row(place) for place in range(len(self))[index])
        return self._row(range(len(self))[index])

    def _row(self, place: int) -> TokenisedRow:
        start, stop = self.offsets[place : place + 2]
        first, last = self.span_offsets[place : place + 2]
        return TokenisedRow(self.ids[start:stop], tuple((begin, end) for begin, end in self.spans[first:last].tolist()))


def tokenise_examples(
    examples: Sequence[Example],
    tokenizer: Any,
    template: Template,
    max_length: int,
    overlong: Literal["refuse", "drop"] = "refuse",
) -> TokenisedRows:
    """Tokenise examples with a `transformers` tokenizer; everything that the assistant says is supervised.

    Rows are cut to `max_length` tokens. One that has no supervised token left is dropped, or a ValueError by its number
    from 1. ValueError as well for a tokenizer without EOS and for what `render_examples` refuses.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ValueError("the tokenizer has no EOS token, so a model trained with it could never end an answer")
    rendered = render_examples(examples, tokenizer, template)
    places = [[place for span in one.spans for place in span][:-1] for one in rendered]
    rows, kept = [], []
    for index, (ids, tokens) in enumerate(_encoded([one.text for one in rendered], places, tokenizer)):
        whole = _row(ids, tokens, eos)
        row = whole.cut(max_length)
        if row.supervised:
            rows.append(row)
            kept.append(index)
        elif overlong == "refuse":
            raise ValueError(
                f"row {index + 1}: its prompt has {whole.spans[0][0]} tokens, so max_length {max_length} leaves no "
                "supervised token; raise training.max_length, or set training.overlong_rows: drop"
            )
    return TokenisedRows.of(rows, kept, len(examples) - len(rows))


def tokenise_texts(texts: Sequence[str], tokenizer: Any, max_length: int) -> list[TokenisedRow]:
    """Plain texts, BOS first where the tokenizer has one; every token after the first is supervised, no EOS is added.

    Without a BOS the first token of a text is not scored, because nothing comes before it.
    """
    encoded = _encoded(texts, [()] * len(texts), tokenizer)
    return [TokenisedRow.from_token(ids[:max_length], 1) for ids, _ in encoded]


def tokenise_scored_texts(texts: Sequence[str], tokenizer: Any) -> list[TokenisedRow]:
    """Plain texts of which every token is scored, so that models with different tokenizers rate the same: the first one
    after BOS, or after EOS where the tokenizer has no BOS, as in lm-eval's rolling log-likelihood.

    ValueError, by its number from 1, for a text that the tokenizer makes nothing of.
    """
    rows = tokenise_texts(texts, tokenizer, sys.maxsize)
    started = bool(bos_prefix(tokenizer))
    empty = next((number for number, row in enumerate(rows, start=1) if len(row.ids) <= started), None)
    if empty is not None:
        raise ValueError(f"text {empty}: the tokenizer makes no token of it that can be scored")
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    prefix = next(([token] for token in known if token is not None and not started), [])
    return [TokenisedRow.from_token([*prefix, *row.ids], 1) for row in rows]


def split_at(text: str, place: int, tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens of `text` before and after a place in its characters, as training parts a prompt from its reply."""
    [(ids, [tokens])] = _encoded([text], [[place]], tokenizer)
    return ids[:tokens], ids[tokens:]


def text_ids(text: str, tokenizer: Any) -> list[int]:
    """The tokens of a text, with one BOS where the tokenizer starts texts with it."""
    [(ids, _)] = _encoded([text], [()], tokenizer)
    return ids


def bos_prefix(tokenizer: Any) -> list[int]:
    """[BOS] for a tokenizer that starts texts with it, [] for one that does not: what the base was pretrained on, and
    what lm-eval's prompts begin with."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and bos in tokenizer("")["input_ids"] else []


def _row(ids: list[int], tokens: list[int], eos: int) -> TokenisedRow:
    """The row of a whole text, of which `tokens` come before the places where spans start and stop in turn; the last
    stops with the text."""
    if ids[-1] != eos:
        ids = [*ids, eos]
    tokens = [*tokens, len(ids)]
    pairs = zip(tokens[::2], tokens[1::2], strict=True)
    # Nothing comes before the first token that could predict it.
    spans = tuple((max(1, start), stop) for start, stop in pairs if max(1, start) < stop)
    return TokenisedRow(np.array(ids, np.int32), spans)


def _offsets(lengths: Sequence[int]) -> Places:
    """Where stretches of these lengths begin when they lie end to end, and where the last one ends."""
    return np.cumsum([0, *lengths], dtype=np.int64)


def _encoded(
    texts: Sequence[str], places: Sequence[Sequence[int]], tokenizer: Any
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of each text with one BOS, and how many of them come before each of its places, which ascend.

    A BOS that a chat template wrote is that one: it is neither doubled nor taken away.
    """
    start = bos_prefix(tokenizer)
    count = _by_offsets if getattr(tokenizer, "is_fast", False) else _by_beginnings
    for first in range(0, len(texts), _BLOCK):
        block = slice(first, first + _BLOCK)
        for ids, tokens in count(texts[block], places[block], tokenizer):
            added = [] if ids[:1] == [tokenizer.bos_token_id] else start
            yield [*added, *ids], [len(added) + number for number in tokens]


def _by_offsets(
    texts: Sequence[str], places: Sequence[Sequence[int]], tokenizer: Any
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids and counts of a fast tokenizer, which tells the characters of each token."""
    # Some special tokens take the white space around them along, over a place where a reply starts or stops.
    wide = {id_: str(token) for id_, token in tokenizer.added_tokens_decoder.items() if token.lstrip or token.rstrip}
    encoding = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    for text, ids, offsets, wanted in zip(
        texts, encoding["input_ids"], encoding["offset_mapping"], places, strict=True
    ):
        if wide:
            offsets = [_own(text, offset, wide.get(id_)) for id_, offset in zip(ids, offsets, strict=True)]
        yield ids, _counts_before(offsets, wanted)


def _own(text: str, offset: Span, token: str | None) -> Span:
    """The characters of a token without the white space that it took along."""
    at = -1 if token is None else text.find(token, *offset)
    return offset if at < 0 or token is None else (at, at + len(token))


def _counts_before(offsets: Sequence[Span], places: Sequence[int]) -> list[int]:
    """How many tokens lie wholly before each place."""
    counts, token = [], 0
    for place in places:
        while token < len(offsets) and offsets[token][1] <= place:
            token += 1
        counts.append(token)
    return counts


def _by_beginnings(
    texts: Sequence[str], places: Sequence[Sequence[int]], tokenizer: Any
) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids and counts of any tokenizer: the tokens that a text shares with its beginning up to a place."""
    wholes = _ids(texts, tokenizer)
    beginnings = iter(
        _ids([text[:place] for text, wanted in zip(texts, places, strict=True) for place in wanted], tokenizer)
    )
    for ids, wanted in zip(wholes, places, strict=True):
        yield ids, [common_length(next(beginnings), ids) for _ in wanted]


def _ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids
