"""What lm-eval asks for in texts, as tokens: common to the models that answer it, whatever computes the answers.

Texts become the same tokens as in lm-eval's own HF backend, and are cut in the same way.
"""

from __future__ import annotations

import uuid
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from raysft.corpus.kept_rows import tokenizer_digest
from raysft.evaluation.degenerate import generation_key
from raysft.evaluation.generation import Wanted
from raysft.evaluation.layouts import Layouts
from raysft.spec.keys import canonical_json, text_digest

Pair = tuple[Any, list[int], list[int]]  # as lm-eval has it: what was asked, tokens of the context, of the continuation

_tokenizers: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # and their digests


# What a generation configuration may hold that changes greedy choices -> the value that does not.
NEUTRAL = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "min_length": 0,
    "min_new_tokens": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
    "num_beams": 1,
    "penalty_alpha": None,
    "dola_layers": None,
    "prompt_lookup_num_tokens": None,
}


def changing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of generation settings that are given, and not neutral."""
    return {name: value for name, value in settings.items() if value not in (NEUTRAL.get(name), None)}


class TokenLM(HFLM):
    """An `HFLM` around `model`, which may be anywhere while something else answers for it.

    `layouts` keeps what texts become, for all checkpoints that are asked the same. A subclass answers in
    `loglikelihood` and `loglikelihood_rolling`, says by `_wanted` which generations are its own, and does them in
    `_generate`.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, layouts: Layouts | None = None) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal")
        self.endless: set[tuple[str, str]] = set()  # generations that were cut at the most tokens they might have
        self._layouts = layouts if layouts is not None else Layouts()

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval tells prompts apart by: two revisions of one model may differ in it."""
        if self.tokenizer not in _tokenizers:
            words = canonical_json([self.tokenizer.chat_template, self.tokenizer.special_tokens_map])
            split = tokenizer_digest(self.tokenizer) or uuid.uuid4().hex
            _tokenizers[self.tokenizer] = f"{split}-{text_digest(words)}"
        return f"{super().tokenizer_name}-{_tokenizers[self.tokenizer]}"

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Text generated after each context, up to its stop sequences."""
        texts: list[str | None] = [None] * len(requests)
        wanted, plain = [], []
        for place, request in enumerate(requests):
            one = self._wanted(*request.args)
            if one is None:
                plain.append(place)
            else:
                wanted.append((place, *one))
        if plain:
            done = super().generate_until([requests[place] for place in plain], disable_tqdm=True)
            for place, text in zip(plain, done, strict=True):
                texts[place] = text
                if self._is_full(text, requests[place].args[1]):
                    self.endless.add(generation_key(*requests[place].args))
        if wanted:
            self._generate([row for _, row, _ in wanted])
        for place, row, stops in wanted:
            texts[place] = postprocess_generated_text(self.tok_decode(row.added), stops, None)
            if row.was_cut:
                self.endless.add(generation_key(*requests[place].args))
        return [text for text in texts if text is not None]

    @abstractmethod
    def _wanted(self, context: str, options: dict[str, Any]) -> tuple[Wanted, list[str]] | None:
        """A generation with its stop sequences; None for one that is left to lm-eval's own backend."""

    @abstractmethod
    def _generate(self, rows: Sequence[Wanted]) -> None:
        """Fill in what is added to each."""

    def _pair(self, texts: tuple[str, str]) -> Pair:
        """As lm-eval's `TemplateLM.loglikelihood` has it."""
        context, continuation = texts
        if context:
            return (texts, *self._encode_pair(context, continuation))
        tokens = self.tok_encode(continuation, add_special_tokens=False)
        if tokens[0] == self.prefix_token_id:
            return texts, tokens[:1], tokens[1:]
        return texts, [self.prefix_token_id], tokens

    def _windows(self, texts: Sequence[tuple[str]]) -> tuple[list[Pair], list[int]]:
        """As lm-eval's `HFLM.loglikelihood_rolling` has it: disjoint windows, each with one token before it; and how
        many each text has."""
        counts, windows = [], []
        for (text,) in texts:
            tokens, length = self.tok_encode(text), self.max_length
            found = utils.get_rolling_token_windows(tokens, self.prefix_token_id, length, context_len=1)
            own = list(map(utils.make_disjoint_window, found))
            counts.append(len(own))
            windows += [(None, *window) for window in own]
        return windows, counts

    def _generation_kwargs(self, options: dict[str, Any]) -> dict[str, Any]:
        """A task's generation settings by lm-eval's names, its defaults filled in."""
        return dict(normalize_gen_kwargs(options, self.max_gen_toks))

    def _row(self, context: str, kwargs: dict[str, Any]) -> tuple[Wanted, list[str]]:
        """What goes on from a context that leaves room for what is added, with its stop sequences."""
        room = self.max_length - kwargs["max_gen_toks"]
        tokens = self._context_ids(context)[-room:]
        stops = handle_stop_sequences(list(kwargs["until"]), eos=self.tok_decode([self.eot_token_id], False))
        return Wanted(np.array(tokens, dtype=np.int32), kwargs["max_gen_toks"], self._is_over(stops)), stops

    def _is_full(self, text: str, options: dict[str, Any]) -> bool:
        """Whether a text of lm-eval's own backend has the most tokens, which is not said there."""
        most = self._generation_kwargs(options)["max_gen_toks"]
        return len(self.tok_encode(text, add_special_tokens=False)) >= most

    def _context_ids(self, context: str) -> list[int]:
        """Tokens of a context to generate from."""
        return self.tok_encode(context)

    @property
    def _changing(self) -> dict[str, Any]:
        """What in the model's own generation configuration may make another than the likeliest token the greedy one."""
        return changing({name: getattr(self.model.generation_config, name, None) for name in NEUTRAL})

    def _is_over(self, stops: Sequence[str]) -> Any:
        ends = self.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        # No token is shorter than a byte; those before the stop may change how its first one reads.
        tail = max(len(stop.encode()) for stop in stops) + 4

        def is_over(added: list[int]) -> bool:
            if added[-1] in ends:
                return True
            text = self.tokenizer.decode(added[-tail:])
            if not any(stop in text for stop in stops if stop):
                return False
            whole = self.tokenizer.decode(added) if len(added) > tail else text
            return any(stop in whole for stop in stops if stop)

        return is_over
