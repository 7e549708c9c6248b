"""Pages in a browser: what one says on its console, or asks of the network, fails the test that opened it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import ARGUMENTS, chromium

WAIT = 30_000  # milliseconds that anything on a page may take

Opened = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # what opens no page does not need it

    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Opened]:
    """Open a file; at the end of the test nothing may have been said on its console or asked of the network."""
    said: list[str] = []
    asked: list[str] = []
    opened: list[str] = []
    contexts = []

    def open_file(path: Path, size: tuple[int, int] = (1360, 900), **options: Any) -> Any:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        opened.append(path.as_uri())
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:") and url not in opened] == []
