"""The Chromium that end-to-end tests drive: which one there is, and what to do where there is none."""

from __future__ import annotations

import os
import shutil

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

CHROMIUM = os.environ.get("RAYSFT_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
"""Path of the browser: the one that the environment names, or the first of the usual names that is installed."""

MISSING = (
    f"no browser: none of {', '.join(_NAMES)} is on the PATH; install one (Debian: apt-get install chromium) or name "
    "its path in RAYSFT_CHROMIUM"
)

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
"""Skips without a browser; with one that `RAYSFT_CHROMIUM` names and that is not there, the test fails."""


def chromium() -> str:
    assert CHROMIUM is not None, MISSING
    return CHROMIUM
