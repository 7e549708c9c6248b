"""A chat completion service on loopback, with the faults of a real one on demand: it throttles, fails, hangs."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Kind = Literal["throttle", "quota", "error", "refuse", "hold", "hang up", "no json", "no choices", "null"]
Messages = list[dict[str, str]]

_STATUS: dict[str, int] = {"throttle": 429, "quota": 429, "error": 500, "refuse": 401}


@dataclass
class Fault:
    """What happens to the next `times` requests, after `after` others; `happened` counts them."""

    kind: Kind
    times: int
    after: int
    retry_after: str | None
    happened: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


class JudgeServer:
    """The service at `url`. `reply` makes the text of an answer from the messages; `requests` are all that came in.

    `keys`: what was sent as Authorization. `most_at_once`: requests that were in flight together.
    """

    def __init__(self, reply: Callable[[Messages], str], usage: tuple[int, int] | None) -> None:
        self.reply = reply
        self.usage = usage
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.most_at_once = 0
        self._in_flight = 0
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"service": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        # It looks this often for whether it is to end; the default of half a second is most of such a test's time.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def fault(self, kind: Kind, times: int = 1, after: int = 0, retry_after: str | None = None) -> Fault:
        fault = Fault(kind, times, after, retry_after)
        with self._lock:
            self._faults.append(fault)
        return fault

    def begins(self, request: dict[str, Any], key: str | None) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            self.keys.add(key)
            self._in_flight += 1
            self.most_at_once = max(self.most_at_once, self._in_flight)
            for fault in self._faults:
                if fault.happened < fault.times and len(self.requests) > fault.after:
                    fault.happened += 1
                    fault.reached.set()
                    return fault
        return None

    def ends(self) -> None:
        with self._lock:
            self._in_flight -= 1

    def mend(self) -> None:
        """No faults from now on."""
        with self._lock:
            for fault in self._faults:
                fault.released.set()
            self._faults.clear()

    def close(self) -> None:
        self.mend()
        self._server.shutdown()
        self._thread.join(timeout=30)
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    service: JudgeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Nothing: the log of a test shows no requests."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.service.begins(request, self.headers.get("Authorization"))
        try:
            if fault is not None and fault.kind == "hold":
                fault.released.wait(timeout=60)
            if fault is None or fault.kind == "hold":
                self._answer(200, self._completion(request))
            else:
                self._fail(fault)
        except (BrokenPipeError, ConnectionResetError):  # a client that has gone
            self.close_connection = True
        finally:
            self.service.ends()

    def _fail(self, fault: Fault) -> None:
        if fault.kind == "hang up":
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            self.connection.close()
        elif fault.kind == "no json":
            self._send(200, b"<html>It works!</html>", "text/html")
        elif fault.kind == "no choices":
            self._answer(200, {"object": "list", "data": []})
        elif fault.kind == "null":
            self._answer(200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": None}}]})
        else:
            code = "insufficient_quota" if fault.kind == "quota" else None
            said = f"as asked; you sent {self.headers.get('Authorization')}"  # as services do that show a wrong key
            self._answer(_STATUS[fault.kind], {"error": {"message": said, "code": code}}, fault.retry_after)

    def _completion(self, request: dict[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.service.reply(request["messages"])}
        answer: dict[str, Any] = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        }
        if self.service.usage is not None:
            read, written = self.service.usage
            answer["usage"] = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return answer

    def _answer(self, status: int, content: dict[str, Any], retry_after: str | None = None) -> None:
        self._send(status, json.dumps(content).encode(), "application/json", retry_after)

    def _send(self, status: int, body: bytes, kind: str, retry_after: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def judge_service(
    reply: Callable[[Messages], str] = lambda _: "Good. [[7]]", usage: tuple[int, int] | None = (100, 10)
) -> Iterator[JudgeServer]:
    server = JudgeServer(reply, usage)
    try:
        yield server
    finally:
        server.close()


def shown_answers(messages: Messages) -> tuple[str, str]:
    """The answers that a comparison shows as A and B, taken from its tags."""
    text = messages[1]["content"]
    if "<conversation_of_A>" in text:
        first, second = text.split("<conversation_of_B>")
        return _between(first, "second_answer"), _between(second, "second_answer")
    return _between(text, "answer_of_A"), _between(text, "answer_of_B")


def _between(text: str, tag: str) -> str:
    return text.split(f"<{tag}>\n", 1)[1].split(f"\n</{tag}>", 1)[0]
