"""The process that answers for one checkpoint with vLLM: token ids in, log-likelihoods or token ids out.

Run by `raysft.evaluation.vllm_engine` as a file, by an interpreter that may have nothing of this package: it imports
only the standard library and vLLM. It knows no tokenizer; whoever asks decides from the tokens when an answer is over.

Protocol. Lines of JSON. The first, on standard input, says how to start: {"folder", "arguments"} of `vllm.LLM`. The
answer is {"ready": true} or {"failed": why}. Then come any number of

    {"score": [[id, tokens, count], ...]}        the log-likelihood of the last `count` tokens behind the others
    {"generate": [[id, tokens, sampling], ...]}  what goes on from tokens; `sampling` are arguments of SamplingParams
    {"stop": [id, ...]}                          no more of these

and, as the engine goes, {"scored": [[id, nats, whether each was the likeliest], ...], "added": [[id, tokens, whether
that was all], ...], "refused": [[id, why], ...]}. Answers leave by a descriptor of their own, for vLLM prints. The end
of the input ends this process and what it started at once, and takes the folder of the weights along.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# Before vLLM is imported. One process holds the engine too: what goes wrong in it is then an exception here, and not
# one of another process's log. A scored text may be one token longer than the model's window, as its last token is
# only chosen, and never put into the model.
SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1", "VLLM_NO_USAGE_STATS": "1"}

# A request for one token computes about a block of keys beyond those that the cache has; `prompt_logprobs` computes
# the whole prompt anew, and the output layer at each of its tokens.
_BLOCK = 32


class Inbox(threading.Thread):
    """Reads what is asked, whatever the engine is doing, and ends everything at the end of the input."""

    def __init__(self, lines: Any) -> None:
        super().__init__(daemon=True)
        self._lines = lines
        self._asked: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.folder: str | None = None

    def run(self) -> None:
        for line in self._lines:
            if not line.endswith("\n"):
                break  # whoever wrote it died in the middle
            message = json.loads(line)
            self.folder = message.get("folder", self.folder)
            self._asked.put(message)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        if os.getpgrp() == os.getpid():  # as it is started: what vLLM started is in the group
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    def take(self, waits: bool) -> list[dict[str, Any]]:
        """All that was asked since; with `waits` there is at least one."""
        taken = [self._asked.get()] if waits else []
        while not self._asked.empty():
            taken.append(self._asked.get())
        return taken


class Worker:
    """Requests on their way through an engine, where they are named `id`, or `id.place` for each token to be scored.

    `sampling` makes the parameters of a request, whose outputs come token by token.
    """

    def __init__(self, engine: Any, sampling: Callable[..., Any]) -> None:
        self._engine = engine
        self._sampling = sampling
        self._scores: dict[str, Score] = {}
        self.caches = bool(engine.vllm_config.cache_config.enable_prefix_caching)

    def take(self, message: dict[str, Any]) -> list[list[Any]]:
        """Begin what is asked; [id, why] of what the engine does not take."""
        refused = []
        for kind in ("score", "generate"):
            for number, tokens, rest in message.get(kind, ()):
                try:
                    self._begin(kind, str(number), tokens, rest)
                except (ValueError, TypeError) as error:
                    refused.append([number, f"{type(error).__name__}: {error}"])
        if message.get("stop"):
            self._engine.abort_request([str(number) for number in message["stop"]])
        return refused

    def step(self) -> dict[str, list[list[Any]]]:
        """Let the engine go on by one step, and say what came of it."""
        scored: list[list[Any]] = []
        added: list[list[Any]] = []
        for output in self._engine.step() if self.is_busy else ():
            name = output.request_id.partition(".")[0]
            if name not in self._scores:
                tokens = [int(token) for token in output.outputs[0].token_ids]
                added.append([int(name), tokens, bool(output.finished)])
            elif self._scores[name].take(output):
                score = self._scores.pop(name)
                scored.append([int(name), score.nats, score.is_greedy])
        return {"scored": scored, "added": added}

    @property
    def is_busy(self) -> bool:
        return bool(self._engine.has_unfinished_requests())

    def _begin(self, kind: str, name: str, tokens: list[int], rest: Any) -> None:
        if kind == "generate":
            self._add(name, tokens, ignore_eos=True, **rest)
            return
        apart = rest == 1 or (self.caches and _BLOCK * rest <= len(tokens))
        last = range(len(tokens) - rest, len(tokens)) if apart else [len(tokens) - 1]
        self._scores[name] = Score(len(last), tokens[-rest:-1] if not apart else [])
        try:
            for place in last:
                more = {} if apart else {"prompt_logprobs": 1}
                # The logarithm is of the probability before all but this token is taken out.
                chosen = {"allowed_token_ids": [tokens[place]], "logprobs": 1, "max_tokens": 1}
                self._add(f"{name}.{place}", tokens[:place], temperature=0.0, ignore_eos=True, **chosen, **more)
        except (ValueError, TypeError):
            del self._scores[name]
            raise

    def _add(self, name: str, tokens: list[int], **sampling: Any) -> None:
        prompt: Any = {"prompt_token_ids": tokens}
        renderer: Any = getattr(self._engine, "renderer", None)
        if hasattr(renderer, "render_cmpl"):  # newer engines want prompts that went through it
            (prompt,) = renderer.render_cmpl([prompt])
        self._engine.add_request(name, prompt, self._sampling(**sampling))


class Score:
    """The log-likelihood of a continuation as its parts come: tokens that were chosen, and `before` them, in order,
    those that stood at the end of the prompt."""

    def __init__(self, parts: int, before: list[int]) -> None:
        self.nats = 0.0
        self.is_greedy = True
        self._missing = parts
        self._before = before

    def take(self, output: Any) -> bool:
        """Count what an output says; whether that was all."""
        if self._before:
            known = output.prompt_logprobs[-len(self._before) :]
            for token, likelihoods in zip(self._before, known, strict=True):
                self._count(token, likelihoods)
        chosen = output.outputs[0]
        self._count(chosen.token_ids[0], chosen.logprobs[0])
        self._missing -= 1
        return self._missing == 0

    def _count(self, token: int, likelihoods: Any) -> None:
        """`likelihoods` are of the token and of the likeliest; of equal ones each counts as the likeliest."""
        own = likelihoods[token].logprob
        self.nats += own
        self.is_greedy &= own >= max(one.logprob for one in likelihoods.values())


def start(message: dict[str, Any]) -> Worker:
    """The engine on the weights of a folder."""
    os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
    import vllm
    from vllm.sampling_params import RequestOutputKind

    sampling = partial(vllm.SamplingParams, detokenize=False, output_kind=RequestOutputKind.DELTA)
    llm = vllm.LLM(model=message["folder"], skip_tokenizer_init=True, generation_config="vllm", **message["arguments"])
    return Worker(llm.llm_engine, sampling)


def main() -> None:
    """Serve standard input until it ends."""
    sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != Path(__file__).resolve().parent]
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)

    def say(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    inbox = Inbox(sys.stdin)
    inbox.start()
    try:
        worker = start(inbox.take(waits=True)[0])
        say({"ready": True})
        while True:
            refused = [one for message in inbox.take(waits=not worker.is_busy) for one in worker.take(message)]
            said = {"refused": refused, **worker.step()}
            if any(said.values()):
                say(said)
    except BaseException as error:
        traceback.print_exc()
        say({"failed": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
