"""YAML from anywhere as plain data: each field once, and never more of it than a person could have meant.

The file may be anything, so what has no bound in YAML is refused while it is read: its size, nesting, what aliases
stand for once they are written out, whole numbers. Scalars are those of YAML 1.2: dates are texts, and so are `on` and
`off`, which YAML 1.1 took for booleans.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from raysft.spec.mistakes import SpecError, shown

MOST_BYTES = 1 << 19  # seconds of reading; the paper's whole grid takes 7 kB
MOST_DEPTH = 32  # mappings and lists inside each other
MOST_VALUES = 200_000  # with every alias written out
WHOLE_NUMBERS = range(-(1 << 63), 1 << 63)  # what a column of the tables holds

_LONGEST_NUMBER = 100  # characters
_MERGE = "tag:yaml.org,2002:merge"
_BOOLEAN = "tag:yaml.org,2002:bool"
_NO_PLAIN_DATA = {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value", _BOOLEAN}
_TYPES = ("null", "bool", "int", "float", "str", "seq", "map")


class Loader(yaml.SafeLoader):
    """Builds strings, numbers, booleans, null, lists and mappings, and raises `yaml.YAMLError` for anything else."""

    last_wins = False  # of two fields with one name; otherwise they are refused

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._sizes: dict[int, tuple[int, int]] = {}  # id of a finished node -> (values, depth), aliases written out
        self._open = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """The next node, refused if it is too much; PyYAML calls itself for what is inside."""
        self._open += 1
        if self._open > MOST_DEPTH:
            raise _refused(f"more than {MOST_DEPTH} levels", self.peek_event())
        start = self.peek_event()
        node = super().compose_node(parent, index)
        self._open -= 1
        if isinstance(start, AliasEvent) and id(node) not in self._sizes:
            raise _refused("an alias inside what it stands for", start)
        if node is not None and id(node) not in self._sizes:
            self._sizes[id(node)] = self._measure(node, start)
        return node

    def _measure(self, node: Node, start: Any) -> tuple[int, int]:
        values, depth = 1, 1
        for inside in _children(node):
            values += self._sizes[id(inside)][0]
            depth = max(depth, 1 + self._sizes[id(inside)][1])
        if values > MOST_VALUES:
            raise _refused(f"more than {MOST_VALUES:,} values, aliases written out", start)
        if depth > MOST_DEPTH:
            raise _refused(f"more than {MOST_DEPTH} levels, aliases written out", start)
        return values, depth

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """A mapping, refused if it has a field twice, of which one would silently be lost."""
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], Node] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise _refused("a list or mapping as the name of a field", key)
            first = seen.setdefault((key.tag, key.value), key)
            if first is not key and key.tag != _MERGE and not self.last_wins:
                raise _refused(f"'{shown(key.value)}' is there already, in line {first.start_mark.line + 1}", key)
        return node

    def construct_yaml_int(self, node: ScalarNode) -> int:
        """A whole number of 64 bits."""
        number = _number(super().construct_yaml_int, node)
        if number not in WHOLE_NUMBERS:
            raise _refused(f"{shown(node.value)} is beyond 64 bits", node)
        return int(number)

    def construct_yaml_float(self, node: ScalarNode) -> float:
        """A number, or .inf or .nan."""
        return float(_number(super().construct_yaml_float, node))

    def construct_yaml_bool(self, node: ScalarNode) -> bool:
        """true or false."""
        value = str(self.construct_scalar(node)).lower()
        if value not in ("true", "false"):
            raise _refused(f"{shown(value)} is neither true nor false", node)
        return value == "true"

    def construct_yaml_str(self, node: ScalarNode) -> str:
        """A text of characters: half of a pair of UTF-16 is none."""
        text = str(self.construct_scalar(node))
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise _refused(f"{shown(text)} is not a text", node)
        return text

    def construct_undefined(self, node: Node) -> NoReturn:
        """Whatever has a tag of another kind."""
        tag = str(node.tag).replace("tag:yaml.org,2002:", "!!")
        raise _refused(f"{shown(tag)} is not plain data", node)


def _own_constructors() -> dict[str | None, Any]:
    """Only of what a sweep may hold; PyYAML's table names the methods of its own class."""
    own: dict[str | None, Any] = {
        f"tag:yaml.org,2002:{name}": getattr(Loader, f"construct_yaml_{name}") for name in _TYPES
    }
    own[None] = Loader.construct_undefined
    return own


Loader.yaml_constructors = _own_constructors()
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NO_PLAIN_DATA]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(_BOOLEAN, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def read_yaml(path: Path, loader: type[Loader] = Loader) -> Any:
    """The content of a YAML file. SpecError, which starts with the path."""
    text = read_text(path, most_bytes=MOST_BYTES)
    try:
        return yaml.load(text, loader)
    except yaml.YAMLError as error:
        raise SpecError(f"{shown(path)}: not YAML ({_problem(error)})") from error
    except (ValueError, OverflowError) as error:  # an escape beyond Unicode, as "\UFFFFFFFF"
        raise SpecError(f"{shown(path)}: not YAML ({shown(error)})") from error


def read_text(path: Path, where: str | None = None, most_bytes: int | None = None) -> str:
    """The text of a file in UTF-8, without a mark of its byte order.

    SpecError, which starts with `where`, the field that names the file, or else with the path.
    """
    named = shown(path)
    place, file = (named, "") if where is None else (where, f"{named} ")
    try:
        with path.open("rb") as stream:
            content = stream.read() if most_bytes is None else stream.read(most_bytes + 1)
    except FileNotFoundError as error:
        raise SpecError(f"{place}: no such file" if where is None else f"{place}: no file {named}") from error
    except (OSError, ValueError) as error:  # a path with a NUL
        problem = error.strerror if isinstance(error, OSError) else shown(error)
        raise SpecError(f"{place}: {file}cannot be read ({problem})") from error
    if most_bytes is not None and len(content) > most_bytes:
        raise SpecError(f"{place}: {file}more than {most_bytes >> 10} KiB, which no sweep has")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: {error.reason} at byte {error.start}"
        raise SpecError(f"{place}: {file}cannot be read ({problem})") from error


def _problem(error: yaml.YAMLError) -> str:
    """What PyYAML says, without its picture of the place."""
    if isinstance(error, ReaderError):
        return f"character {error.character:#x} at {error.position}: {error.reason}"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "context", None) or type(error).__name__
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return where + shown(problem)


def _children(node: Node) -> list[Node]:
    if isinstance(node, SequenceNode):
        return list(node.value)
    return [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else []


def _number(construct: Any, node: ScalarNode) -> Any:
    if isinstance(node, ScalarNode) and len(node.value) > _LONGEST_NUMBER:
        raise _refused(f"a number of {len(node.value)} characters", node)
    try:
        return construct(node)
    except (ValueError, IndexError) as error:
        raise _refused(f"{shown(node.value)} is not a number", node) from error


def _refused(problem: str, where: Any) -> yaml.YAMLError:
    kind = ConstructorError if isinstance(where, Node) else ComposerError
    return kind(None, None, problem, where.start_mark)
