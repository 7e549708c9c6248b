"""One self-contained HTML page, with every figure as PNG and PDF and every figure's numbers as CSV beside it.

Equal tables give equal bytes: figures carry no dates and their SVG names are hashed with a fixed salt. The page's own
policy (`Content-Security-Policy`) lets it load nothing, and run its one script and no other.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from raysft import __version__
from raysft.report.drawing import render
from raysft.report.listing import Listing
from raysft.report.output import publish, write_csv
from raysft.report.plot import Absent, Plot
from raysft.report.words import Headline


@dataclass(frozen=True)
class Shown:
    """A figure as the page needs it; exactly one of `svg` and `reason` is set. `values` is JSON for the script."""

    name: str
    title: str
    caption: str = ""
    numbers: tuple[str, ...] = ()
    code: str = ""
    svg: Markup | None = None
    values: Markup | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Section:
    """A section of the page: figures, then listings, then groups that open and close, then paragraphs."""

    anchor: str
    title: str
    about: str
    figures: tuple[Shown, ...] = ()
    listings: tuple[Listing, ...] = ()
    groups: tuple[Listing, ...] = ()
    paragraphs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Page:
    """Everything that the template shows."""

    title: str
    kicker: str
    headlines: Sequence[Headline]
    notes: Sequence[str]
    sections: Sequence[Section]
    first: Sequence[Listing] = field(default_factory=tuple)


def write_page(page: Page, out: Path) -> Path:
    """Write `out/report.html` and `out/data/<name>.csv` of its tables; figures lie there already (`show`)."""
    for listing in [*page.first, *(listing for section in page.sections for listing in section.listings)]:
        write_csv(listing.data, out, listing.name)
    script = resources.files("raysft.report").joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(_between_tags(script).encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    html = _template().render(
        page=page,
        policy=f"{policy}; base-uri 'none'; form-action 'none'",
        script=Markup(_between_tags(script)),  # our own, and hashed in the policy
        version=__version__,
    )
    return publish(html.encode(), out / "report.html")


def _between_tags(script: str) -> str:
    return f"\n{script}"


def show(figure: Plot | Absent, out: Path) -> Shown:
    """Draw a figure, with `out/figures/<name>.png`, `.pdf` and `out/data/<name>.csv`."""
    if isinstance(figure, Absent):
        return Shown(figure.name, figure.title, reason=figure.reason)
    drawing = render(figure)
    publish(drawing.png, out / "figures" / f"{figure.name}.png")
    publish(drawing.pdf, out / "figures" / f"{figure.name}.pdf")
    write_csv(figure.data, out, figure.name)
    caption = figure.caption
    if drawing.too_many:
        caption += " There are too many values to show under the pointer; the CSV has all of them."
    values = script_json(drawing.regions) if drawing.regions else None
    return Shown(figure.name, figure.title, caption, figure.numbers, figure.code, drawing.svg, values)


def script_json(value: Any) -> Markup:
    """JSON that can stand in a script element: no character of it can end the element or open another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("raysft.report", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html")
