"""An S3 service on loopback (moto), with the faults of a real one on demand: it throttles, hangs up, loses answers."""

from __future__ import annotations

import logging
import re
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Literal

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import ThreadedWSGIServer

Kind = Literal[
    "slow down", "internal error", "conflict", "denied", "hang up", "lose the answer", "hold", "ignore conditions"
]

_ANSWERS: dict[str, tuple[int, str]] = {
    "slow down": (503, "SlowDown"),
    "internal error": (500, "InternalError"),
    "conflict": (409, "ConditionalRequestConflict"),
    "denied": (403, "AccessDenied"),
}

BUCKET = "bucket"


@dataclass
class Fault:
    """What happens to the next `times` requests whose `METHOD /path` matches; `happened` counts them."""

    kind: Kind
    times: int
    matching: re.Pattern[str]
    happened: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


class S3Server:
    """The service: `url`, and `requests`, every `METHOD /path` that came in."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        # S3 decides conditional puts one after the other; moto looks and then writes, in threads.
        self.one_write_at_a_time = threading.Lock()
        handler = type("Handler", (_Handler,), {"service": self})
        app = DomainDispatcherApplication(create_backend_app)
        self._server = ThreadedWSGIServer("127.0.0.1", 0, app, handler=handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def fault(self, kind: Kind, times: int = 1, matching: str = "") -> Fault:
        fault = Fault(kind, times, re.compile(matching))
        with self._lock:
            self._faults.append(fault)
        return fault

    def mend(self) -> None:
        """No faults from now on."""
        with self._lock:
            for fault in self._faults:
                fault.released.set()
            self._faults.clear()

    def fault_of(self, request: str) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            for fault in self._faults:
                if fault.happened < fault.times and fault.matching.search(request):
                    fault.happened += 1
                    return fault
        return None

    def make_bucket(self, name: str) -> None:
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30):
            pass

    def close(self) -> None:
        self.mend()
        self._server.shutdown()
        self._thread.join(timeout=30)
        self._server.server_close()


class _Handler(MotoRequestHandler):
    service: S3Server

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the log of a test shows no requests."""

    def run_wsgi(self) -> None:
        fault = self.service.fault_of(f"{self.command} {self.path}")
        if fault is not None and fault.kind in _ANSWERS:
            self._refuse(*_ANSWERS[fault.kind])
            return
        if fault is not None and fault.kind == "hang up":
            self._hang_up()
            return
        if fault is not None and fault.kind == "ignore conditions":
            del self.headers["If-None-Match"]
        if fault is not None and fault.kind == "hold":
            fault.reached.set()
            fault.released.wait(timeout=60)
        if fault is not None and fault.kind == "lose the answer":
            self.wfile = BytesIO()  # type: ignore[assignment]
            self._answer()
            self._hang_up()
            return
        self._answer()

    def _answer(self) -> None:
        if self.command == "PUT":
            with self.service.one_write_at_a_time:
                super().run_wsgi()
        else:
            super().run_wsgi()

    def _refuse(self, status: int, code: str) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = (
            b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code><Message>as asked</Message></Error>".encode()
        )
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no goodbye
        self.connection.close()


def environment(url: str, secret: str = "a secret of nobody") -> dict[str, str]:
    """What a process needs in its environment to use the service, and to ask no other one."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "a-key-of-nobody",
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_METADATA_ENDPOINT": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


@contextmanager
def s3_service() -> Iterator[S3Server]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = S3Server()
    try:
        server.make_bucket(BUCKET)
        yield server
    finally:
        server.close()
