"""Which of lm-eval's groups and tags hold a task, found in its files without importing it.

lm-eval's index of its 14,000 files takes seconds to build. Here they are read as bytes, and only those that name what
is looked for are parsed.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

# Words that stand where YAML has an entry of a list, the first word of a line, or a task's or group's own name.
_NAMED = re.compile(
    rb"""(?:^[ \t]*(?:-[ \t]+)*|[\[{,]\s*)["']?"""
    rb"""(?:(?:task|group)["']?[ \t]*:[ \t]*["']?)?([^\s"',\[\]{}#:][^\s"',\[\]{}#]*)""",
    re.MULTILINE,
)
_FEW = 64  # names that are looked for one by one before a file is taken apart


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # one of two classes
    """Reads what lm-eval ships, and `!function` as nothing."""


_Loader.add_constructor("!function", lambda *_: None)


@functools.cache
def held_by_groups(names: frozenset[str]) -> Mapping[str, frozenset[str]]:
    """Group or tag of lm-eval -> those of `names` that it holds, itself or in groups inside it.

    What is among `names` itself is not looked into: somebody else says what that holds. Empty without lm-eval.
    """
    held: dict[str, set[str]] = {}
    files = list(_files())
    above = {name: {name} for name in names}
    while above:
        found: dict[str, set[str]] = {}
        for path in _naming(above, files):
            for holder, members in _holders(path):
                below = {name for member in members if member in above for name in above[member]}
                new = below - held.get(holder, set()) - {holder}
                if new and holder not in names:
                    held.setdefault(holder, set()).update(new)
                    found.setdefault(holder, set()).update(new)
        above = found
    return {holder: frozenset(below) for holder, below in held.items()}


def _files() -> Iterator[tuple[Path, bytes]]:
    """lm-eval's task files."""
    package = importlib.util.find_spec("lm_eval")  # finds a package on the path without running it
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        for where, _, files in os.walk(Path(folder, "tasks")):
            yield from ((path, path.read_bytes()) for path in (Path(where, f) for f in files if f.endswith(".yaml")))


def _naming(names: Collection[str], files: list[tuple[Path, bytes]]) -> Iterator[Path]:
    """The files that may name a task or group of these."""
    wanted = {name.encode() for name in names}
    for path, text in files:
        if len(wanted) <= _FEW and not any(name in text for name in wanted):
            continue
        if not wanted.isdisjoint(_NAMED.findall(text)):
            yield path


def _holders(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(group, its members), or of a task (tag, that task) for each of its tags."""
    try:
        content = _read(path)
    except (OSError, ValueError, yaml.YAMLError):  # lm-eval's index leaves such a file out
        return
    if isinstance(content.get("group"), str):
        yield content["group"], list(_members(content))
    elif isinstance(content.get("task"), str):
        tags = content.get("tag") or []
        yield from ((tag, [content["task"]]) for tag in (tags if isinstance(tags, list) else [tags]))


def _members(group: Mapping[str, Any]) -> Iterator[str]:
    """Every name in a group's list. One that is written out in place is taken from the index where it is there too."""
    for entry in group["task"] if isinstance(group.get("task"), list) else ():
        name = entry if isinstance(entry, str) else entry.get("group", entry.get("task"))
        if isinstance(name, str):
            yield name
        if isinstance(entry, dict) and "group" in entry:
            yield from _members(entry)


def _read(path: Path, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file with what it includes merged under it. ValueError for one that is no mapping or includes itself."""
    content = yaml.load(path.read_bytes(), _Loader)
    if not isinstance(content, dict) or path in within:
        raise ValueError(f"{path}: not a task")
    included = content.pop("include", None) or []
    merged: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        merged |= _read(path.parent / name, (*within, path))
    return merged | content
