"""An lm-eval model that answers as a test tells it to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from raysft.evaluation import harness
from raysft.evaluation.harness import Benchmarks, evaluate


class Scripted(LM):
    """Writes `answer(context)`, up to the first stop string. `likes` gives the log-likelihood of a continuation and
    whether it is the greedy one; when left out, that is the one that it would write."""

    def __init__(
        self, answer: Callable[[str], str], likes: Callable[[str, str], tuple[float, bool]] | None = None
    ) -> None:
        super().__init__()
        self.answer = answer
        self.likes = likes or (lambda context, text: (-1.0, True) if text == answer(context) else (-9.0, False))
        self.contexts: list[str] = []  # of what it wrote
        self.scored: list[tuple[str, str]] = []
        self.endless: set[tuple[str, str]] = set()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        written = []
        for context, options in (request.args for request in requests):
            self.contexts.append(context)
            text = self.answer(context)
            for stop in options["until"]:
                text = text.split(stop)[0]
            written.append(text)
        return written

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        asked = [request.args for request in requests]
        self.scored += asked
        return [self.likes(*one) for one in asked]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise AssertionError("no task of these tests asks for this")


def score_rows(benchmarks: Benchmarks, task: str, model: Scripted) -> dict[tuple[str, str], dict[str, Any]]:
    """What comes of a task with `model`: score rows by leaf task (or group) and metric."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness, "_language_model", lambda *_: model)
        table = evaluate(None, None, benchmarks, [task])[task]
    return {(row["task"], row["metric"]): row for row in table.to_pylist()}
