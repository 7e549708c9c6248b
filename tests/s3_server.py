"""An S3 service on loopback (moto), with the faults of a real one on demand: it throttles, hangs up, loses answers."""

from __future__ import annotations

import logging
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, Literal

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import ThreadedWSGIServer

from tests.faults import FaultyService, hang_up

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


class S3Server(FaultyService[Kind]):
    """The service, at `url`."""

    def __init__(self) -> None:
        super().__init__()
        # S3 decides conditional puts one after the other; moto looks and then writes, in threads.
        self.one_write_at_a_time = threading.Lock()
        handler = type("Handler", (_Handler,), {"service": self})
        app = DomainDispatcherApplication(create_backend_app)
        self._server = ThreadedWSGIServer("127.0.0.1", 0, app, handler=handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

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
            hang_up(self)
            return
        if fault is not None and fault.kind == "ignore conditions":
            del self.headers["If-None-Match"]
        if fault is not None and fault.kind == "hold":
            fault.reached.set()
            fault.released.wait(timeout=60)
        if fault is not None and fault.kind == "lose the answer":
            self.wfile = BytesIO()  # type: ignore[assignment]
            self._answer()
            hang_up(self)
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
