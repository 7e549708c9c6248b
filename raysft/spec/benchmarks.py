"""What a benchmark task is, read from its lm-eval YAML without importing lm-eval: its digest and the files it needs.

A task of the user's own or of this package is identified by its YAML, what that includes, the functions it names and
the data it reads, so that editing a task redoes that task and no other. A task that only lm-eval knows is identified by
its name and lm-eval's version of it is stored with the result.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from raysft.spec.keys import Identity
from raysft.spec.sweep import SpecError, Sweep

PACKAGED_TASKS = Path(__file__).parent.parent / "evaluation" / "tasks"


class _TaskLoader(yaml.SafeLoader):
    """Reads lm-eval's `!function module.name` as the text `module.name`."""


class _Function(str):
    """A `!function` reference, as `module.name`."""


_TaskLoader.add_constructor("!function", lambda _, node: _Function(node.value))


def task_folders(sweep: Sweep) -> list[Path]:
    """Folders that hold task YAML: the sweep's own first, then this package's."""
    for folder in sweep.evaluation.include:
        if not folder.is_dir():
            raise SpecError(f"evaluation.include: no folder {folder}")
    return [*sweep.evaluation.include, PACKAGED_TASKS]


def local_tasks(sweep: Sweep) -> dict[str, Path]:
    """Task name -> YAML file, for every task in the sweep's folders and this package's."""
    return _tasks_in(tuple(task_folders(sweep)))


def task_identity(sweep: Sweep, task: str) -> Identity:
    """What the task measures."""
    path = local_tasks(sweep).get(task)
    digest = None if path is None else _digest(path)
    return {"task": task, "digest": digest, "limit": sweep.evaluation.limit}


def missing_data_files(sweep: Sweep) -> list[str]:
    """A line for each data file that a local task of the sweep reads and that is not there."""
    tasks = local_tasks(sweep)
    paths = {name: tasks[name] for name in sweep.evaluation.tasks if name in tasks}
    return [
        f"evaluation.tasks: {name} reads {file}, which does not exist"
        for name, path in paths.items()
        for file in data_files(path)
        if not file.is_file()
    ]


def data_files(task_yaml: Path) -> list[Path]:
    """Local data files of a task, relative ones taken from the YAML's folder."""
    content = read_task(task_yaml)
    listed = (content.get("dataset_kwargs") or {}).get("data_files") or {}
    groups = listed.values() if isinstance(listed, dict) else [listed]
    files = [file for group in groups for file in ([group] if isinstance(group, str) else group)]
    return [(task_yaml.parent / file).resolve() for file in files if "://" not in file]


def read_task(path: Path) -> dict[str, Any]:
    """A task's YAML with its `include` merged under it."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_TaskLoader)
    except yaml.YAMLError as error:
        raise SpecError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        return {}
    if isinstance(content.get("include"), str):
        return {**read_task(path.parent / content["include"]), **content}
    return content


@functools.cache
def _tasks_in(folders: tuple[Path, ...]) -> dict[str, Path]:
    tasks: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.yaml")):
            for name in _task_names(path):
                tasks.setdefault(name, path)
    return tasks


def _task_names(path: Path) -> Iterator[str]:
    content = read_task(path)
    if isinstance(content.get("task"), str):
        yield content["task"]


@functools.cache
def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for part in [path, *_parts(path)]:
        if part.is_file():  # a missing one is reported by name before anything runs
            digest.update(hashlib.sha256(part.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _parts(path: Path) -> list[Path]:
    """Files that a task is made of besides its own YAML: includes, modules of its functions, data."""
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=_TaskLoader)
    parts = [path.parent / f"{function.split('.')[0]}.py" for function in _functions(content)]
    if isinstance(content.get("include"), str):
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
