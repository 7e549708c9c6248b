"""Faults that a test plants into a service on loopback: which requests they happen to, and how often."""

from __future__ import annotations

import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Generic, TypeVar

Kind = TypeVar("Kind", bound=str)


@dataclass
class Fault(Generic[Kind]):
    """What happens to the next `times` requests whose `METHOD /path` matches; `happened` counts them.

    For a fault that holds a request: `reached` is set once one is held, and setting `released` lets it go.
    """

    kind: Kind
    times: int
    matching: re.Pattern[str]
    happened: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


class FaultyService(Generic[Kind]):
    """What asks of each request whether something happens to it; `requests` is every `METHOD /path` that came."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self._faults: list[Fault[Kind]] = []

    def fault(self, kind: Kind, times: int = 1, matching: str = "") -> Fault[Kind]:
        fault = Fault(kind, times, re.compile(matching))
        with self.lock:
            self._faults.append(fault)
        return fault

    def mend(self) -> None:
        """No faults from now on."""
        with self.lock:
            for fault in self._faults:
                fault.released.set()
            self._faults.clear()

    def fault_of(self, request: str) -> Fault[Kind] | None:
        with self.lock:
            self.requests.append(request)
            for fault in self._faults:
                if fault.happened < fault.times and fault.matching.search(request):
                    fault.happened += 1
                    return fault
        return None


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """End the connection with a reset and no goodbye."""
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
