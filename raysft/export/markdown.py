"""Markdown in which whatever a user named stands as text: no name ends a table, a code span or a front matter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from raysft.spec.mistakes import shown


class Markdown(str):
    """A text that is Markdown already, and is not escaped again."""


# What begins something in CommonMark or GitHub's dialect. A pipe is an entity, since tables end cells at any other.
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
_MARKS = re.compile(r"[\\`*_{}\[\]#~$!]")
_LINE_START = re.compile(r"^([-+=:])|^(\d+)([.)])(?=\s|$)")


def text(value: Any) -> Markdown:
    """`value` as plain text on one line."""
    escaped = _MARKS.sub(lambda found: f"\\{found[0]}", shown(value))
    for mark, entity in _ENTITIES.items():
        escaped = escaped.replace(mark, entity)
    return Markdown(_LINE_START.sub(lambda found: f"\\{found[1]}" if found[1] else f"{found[2]}\\{found[3]}", escaped))


def code(value: Any) -> Markdown:
    """`value` as code within a line."""
    inner = shown(value)
    if not inner:
        return Markdown("(empty)")
    fence = "`" * (1 + _longest_run(inner))
    space = " " if inner[0] == "`" or inner[-1] == "`" else ""
    return Markdown(f"{fence}{space}{inner}{space}{fence}")


def fenced(content: str, language: str = "") -> Markdown:
    """Lines of code, whatever fences they hold themselves."""
    fence = "`" * max(3, 1 + _longest_run(content))
    return Markdown(f"{fence}{language}\n{content}\n{fence}")


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markdown:
    """A table; what is not `Markdown` is escaped."""
    lines = [_row(header), _row([Markdown("---")] * len(header)), *map(_row, rows)]
    return Markdown("\n".join(lines))


def number(value: float | None) -> Markdown:
    """Four digits, or a dash for what is not known."""
    return Markdown("–" if value is None or value != value else f"{value:.4g}")


def with_error(value: float | None, error: float | None, sign: bool = False) -> Markdown:
    """`0.7411 ± 0.0416`, with two decimals from 10 on."""
    if value is None or value != value:
        return Markdown("–")
    decimals = 2 if max(abs(value), abs(error or 0)) >= 10 else 4
    shape = f"{'+' if sign else ''}.{decimals}f"
    return Markdown(f"{value:{shape}}" + ("" if error is None or error != error else f" ± {error:.{decimals}f}"))


def share(value: float | None) -> Markdown:
    """A fraction as a percentage."""
    return Markdown("–" if value is None or value != value else f"{value:.1%}")


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(value: Any) -> str:
    return (value if isinstance(value, Markdown) else text(value)).replace("|", r"\|").replace("\n", " ")


def _longest_run(content: str) -> int:
    return max((len(run) for run in re.findall("`+", content)), default=0)
