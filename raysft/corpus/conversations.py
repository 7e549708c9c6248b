"""Whole conversations of a dataset: turns as `messages`, ShareGPT or plain lists keep them, as one example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raysft.corpus.example import Example

# What well-known sets call the three roles.
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}

Turn = tuple[str, str]  # role and text


def whole_conversation(content: Any) -> Example:
    """The example of a conversation: an optional system text, then user and assistant in turn.

    `content` is a list of {role, content} or {from, value}, or of texts that start with the user's. A last user turn
    without a reply is cut off. ValueError, by turn from 1, for another order, an unknown role or a turn without text.
    """
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"expected a list of turns, found {type(content).__name__}")
    turns = [_turn(number, entry) for number, entry in enumerate(content, start=1)]
    first = 1 if turns and turns[0][0] == "system" else 0
    _check_order(turns, first)
    said = [text for _, text in turns[first:]]
    exchanges = list(zip(said[::2], said[1::2], strict=False))  # not strict: it may end with a question
    if not exchanges:
        raise ValueError(f"no reply in {len(turns)} turns")
    *history, (instruction, response) = exchanges
    return Example(instruction, response, tuple(history), turns[0][1] if first else "")


def _turn(number: int, entry: Any) -> Turn:
    """(role, text) of turn `number`, from 1. An empty system text may stand there: it says nothing."""
    if isinstance(entry, str):
        role, text = ("user", "assistant")[(number - 1) % 2], entry
    elif isinstance(entry, Mapping):
        found = entry.get("role", entry.get("from"))
        if found not in _ROLES:
            raise ValueError(f"turn {number} is of {found!r}; known: {', '.join(_ROLES)}")
        role, text = _ROLES[found], entry.get("content", entry.get("value")) or ""
    else:
        raise ValueError(f"turn {number} is {type(entry).__name__}; expected a text, or a role with its content")
    if not isinstance(text, str) or (not text.strip() and role != "system"):
        raise ValueError(f"turn {number} ({role}) has no text")
    return role, text.strip()


def _check_order(turns: Sequence[Turn], first: int) -> None:
    for place, (role, _) in enumerate(turns[first:]):
        expected = ("user", "assistant")[place % 2]
        if role != expected:
            raise ValueError(f"turn {first + place + 1} is of {role}, expected {expected}")
