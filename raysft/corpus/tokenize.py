"""The one way from an example to token ids: exactly one BOS, the prompt, the response, a supervised EOS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raysft.corpus.example import Example
from raysft.spec.grid import template_of


@dataclass(frozen=True, slots=True)
class TokenisedRow:
    """Token ids of one example; those from `supervised_from` on have a loss."""

    ids: tuple[int, ...]
    supervised_from: int

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return len(self.ids) - self.supervised_from


def tokenise_examples(
    examples: Sequence[Example], tokenizer: Any, template: str, max_length: int
) -> list[TokenisedRow]:
    """Tokenise examples with a `transformers` tokenizer.

    Prompt and response are tokenised together, and what follows the tokens of the prompt alone is supervised: the very
    tokens that lm-eval scores. (Tokenised apart, a SentencePiece response would start with a space that it does not
    have in the text.) Rows are cut to `max_length` tokens. ValueError, by row number from 1, for a row that has no
    supervised token left.
    """
    prompt, response = template_of(template)
    asked = [prompt.replace("{instruction}", example.instruction) for example in examples]
    answered = [response.replace("{response}", example.response) for example in examples]
    prompts = _encode(tokenizer, asked)
    wholes = _encode(tokenizer, [first + second for first, second in zip(asked, answered, strict=True)])
    start = bos_prefix(tokenizer)
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token, so a model trained with it could never end an answer")
    rows = []
    for number, (alone, whole) in enumerate(zip(prompts, wholes, strict=True), start=1):
        ids = (*start, *whole, tokenizer.eos_token_id)[:max_length]
        row = TokenisedRow(ids, len(start) + _common_length(alone, whole))
        if row.supervised < 1:
            raise ValueError(
                f"row {number}: its prompt has {row.supervised_from} tokens, so max_length {max_length} leaves no "
                "supervised token; raise training.max_length or drop the row"
            )
        rows.append(row)
    return rows


def tokenise_texts(texts: Sequence[str], tokenizer: Any, max_length: int) -> list[TokenisedRow]:
    """Plain texts, BOS first where the tokenizer has one; every token after the first is supervised, no EOS is added.

    Without a BOS the first token of a text is not scored, because nothing comes before it.
    """
    start = bos_prefix(tokenizer)
    return [TokenisedRow((*start, *ids)[:max_length], 1) for ids in _encode(tokenizer, texts)]


def bos_prefix(tokenizer: Any) -> list[int]:
    """[BOS] for a tokenizer that starts texts with it, [] for one that does not: what the base was pretrained on, and
    what lm-eval's prompts begin with."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and bos in tokenizer("")["input_ids"] else []


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of leading ids that two rows share."""
    differing = (index for index, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1])
    return next(differing, min(len(first), len(second)))


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids
