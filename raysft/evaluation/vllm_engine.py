"""The process that runs `vllm_worker.py` for one checkpoint: started, asked, and ended, by whoever measures it.

It ends with this process whatever happens: its input is a pipe, whose end it takes for its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from raysft.evaluation.generation import Wanted
from raysft.evaluation.process_group import end_group
from raysft.spec.mistakes import shown
from raysft.spec.vllm import VllmSpec

_WORKER = Path(__file__).with_name("vllm_worker.py")
_SILENCE_S = 1800.0  # without a word from the process: it loads and compiles a model in this time, or it hangs
_LOOK_S = 1.0  # how often it is looked at whether it still lives
_LOG_END = 1 << 16  # bytes of the log in which its last error is looked for
_IN_FLIGHT = 1024  # requests with the engine; more wait here, where they are small
_TOGETHER = 64  # of them, handed over in one go

_ERROR = re.compile(r"\b(\w*(?:Error|Exception)\b: .+)")
_NO_ERROR = re.compile(r"\b(?:DEBUG|INFO|WARNING) \d\d-\d\d\b")  # of vLLM's log, where tracebacks are too


class VllmError(RuntimeError):
    """vLLM could not be started, ended, or did not take a request: one line, with its own last words."""


@dataclass
class Sampled(Wanted):
    """One that is not only greedy: `sampling` are arguments of `vllm.SamplingParams`."""

    sampling: dict[str, Any] = field(default_factory=dict)


def interpreter(spec: VllmSpec) -> str:
    """The interpreter that has vLLM. VllmError if there is none of that name."""
    if spec.python is None:
        return sys.executable
    found = shutil.which(Path(spec.python).expanduser())
    if found is None:
        raise VllmError(f"evaluation.vllm.python: no interpreter {shown(spec.python)}")
    return found


def why_missing(spec: VllmSpec) -> str:
    """Why there is no vLLM where the sweep says it is; empty if there is. It is looked for, and not imported."""
    try:
        python = interpreter(spec)
        found = subprocess.run(
            [python, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"],
            env=_environment(spec),
            capture_output=True,
            timeout=60,
        )
    except (VllmError, OSError, subprocess.TimeoutExpired) as error:
        return shown(error)
    if found.returncode == 0:
        return ""
    if spec.python is None:
        return (
            "evaluation.backend: vllm, and there is no vLLM beside raysft: pip install 'raysft[vllm]', or name an "
            "interpreter that has it under evaluation.vllm.python"
        )
    return f"evaluation.vllm.python: {shown(spec.python)} has no vLLM"


class VllmEngine:
    """A vLLM process that answers for the weights that `save(folder)` writes, until `end`.

    `arguments` are of `vllm.LLM`. Raises VllmError for a process that does not come up.
    """

    def __init__(self, spec: VllmSpec, arguments: dict[str, Any], save: Callable[[Path], None]) -> None:
        python = interpreter(spec)
        self._ids = 0
        self._rest = b""
        self.folder = Path(tempfile.mkdtemp(prefix="raysft-vllm-"))
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._save(save)
            self._log = self.folder / "log"
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [python, str(_WORKER)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=_environment(spec),
                    start_new_session=True,
                )
            self._send({"folder": str(self.folder), "arguments": arguments})
            self._receive()  # that it is ready
            for weights in self.folder.glob("*.safetensors"):  # they are in its memory now
                weights.unlink()
        except BaseException:
            self.end()
            raise

    def _save(self, save: Callable[[Path], None]) -> None:
        try:
            save(self.folder)
        except (OSError, SafetensorError) as error:
            where = f"{self.folder} (TMPDIR says where temporary folders are)"
            raise VllmError(f"the weights for vLLM could not be written to {where}: {shown(error)}") from error

    @property
    def lives(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def end(self) -> None:
        """End the process and what it started, which have then let go of their GPUs, and remove its folder.

        VllmError for one that goes on.
        """
        process, self._process = self._process, None
        try:
            if process is not None:
                end_group(process)
        except TimeoutError as error:
            raise VllmError(f"vLLM does not end: {error}") from error
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def score(self, requests: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        """Of each (tokens, count): log-likelihood of the last `count` in nats, and whether each was the likeliest."""
        scores: dict[int, tuple[float, bool]] = {}
        order = sorted(range(len(requests)), key=lambda place: requests[place][0])  # those that begin alike together

        def take(answer: dict[str, Any], places: dict[int, int]) -> Iterable[int]:
            for number, nats, is_greedy in answer["scored"]:
                scores[places[number]] = (float(nats), bool(is_greedy))
                yield number

        self._ask("score", [(place, list(requests[place])) for place in order], take)
        return [scores[place] for place in range(len(requests))]

    def generate(self, rows: Sequence[Sampled]) -> None:
        """Fill in what is added to each; each is over when it says so itself, or has the most tokens."""
        order = sorted((place for place, row in enumerate(rows) if row.most), key=lambda at: rows[at].context.tolist())

        def take(answer: dict[str, Any], places: dict[int, int]) -> Iterable[int]:
            over = []
            for number, tokens, is_all in answer["added"]:
                if number not in places:
                    continue  # what came on the way to its end
                _add(rows[places[number]], tokens)
                if rows[places[number]].is_done:
                    yield number
                    over += [] if is_all else [number]
                elif is_all:
                    raise VllmError(f"vLLM ended an answer of {len(rows[places[number]].added)} tokens by itself")
            if over:
                self._send({"stop": over})

        asked = []
        for at in order:
            asked.append((at, [rows[at].context.tolist(), {"max_tokens": rows[at].most, **rows[at].sampling}]))
        self._ask("generate", asked, take)

    def _ask(
        self,
        kind: str,
        asked: Sequence[tuple[int, list[Any]]],
        take: Callable[[dict[str, Any], dict[int, int]], Iterable[int]],
    ) -> None:
        """Hand over what is asked, so much at a time, until `take` has said of each number that it is answered."""
        waiting = deque(asked)
        places: dict[int, int] = {}  # number with the engine -> place
        try:
            while waiting or places:
                if waiting and len(places) <= _IN_FLIGHT - _TOGETHER:
                    batch = [waiting.popleft() for _ in range(min(_TOGETHER, len(waiting)))]
                    numbered = list(enumerate(batch, self._ids))
                    self._ids += len(batch)
                    places.update((number, place) for number, (place, _) in numbered)
                    self._send({kind: [[number, *content] for number, (_, content) in numbered]})
                    continue
                answer = self._receive()
                if answer["refused"]:
                    raise VllmError(f"vLLM refused a request: {shown(answer['refused'][0][1])}")
                for number in list(take(answer, places)):
                    del places[number]
        except BaseException:
            self.end()  # what it was asked is still in it
            raise

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._last_words("ended") from None

    def _receive(self) -> dict[str, Any]:
        """The next answer. VllmError where the process ends, is silent for too long, or says that it failed."""
        assert self._process is not None
        assert self._process.stdout is not None
        stream = self._process.stdout.fileno()
        ready = select.poll()  # select() takes no descriptor above 1023, which a worker of a cluster may have
        ready.register(stream, select.POLLIN)
        deadline = time.monotonic() + _SILENCE_S
        while b"\n" not in self._rest:
            if ready.poll(_LOOK_S * 1000):
                piece = os.read(stream, 1 << 20)
                if not piece:
                    raise self._last_words("ended")
                self._rest += piece
            elif self._process.poll() is not None:  # one that it started may hold its descriptor
                raise self._last_words("ended")
            elif time.monotonic() > deadline:
                raise self._last_words(f"said nothing for {_SILENCE_S:.0f} s")
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise self._last_words("failed", answer["failed"])
        return answer

    def _last_words(self, how: str, why: str = "") -> VllmError:
        """What went wrong: what the process said of it, or the last error in its log."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LOOK_S)
        code = self._process.returncode
        signalled = f" by signal {-code}" if code is not None and code < 0 else ""
        said = why or last_error(self._log.read_bytes()[-_LOG_END:].decode(errors="replace"))
        return VllmError(f"vLLM {how}{signalled}: {shown(said) or 'it said nothing'}")


def last_error(log: str) -> str:
    """Of a log, the last line with an error that says what it is; the last line if there is none."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not _NO_ERROR.search(line)]
    # vLLM's processes for several GPUs say why, and after them that they ended.
    named = [found[1] for line in lines if (found := _ERROR.search(line)) and "See root cause above" not in line]
    return (named or lines or [""])[-1]


def _add(row: Wanted, tokens: Iterable[int]) -> None:
    for token in tokens:
        if row.is_done:
            return
        row.added.append(token)
        is_over = row.is_over(row.added)
        row.was_cut = not is_over and len(row.added) >= row.most
        row.is_done = is_over or row.was_cut


def _environment(spec: VllmSpec) -> dict[str, str]:
    """Of this process, with the GPUs that it holds; another interpreter finds its own packages."""
    environment = dict(os.environ)
    if spec.python is not None:
        for name in ("PYTHONPATH", "PYTHONHOME"):
            environment.pop(name, None)
    return environment
