"""Addresses of clusters and of job servers, tried before Ray is asked: it waits for minutes where nobody answers."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from raysft.spec.mistakes import shown
from raysft.spec.sweep import SpecError

_TIMEOUT_S = 5.0
_FOUND_BY_RAY = {"auto", "local"}
_GCS_PORT, _CLIENT_PORT = "6379", "10001"  # Ray's defaults, for people who look for theirs


def check_cluster(address: str | None) -> None:
    """SpecError unless something listens at the address of a cluster (or `RAY_ADDRESS`), or Ray has to find it itself.

    Addresses are `host:port` of the head's GCS, and `ray://host:port` of a Ray Client server.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None or address in _FOUND_BY_RAY:
        return
    scheme, there, _ = address.partition("://")
    if not there:
        _try(address, address, f"HEAD:{_GCS_PORT}, or auto for the one on this machine")
    elif scheme == "ray":
        _try(address, address.removeprefix("ray://"), f"ray://HEAD:{_CLIENT_PORT}")
    elif scheme in ("http", "https"):
        raise SpecError(
            f"--address: {shown(address, 200)} is that of a job server, which `raysft submit` takes; "
            f"valid: HEAD:{_GCS_PORT}, or auto for the cluster on this machine"
        )


def check_job_server(address: str) -> None:
    """SpecError unless something listens at the `http://` address of a job server; a proxy is left to itself."""
    valid = "http://HEAD:8265, the address of Ray's dashboard"
    scheme = address.partition("://")[0]
    if "://" not in address or scheme == "ray":
        raise SpecError(f"--address: {shown(address, 200)} is no job server; valid: {valid}")
    if scheme not in ("http", "https"):
        return
    try:
        parts = urlsplit(address)
        place = f"{parts.hostname}:{parts.port or (443 if scheme == 'https' else 80)}"
    except ValueError as error:
        raise SpecError(f"--address: {shown(address, 200)}: {shown(error)}; valid: {valid}") from error
    if scheme not in getproxies() or proxy_bypass(place):
        _try(address, place, valid)


def _try(address: str, place: str, valid: str) -> None:
    """Open and close a connection to `host:port`."""
    host, _, port = place.rpartition(":")
    host = host.strip("[]")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise SpecError(f"--address: found {shown(address, 200)}; valid: {valid}")
    try:
        socket.create_connection((host, int(port)), timeout=_TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:
        raise SpecError(
            f"--address: nobody answers at {shown(address, 200)} ({shown(error)}); valid: {valid}"
        ) from error
