"""lm-eval's model over weights in memory that computes what requests share once.

The numbers are those of lm-eval's own HF backend: its texts become the same tokens, and are cut in the same way. Where
a model cannot share (see `raysft.evaluation.sharing`), and for what is asked for rarely (sampling, beams), that backend
does the work itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from lm_eval.api.instance import Instance

from raysft.evaluation.forest import Prefix, Request, plant
from raysft.evaluation.generation import Wanted, generate
from raysft.evaluation.layouts import Layouts
from raysft.evaluation.scoring import score
from raysft.evaluation.sharing import NotFiniteError, Sharing, sharing_of
from raysft.evaluation.token_lm import Pair, TokenLM

# Of each model in this process, whatever its weights are now.
_known: WeakKeyDictionary[Any, Sharing | None] = WeakKeyDictionary()

# Of a forward pass: a GPU wants many tokens, a CPU what stays in its caches.
_TOKEN_BUDGETS = {"cuda": 16_384, "cpu": 2_048}

_OURS = {"until", "max_gen_toks", "do_sample", "temperature"}


@dataclass(frozen=True)
class _Laid:
    """Requests in the order they were asked: those laid out, by their place, and those that go the plain way."""

    planted: Prefix
    places: list[int]
    plain: list[tuple[int, Pair]]


def _sharing_of(model: Any) -> Sharing | None:
    if model not in _known:
        try:
            _known[model] = sharing_of(model)
        except NotFiniteError:  # weights that diverged; the next ones may be sound
            return None
    return _known[model]


class PrefixLM(TokenLM):
    """A `TokenLM` over weights in memory. `batch_size` rows are generated at a time; `token_budget` bounds a pass."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch_size: int,
        layouts: Layouts | None = None,
        token_budget: int | None = None,
    ) -> None:
        super().__init__(model, tokenizer, batch_size, layouts)
        self._token_budget = token_budget or _TOKEN_BUDGETS.get(self.device.type, _TOKEN_BUDGETS["cpu"])
        self._sharing = _sharing_of(model)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is the greedy continuation) of each (context, continuation)."""
        if self._sharing is None:
            return super().loglikelihood(requests, disable_tqdm=True)
        texts = [request.args for request in requests]
        laid = self._layouts.get(("pairs", *self._about), texts, lambda: self._lay_out(list(map(self._pair, texts))))
        return self._scored(laid, len(requests))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text, in windows of the model's length."""
        if self._sharing is None:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)
        texts = [request.args for request in requests]
        laid, counts = self._layouts.get(("rolling", *self._about), texts, lambda: self._lay_out_windows(texts))
        scores = iter(self._scored(laid, sum(counts)))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    @property
    def _about(self) -> tuple[Any, ...]:
        """What beside the texts decides their tokens."""
        assert self._sharing is not None
        return self.tokenizer_name, self.max_length, self.add_bos_token, self._sharing.longest

    def _lay_out(self, pairs: Sequence[Pair]) -> _Laid:
        assert self._sharing is not None
        longest = self._sharing.longest
        places, requests, plain = [], [], []
        for place, (texts, context, continuation) in enumerate(pairs):
            tokens = (context + continuation)[-(self.max_length + 1) :]
            # One that is longer than the model goes the way on which lm-eval says what it thinks of that.
            if (longest is not None and len(tokens) > longest) or not 0 < len(continuation) < len(tokens):
                plain.append((place, (texts, context, continuation)))
            else:
                places.append(place)
                requests.append(Request(np.array(tokens, dtype=np.int32), len(continuation)))
        return _Laid(plant(requests), places, plain)

    def _lay_out_windows(self, texts: Sequence[tuple[str]]) -> tuple[_Laid, list[int]]:
        windows, counts = self._windows(texts)
        return self._lay_out(windows), counts

    def _scored(self, laid: _Laid, count: int) -> list[tuple[float, bool]]:
        assert self._sharing is not None
        scores: list[tuple[float, bool]] = [(0.0, True)] * count
        totals, greedy = score(self.model, laid.planted, len(laid.places), self._sharing.masks, self._token_budget)
        for place, total, is_greedy in zip(laid.places, totals.tolist(), greedy.tolist(), strict=True):
            scores[place] = (total, is_greedy)
        if laid.plain:
            plain = super()._loglikelihood_tokens([one for _, one in laid.plain], disable_tqdm=True)
            for (place, _), answer in zip(laid.plain, plain, strict=True):
                scores[place] = answer
        return scores

    def _wanted(self, context: str, options: dict[str, Any]) -> tuple[Wanted, list[str]] | None:
        """A greedy generation with its stop sequences; None for what goes the plain way."""
        if self._sharing is None:
            return None
        kwargs = self._generation_kwargs(options)
        if kwargs["do_sample"] or kwargs.keys() - _OURS or self._changing:
            return None
        if kwargs["max_gen_toks"] >= self.max_length:
            return None
        row, stops = self._row(context, kwargs)
        longest = self._sharing.longest
        if longest is not None and len(row.context) + row.most > longest:
            return None
        return row, stops

    def _generate(self, rows: Sequence[Wanted]) -> None:
        assert self._sharing is not None
        generate(self.model, rows, self._sharing.masks, self.batch_size, self._token_budget)
