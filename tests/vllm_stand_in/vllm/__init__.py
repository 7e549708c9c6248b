"""What `raysft/evaluation/vllm_worker.py` uses of vLLM, with the real arithmetic, by `transformers`, and nothing fast.

It is found on PYTHONPATH by the process that a test starts. It is as strict as vLLM 0.32 was seen to be: unknown
arguments, requests longer than `max_model_len`, and weights that do not fit the configuration are errors. Without
arithmetic, and without importing torch, it goes on with zeros for ever: `load_format="dummy"`.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vllm.sampling_params import RequestOutputKind, SamplingParams

__all__ = ["LLM", "RequestOutputKind", "SamplingParams"]

_AT_ONCE = 3  # requests of a step: fewer than are asked, so that they wait for each other


@dataclass
class _Request:
    name: str
    prompt: list[int]
    params: SamplingParams
    added: list[int] = field(default_factory=list)


class LLM:
    """`vllm.LLM` with an engine that is asked step by step."""

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool,
        generation_config: str,
        dtype: str,
        max_model_len: int,
        tensor_parallel_size: int,
        seed: int,
        gpu_memory_utilization: float = 0.9,
        enable_prefix_caching: bool = True,
        load_format: str = "auto",
    ) -> None:
        print("vLLM prints what it does")  # noqa: T201  to the very descriptor on which answers might be expected
        assert skip_tokenizer_init
        assert generation_config == "vllm"
        for _ in range(1, tensor_parallel_size):  # vLLM has a process for each GPU
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        if gpu_memory_utilization < 0.01:
            raise ValueError("Free memory on device is less than desired GPU memory utilization")
        network = None if load_format == "dummy" else _Network(model, dtype, seed)
        self.llm_engine = LLMEngine(network, max_model_len, enable_prefix_caching)


class LLMEngine:
    """One step gives each of the first requests one token more."""

    def __init__(self, network: _Network | None, max_model_len: int, caches: bool) -> None:
        self.vllm_config = SimpleNamespace(cache_config=SimpleNamespace(enable_prefix_caching=caches))
        self._network = network
        self._most = max_model_len
        self._requests: dict[str, _Request] = {}

    def add_request(self, request_id: str, prompt: dict[str, list[int]], params: SamplingParams) -> None:
        tokens = prompt["prompt_token_ids"]
        if not 0 < len(tokens) < self._most:
            raise ValueError(f"a prompt of {len(tokens)} tokens, and room for {self._most} with an answer")
        assert request_id not in self._requests
        self._requests[request_id] = _Request(request_id, tokens, params)

    def abort_request(self, request_ids: list[str]) -> None:
        for name in request_ids:
            self._requests.pop(name, None)

    def has_unfinished_requests(self) -> bool:
        return bool(self._requests)

    def step(self) -> list[Any]:
        return [self._one(request) for request in list(self._requests.values())[:_AT_ONCE]]

    def _one(self, request: _Request) -> Any:
        params, first = request.params, not request.added
        token, likelihoods = 0, {0: SimpleNamespace(logprob=0.0)}
        prompt: list[Any] | None = None
        if self._network is not None:
            rows = self._network.log_probabilities([*request.prompt, *request.added])
            token = self._network.choose(rows[-1], params)
            likelihoods = _likelihoods(rows[-1], token)
            if first and params.prompt_logprobs is not None:
                prompt = [None, *map(_likelihoods, rows, request.prompt[1:])]
        request.added.append(token)
        is_last = len(request.added) == params.max_tokens
        is_last |= len(request.prompt) + len(request.added) == self._most
        if is_last:
            del self._requests[request.name]
        chosen = SimpleNamespace(token_ids=[token], logprobs=None if params.logprobs is None else [likelihoods])
        return SimpleNamespace(request_id=request.name, outputs=[chosen], prompt_logprobs=prompt, finished=is_last)


def _likelihoods(row: Any, token: int) -> dict[int, Any]:
    """Of the likeliest token and of `token`."""
    return {index: SimpleNamespace(logprob=float(row[index])) for index in (int(row.argmax()), token)}


class _Network:
    """The model of a folder, all of whose weights have to be there."""

    def __init__(self, folder: str, dtype: str, seed: int) -> None:
        import torch
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModelForCausalLM

        self._torch = torch
        weights: dict[str, Any] = {}
        for file in Path(folder).glob("*.safetensors"):
            weights.update(load_file(file))
        config = AutoConfig.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).eval()
        missing, unexpected = self._model.load_state_dict(weights, strict=False)
        tied = {name for name in missing if config.tie_word_embeddings and name.startswith("lm_head")}
        if set(missing) - tied or unexpected:
            raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
        self._model.tie_weights()
        self._generator = torch.Generator().manual_seed(seed)

    def log_probabilities(self, tokens: list[int]) -> Any:
        """(len(tokens), vocabulary), of the token behind each."""
        with self._torch.no_grad():
            return self._model(self._torch.tensor([tokens])).logits[0].float().log_softmax(-1)

    def choose(self, row: Any, params: SamplingParams) -> int:
        if params.allowed_token_ids is not None:
            (token,) = params.allowed_token_ids
            return int(token)
        if params.temperature == 0:
            return int(row.argmax())
        odds = (row / params.temperature).softmax(-1)
        return int(self._torch.multinomial(odds, 1, generator=self._torch.Generator().manual_seed(params.seed or 0)))
