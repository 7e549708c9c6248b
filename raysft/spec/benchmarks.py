"""What a benchmark task is, read from its lm-eval YAML without importing lm-eval: its digest and the files it needs.

A task of the user's own or of this package is identified by its YAML, what that includes, the functions it names and
the data it reads, so that editing a task redoes that task and no other; a group also by its members. A task that only
lm-eval knows is identified by its name and lm-eval's version of it is stored with the result; a group that only lm-eval
knows also by those of its members that the user has redefined. Shots and local data that the sweep gives a task are
part of what it measures.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raysft.spec.digests import digest_of
from raysft.spec.judge import JUDGED_TASKS
from raysft.spec.keys import Identity
from raysft.spec.lm_eval_groups import held_by_groups
from raysft.spec.local_data import data_identity
from raysft.spec.mistakes import shown
from raysft.spec.questions import judge_identity
from raysft.spec.reading import Loader, read_yaml
from raysft.spec.suites import base_tasks, split_shots
from raysft.spec.sweep import SpecError, Sweep

PACKAGED_TASKS = Path(__file__).parent.parent / "evaluation" / "tasks"


_MAKES_A_TASK = {"dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset"}
_MOST_FILES = 100_000  # in a folder of tasks; lm-eval itself ships 16,000


class _TaskLoader(Loader):
    """Reads lm-eval's `!function module.name` as the text `module.name`; of two fields the last counts, as there."""

    last_wins = True


class _Function(str):
    """A `!function` reference, as `module.name`."""


_TaskLoader.add_constructor("!function", lambda _, node: _Function(node.value))


def task_folders(sweep: Sweep) -> list[Path]:
    """Folders that hold task YAML: the sweep's own first, then this package's."""
    for folder in sweep.evaluation.include:
        try:
            there = folder.is_dir()
        except OSError as error:  # a name that is too long, a folder above that may not be entered
            raise SpecError(f"evaluation.include: {shown(folder)} cannot be read ({error.strerror})") from error
        if not there:
            raise SpecError(f"evaluation.include: no folder {shown(folder)}")
    return [*sweep.evaluation.include, PACKAGED_TASKS]


def local_tasks(sweep: Sweep) -> dict[str, Path]:
    """Name -> YAML file, for every task and group in the sweep's folders and this package's."""
    return _tasks_in(tuple(task_folders(sweep)))


def task_identity(sweep: Sweep, task: str) -> Identity:
    """What the task measures, asked with as many examples as its name here says."""
    if task in JUDGED_TASKS:
        return {"task": task, "limit": sweep.evaluation.limit, **judge_identity(sweep, task)}
    name, shots = split_shots(task)

    def compute() -> str:
        return _digest(name, tuple(task_folders(sweep)))

    identity = {"task": name, "digest": digest_of(f"task {name}", compute) or None, "limit": sweep.evaluation.limit}
    if shots is not None:
        identity["shots"] = shots
    return {**identity, **data_identity(sweep, name)}


def missing_data_files(sweep: Sweep) -> list[str]:
    """A line for each data file that a local task of the sweep reads and that is not there."""
    tasks = local_tasks(sweep)
    names = [name for name in base_tasks(sweep.evaluation.tasks) if name not in sweep.evaluation.data]
    paths = {name: tasks[name] for name in names if name in tasks}
    return [
        f"evaluation.tasks: {name} reads {file}, which does not exist"
        for name, path in paths.items()
        for file in data_files(path)
        if not file.is_file()
    ]


def data_files(task_yaml: Path) -> list[Path]:
    """Local data files of a task, relative ones taken from the YAML's folder."""
    where = f"{shown(task_yaml)}: dataset_kwargs"
    options = read_task(task_yaml).get("dataset_kwargs") or {}
    if not isinstance(options, dict):
        raise SpecError(f"{where}: expected a mapping, found {shown(options, 80)}")
    listed = options.get("data_files") or {}
    groups = listed.values() if isinstance(listed, dict) else [listed]
    files = [file for group in groups for file in (group if isinstance(group, list) else [group])]
    for file in files:
        if not isinstance(file, str):
            raise SpecError(f"{where}.data_files: expected paths, found {shown(file, 80)}")
    try:
        return [(task_yaml.parent / file).resolve() for file in files if "://" not in file]
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a NUL
        raise SpecError(f"{where}.data_files: no paths here ({shown(error)})") from error


