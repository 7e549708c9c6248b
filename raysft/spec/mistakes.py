"""What pydantic found wrong, in one line for people: where, what was found, what is valid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def describe(error: ValidationError, root: type[BaseModel]) -> str:
    """Every mistake that pydantic found in a `root`, as `path: problem, found value`, on one line."""
    mistakes = error.errors(include_url=False)
    paths = [mistake["loc"] for mistake in mistakes]
    lines = []
    for mistake in mistakes:
        loc = mistake["loc"]
        follows_from_another = any(other != loc and other[: len(loc)] == loc for other in paths)
        if mistake["type"] == "too_short" and follows_from_another:
            continue  # pydantic counts the entries that were valid, so a wrong entry makes its list short as well
        path = ".".join(str(part) for part in loc)
        lines.append(f"{path}: {_problem(mistake, root)}" if path else _problem(mistake, root))
    return " ".join("; ".join(lines).split())


def _problem(mistake: Any, root: type[BaseModel]) -> str:
    if mistake["type"] == "extra_forbidden":
        return f"unknown field; valid: {', '.join(_fields_beside(mistake['loc'], root))}"
    message = str(mistake["msg"]).removeprefix("Value error, ")
    if mistake["type"] == "missing" or isinstance(mistake["input"], (dict, list)):
        return message
    return f"{message}, found {mistake['input']!r}"


def _fields_beside(loc: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """Fields of the model that holds the last part of `loc`."""
    model = root
    for part in loc[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            model = next(_models_in(model.model_fields[part].annotation), model)
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
