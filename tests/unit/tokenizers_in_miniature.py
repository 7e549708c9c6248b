"""Tokenizers of every common kind, trained in a moment on a few lines, as `transformers` wraps them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
LINES = [
    "What is the capital of France? The capital of France is Paris.",
    "user assistant system question answer hello, and what is it?\n\nIt is a question: 17 plus 4 equals 21.",
    "###Question: Name it.\n###Answer: Yes",
] * 5


def byte_level(**settings: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE as in Llama 3, which starts texts with BOS."""
    tokenizer = _byte_level()
    # Llama 3 trims spaces from what it says a token's characters are.
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), _adding_bos(tokenizer)])
    return _wrapped(tokenizer, **settings)


def byte_level_adding_eos(**settings: Any) -> PreTrainedTokenizerFast:
    """One that puts an EOS behind every text as well, unasked."""
    tokenizer = _byte_level()
    added = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=added
    )
    return _wrapped(tokenizer, **settings)


def byte_level_without_bos(**settings: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE as in Qwen: no BOS at all, and its EOS pads."""
    return _wrapped(_byte_level(), bos_token=None, pad_token="</s>", **settings)


def sentence_piece(**settings: Any) -> PreTrainedTokenizerFast:
    """Unigram with a mark for the space before every stretch of text."""
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    unigram.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", initial_alphabet=["\n", "é"], show_progress=False
    )
    unigram.train_from_iterator(LINES, trainer)
    unigram.post_processor = _adding_bos(unigram)
    return _wrapped(unigram, **settings)


def old_sentence_piece(**settings: Any) -> PreTrainedTokenizerFast:
    """BPE with bytes to fall back on and the space mark written by the normaliser, as in Llama 2."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=SPECIAL, initial_alphabet=["\n", "é"], max_token_length=6, show_progress=False
    )
    bpe.train_from_iterator(LINES, trainer)
    bpe.post_processor = _adding_bos(bpe)
    return _wrapped(bpe, **settings)


KINDS: dict[str, Callable[..., PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "adds EOS": byte_level_adding_eos,
    "without BOS, pad is EOS": byte_level_without_bos,
    "SentencePiece": sentence_piece,
    "old SentencePiece": old_sentence_piece,
}


class Slow:
    """A tokenizer that cannot tell the characters of its tokens, like those written in Python."""

    is_fast = False

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, add_special_tokens: bool = True) -> Any:
        return self._tokenizer(text, add_special_tokens=add_special_tokens)


def _byte_level() -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(LINES, trainer)
    return bpe


def _adding_bos(tokenizer: Tokenizer) -> processors.TemplateProcessing:
    bos = [("<s>", tokenizer.token_to_id("<s>"))]
    return processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=bos)


def _wrapped(tokenizer: Tokenizer, **settings: Any) -> PreTrainedTokenizerFast:
    given = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", **settings}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **given)
    wrapped.add_special_tokens({"extra_special_tokens": [AddedToken(token, special=True) for token in SPECIAL[4:]]})
    return wrapped
