"""Mistakes of people's, each in one line: where, what was found, what is valid."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

_MOST_MISTAKES = 8  # in one message
_LONGEST_VALUE = 80  # characters
_LONGEST_PROBLEM = 500

# Where pydantic names Python's types, the words of YAML.
_IN_YAML = {
    "model_type": "expected a mapping of fields",
    "dict_type": "expected a mapping",
    "tuple_type": "expected a list",
    "path_type": "expected a path",
    "string_pattern_mismatch": "a name is of letters, digits, dots, dashes and underscores, a letter or digit first",
    "invalid_key": "a field's name must be a text",
    "missing": "required",
}
_SAY_IT_ALL = {"missing", "invalid_key", "too_short", "too_long"}
_VALUES = {None: "null", True: "true", False: "false"}


class SpecError(ValueError):
    """A mistake in a sweep: where it is, what was found and what is valid."""


def describe(error: ValidationError, root: type[BaseModel]) -> str:
    """The mistakes that pydantic found in a `root`, as `path: problem, found value`, on one line."""
    mistakes: dict[tuple[int | str, ...], list[Any]] = {}
    for mistake in error.errors(include_url=False):
        mistakes.setdefault(_place(mistake, root), []).append(mistake)
    holders = {place[:depth] for place in mistakes for depth in range(len(place))}
    lines = []
    for place, found in mistakes.items():
        # A wrong entry makes its list short as well, and not be the word that could have stood there instead.
        if place in holders and all(mistake["type"] in ("too_short", "literal_error") for mistake in found):
            continue
        path = ".".join(shown(part) or "''" for part in place)
        problem = _problem(place, found, root)
        lines.append(f"{path}: {problem}" if path else problem)
    more = [f"and {len(lines) - _MOST_MISTAKES} more mistakes"] if len(lines) > _MOST_MISTAKES else []
    return "; ".join([*lines[:_MOST_MISTAKES], *more])


def shown(value: Any, longest: int = _LONGEST_PROBLEM) -> str:
    """`value` as a text for one line of a terminal: printable, and cut where it is longer than a reader would read."""
    text = " ".join(str(value)[: 4 * longest].split())
    if not text.isprintable():
        text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return text if len(text) <= longest else f"{text[:longest]}..."


def _place(mistake: Any, root: type[BaseModel]) -> tuple[int | str, ...]:
    """Where in the YAML: pydantic's own path, without the branches of its types."""
    place: list[int | str] = []
    here: Any = root
    for part in mistake["loc"]:
        model = next(_models_in(here), None)
        if isinstance(part, str) and model is not None:
            here = model.model_fields[part].annotation if part in model.model_fields else None
        elif isinstance(part, str) and here is not None and not _has_mapping(here):
            continue
        place.append(part)
    return tuple(place)


def _problem(place: tuple[int | str, ...], mistakes: list[Any], root: type[BaseModel]) -> str:
    first = mistakes[0]
    if first["type"] == "extra_forbidden":
        return shown(f"unknown field; valid: {', '.join(_fields_beside(place, root))}")
    words = ", or ".join(dict.fromkeys(_in_words(mistake) for mistake in mistakes))
    problem = shown(words.replace(", or Input should be ", ", or "))
    if first["type"] in _SAY_IT_ALL or isinstance(first["input"], BaseModel):
        return problem
    if first["type"] == "value_error" and isinstance(first["input"], (dict, list)):
        return problem
    return f"{problem}, found {_found(first['input'])}"


def _in_words(mistake: Any) -> str:
    """One mistake, without Python's words for what YAML calls otherwise."""
    kind, context = mistake["type"], mistake.get("ctx", {})
    if kind in _IN_YAML:
        return _IN_YAML[kind]
    if kind in ("too_short", "too_long"):
        bound = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return f"expected {bound} {'entry' if bound.endswith(' 1') else 'entries'}, found {context['actual_length']}"
    return re.sub(r"^Value error, ", "", str(mistake["msg"]))


def _found(value: Any) -> str:
    """A scalar as YAML has it, a text in quotes, so that its end is seen; of anything else the kind."""
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, (bool, type(None))):
        return _VALUES[value]
    text = shown(value, _LONGEST_VALUE)
    return f"'{text}'" if isinstance(value, str) else text


def _fields_beside(place: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """Fields of the model that holds the last part of `place`."""
    model = root
    for part in place[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            model = next(_models_in(model.model_fields[part].annotation), model)
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _has_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict or any(_has_mapping(argument) for argument in get_args(annotation))
