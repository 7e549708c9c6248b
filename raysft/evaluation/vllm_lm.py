"""lm-eval's model whose answers a vLLM process computes: tasks, templates, tokens and stop sequences stay here."""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lm_eval.api.instance import Instance

from raysft.evaluation.generation import Wanted
from raysft.evaluation.kept_requests import SEED
from raysft.evaluation.layouts import Layouts
from raysft.evaluation.templated_lm import Templated
from raysft.evaluation.token_lm import Pair, TokenLM, changing
from raysft.evaluation.vllm_engine import Sampled, VllmEngine, VllmError
from raysft.models.plain_weights import save_plain
from raysft.spec.keys import canonical_json, text_digest
from raysft.spec.vllm import VllmSpec

_SPARE = 0.1  # of the free memory: what vLLM does not count as its own

# Of lm-eval's settings of a generation, those that both backends have, by the name that vLLM has for them.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_ASKED = {"until", "max_gen_toks", "do_sample", *_SAMPLING}
_SEED_DIGITS = 7  # hexadecimal: a number that every sampler takes
_TOP_K = 50  # of `transformers`, where nothing else is said


class Served:
    """A model for whose weights, as they are at first use, a vLLM process answers until the end of a `with`.

    Meanwhile the model is in the CPU's memory, for vLLM wants the GPU's. A process that does not start is not tried
    again; one that ended on the way is, for what is asked next.
    """

    def __init__(self, model: Any, spec: VllmSpec) -> None:
        self.model = model
        self.spec = spec
        self._home = model.device
        self._engine: VllmEngine | None = None
        self._failure: VllmError | None = None

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._engine is not None:
                self._engine.end()
        finally:
            self.model.to(self._home)

    def engine(self, window: int) -> VllmEngine:
        """The process, for requests of `window` tokens at most. VllmError if it does not start."""
        if self._failure is not None:
            raise self._failure
        if self._engine is not None and not self._engine.lives:
            self._engine.end()
            self._engine = None
        if self._engine is None:
            try:
                self._engine = self._start(window)
            except VllmError as error:
                self._failure = error
                raise
        return self._engine

    def _start(self, window: int) -> VllmEngine:
        self.model.to("cpu")
        arguments = {
            "dtype": self.spec.dtype,
            "max_model_len": min(window, self.spec.max_model_len or window),
            "tensor_parallel_size": self.spec.tensor_parallel,
            "seed": SEED,
            **self._memory(),
            **self.spec.options,
        }
        save = partial(save_plain, self.model, dtype=getattr(torch, self.spec.dtype))
        return VllmEngine(self.spec, arguments, save)

    def _memory(self) -> dict[str, float]:
        """vLLM's share of a GPU's memory: what this process, which may hold the state of a training, leaves free."""
        share = self.spec.gpu_memory_utilization
        if share is None and self._home.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            free, total = torch.cuda.mem_get_info(self._home)
            share = math.floor(100 * (1 - _SPARE) * free / total) / 100
        return {} if share is None else {"gpu_memory_utilization": share}


class VllmLM(TokenLM):
    """A `TokenLM` for whose model a vLLM process answers."""

    def __init__(self, served: Served, tokenizer: Any, batch_size: int, layouts: Layouts | None = None) -> None:
        super().__init__(served.model, tokenizer, batch_size, layouts)
        self._served = served
        self._seeds: Iterator[int] = iter(())

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether it is the greedy continuation) of each (context, continuation)."""
        texts = [request.args for request in requests]
        return self._scored(self._layouts.get(("scored", *self._about), texts, lambda: list(map(self._pair, texts))))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text, in windows of the model's length."""
        texts = [request.args for request in requests]
        windows, counts = self._layouts.get(("windows", *self._about), texts, lambda: self._windows(texts))
        scores = iter(self._scored(windows))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Text generated after each context, up to its stop sequences."""
        self._seeds = _seeds(requests)
        return super().generate_until(requests, disable_tqdm)

    @property
    def _about(self) -> tuple[Any, ...]:
        """What beside the texts decides their tokens."""
        return self.tokenizer_name, self.max_length, self.add_bos_token

    def _scored(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        asked = []
        for _, context, continuation in pairs:
            if not context or not 0 < len(continuation) <= self.max_length:
                found = f"{len(continuation)} tokens behind {len(context)}"
                raise ValueError(f"{found} cannot be scored by a model that takes {self.max_length}")
            asked.append(((context + continuation)[-(self.max_length + 1) :], len(continuation)))
        return self._engine(max(len(tokens) for tokens, _ in asked)).score(asked) if asked else []

    def _wanted(self, context: str, options: dict[str, Any]) -> tuple[Sampled, list[str]]:
        """A generation with its stop sequences, of the requests in turn. ValueError for one that vLLM, or this model,
        cannot do."""
        seed = next(self._seeds)
        kwargs = self._generation_kwargs(options)
        settings = changing({**self._changing, **kwargs})
        if unknown := sorted(settings.keys() - _ASKED):
            raise ValueError(
                f"generation with {', '.join(unknown)} is not done under evaluation.backend: vllm; valid: "
                f"{', '.join(_SAMPLING)}, or evaluation.backend: transformers"
            )
        if kwargs["max_gen_toks"] >= self.max_length:
            raise ValueError(f"max_gen_toks is {kwargs['max_gen_toks']}, and the model takes {self.max_length} tokens")
        row, stops = self._row(context, kwargs)
        return Sampled(row.context, row.most, row.is_over, sampling=self._sampling(settings, seed)), stops

    def _generate(self, rows: Sequence[Wanted]) -> None:
        sampled = [row for row in rows if isinstance(row, Sampled)]
        self._engine(max(len(row.context) + row.most for row in sampled)).generate(sampled)

    def _sampling(self, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Arguments of SamplingParams, of which those that are not given are as `transformers` has them."""
        penalty = {name: settings[name] for name in ("repetition_penalty",) if name in settings}
        if not settings.get("do_sample"):
            return {"temperature": 0.0, **penalty}
        config = self.model.generation_config
        usual = {"temperature": 1.0, "top_p": 1.0, "top_k": _TOP_K, "min_p": 0.0}
        drawn = {}
        for name, otherwise in usual.items():
            configured = getattr(config, name, None)
            drawn[name] = settings.get(name, otherwise if configured is None else configured)
        return {**drawn, **penalty, "seed": seed}

    def _engine(self, longest: int) -> VllmEngine:
        """The process, for requests of `longest` tokens, which one of a scored text may have more than the model."""
        most = self._served.spec.max_model_len
        if most is not None and longest > most:
            raise VllmError(f"a request has {longest} tokens; raise evaluation.vllm.max_model_len, found {most}")
        return self._served.engine(self.max_length + 1)


class TemplatedVllmLM(Templated, VllmLM):
    """A `VllmLM` behind a template."""


def _seeds(requests: Iterable[Instance]) -> Iterator[int]:
    """A seed for each request: of its task, its context, and how often the task asked for that before. What a task is
    given does then not depend on those that are asked beside it, which after a kill are others."""
    asked: Counter[tuple[str | None, str]] = Counter()
    for request in requests:
        what = (request.task_name, request.args[0])
        yield int(text_digest(canonical_json([SEED, *what, asked[what]]))[:_SEED_DIGITS], 16)
        asked[what] += 1