def read_task(path: Path, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A task's YAML with its `include` merged under it; `within` are those that led to it by their own."""
    whole = path.resolve()
    if whole in within:
        raise SpecError(f"{shown(path)}: include: comes back to itself")
    content = read_yaml(path, _TaskLoader)
    if not isinstance(content, dict):
        return {}
    if isinstance(content.get("include"), str):
        return {**read_task(path.parent / content["include"], (*within, whole)), **content}
    return content


@functools.cache
def _tasks_in(folders: tuple[Path, ...]) -> dict[str, Path]:
    tasks: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(_yaml_files(folder)):
            for name in _task_names(path):
                tasks.setdefault(name, path)
    return tasks


def _yaml_files(folder: Path) -> Iterator[Path]:
    """YAML files in a folder and below; SpecError for one that is too large to be meant, as `/` is."""
    looked_at = 0
    for where, _, files in os.walk(folder):
        looked_at += 1 + len(files)
        if looked_at > _MOST_FILES:
            raise SpecError(f"evaluation.include: {shown(folder)} holds more than {_MOST_FILES:,} files")
        yield from (Path(where, name) for name in files if name.endswith(".yaml") and Path(where, name).is_file())


def _task_names(path: Path) -> Iterator[str]:
    content = read_task(path)
    if isinstance(content.get("task"), str):
        yield content["task"]
    elif isinstance(content.get("group"), str):
        yield content["group"]


def is_local(sweep: Sweep, name: str, within: tuple[str, ...] = ()) -> bool:
    """Whether a task, group or tag is, with all its members, in the sweep's folders or this package's."""
    paths = _yaml_of(name, tuple(task_folders(sweep)))
    members = {member for path in paths for member in _members(read_task(path))} - {name, *within}
    return bool(paths) and all(is_local(sweep, member, (*within, name)) for member in sorted(members))


def _members(content: Mapping[str, Any]) -> list[str]:
    """Names that a group refers to, in groups inside it as well. A task that is written out in place, with a dataset of
    its own, is none."""
    names: list[Any] = []
    for entry in content["task"] if isinstance(content.get("task"), list) else []:
        if not isinstance(entry, dict):
            names.append(entry)
        elif isinstance(entry.get("task"), list):
            names += _members(entry)
        elif not entry.keys() & _MAKES_A_TASK:
            names.append(entry.get("group", entry.get("task")))
    return [name for name in names if isinstance(name, str)]


@functools.cache
def _digest(name: str, folders: tuple[Path, ...]) -> str:
    """Digest of all files that a task, group or tag is made of; empty for one with nothing in these folders."""
    files = _yaml_below(name, folders)
    for path in files:  # grows while it is walked
        found = (file for member in _members(read_task(path)) for file in _yaml_below(member, folders))
        files += [file for file in found if file not in files]
    digest = hashlib.sha256()
    for part in [part for path in files for part in (path, *_parts(path))]:
        if part.is_file():  # a missing one is reported by name before anything runs
            digest.update(hashlib.sha256(part.read_bytes()).digest())
    return digest.hexdigest()[:16] if files else ""


def _yaml_of(name: str, folders: tuple[Path, ...]) -> list[Path]:
    """The YAML of a task or group, or of all tasks with that tag."""
    tasks = _tasks_in(folders)
    return [tasks[name]] if name in tasks else _tagged_in(folders).get(name, [])


def _yaml_below(name: str, folders: tuple[Path, ...]) -> list[Path]:
    """The same, and of a group or tag that only lm-eval knows that of what it would take from these folders."""
    found = _yaml_of(name, folders)
    if found or folders == (PACKAGED_TASKS,):  # lm-eval has no group with a task of this package's
        return found
    redefined = held_by_groups(frozenset(_tasks_in(folders)) | frozenset(_tagged_in(folders)))
    return [path for member in sorted(redefined.get(name, ())) for path in _yaml_of(member, folders)]


@functools.cache
def _tagged_in(folders: tuple[Path, ...]) -> dict[str, list[Path]]:
    """Tag -> the tasks that have it."""
    tagged: dict[str, list[Path]] = {}
    for path in dict.fromkeys(_tasks_in(folders).values()):
        tag = read_task(path).get("tag")
        for name in tag if isinstance(tag, list) else [tag]:
            if isinstance(name, str):
                tagged.setdefault(name, []).append(path)
    return tagged


def _parts(path: Path) -> list[Path]:
    """Files that a task is made of besides its own YAML: includes, modules of its functions, data."""
    content = read_yaml(path, _TaskLoader)
    parts = [path.parent / f"{function.split('.')[0]}.py" for function in _functions(content)]
    if isinstance(content, dict) and isinstance(content.get("include"), str):
        included = path.parent / content["include"]
        parts += [included, *_parts(included)]
    return sorted({*parts, *data_files(path)})


def _functions(content: Any) -> Iterator[str]:
    if isinstance(content, _Function):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _functions(value)
    elif isinstance(content, list):
        for value in content:
            yield from _functions(value)
