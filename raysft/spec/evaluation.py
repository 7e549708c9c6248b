"""Which benchmarks a sweep's checkpoints are scored on, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from raysft.spec.judge import JUDGED_TASKS, JudgeSpec, check_judge
from raysft.spec.recipe import Frozen, found_twice
from raysft.spec.run_code import CODE_TASKS, RunCode, check_run_code
from raysft.spec.suites import base_tasks, members, split_shots, written_out
from raysft.spec.vllm import Backend, VllmSpec


class Evaluation(Frozen):
    """lm-evaluation-harness tasks, by name; `include` lists folders with task YAML of the user's own.

    An entry of `tasks` is a name, a suite (raysft/spec/suites.py), or {task: either, shots: number of examples}. Suites
    and shots are written out here: what was read holds the names of single tasks, as `gsm8k` or `gsm8k@5`.
    """

    tasks: tuple[str, ...] = ()
    without: tuple[str, ...] = Field((), description="members of suites that are left out")
    include: tuple[Path, ...] = ()
    data: dict[str, Path | dict[str, Path]] = Field(
        default_factory=dict,
        description="task or group -> its items: a file or folder, or one for each split; in place of the hub's",
    )
    limit: int | None = Field(None, ge=1, description="items of each task; all when left out")
    template: str | None = Field(
        None, description="a template, as under training, around each task's prompt; the prompt alone when left out"
    )
    batch_size: int = Field(64, ge=1, description="requests of a batch; not part of any key")
    run_code: RunCode = Field(
        False,
        description="run the programs that models write, for benchmarks that need it: true in a sandbox; unprotected, "
        "with as much of a sandbox as the machine has; not part of any key",
    )
    judge: JudgeSpec | None = Field(None, description="who judges the answers of mt_bench and alpaca_eval")
    backend: Backend = Field(
        "transformers", description="what computes the answers: the process that trained, or vLLM, in one of its own"
    )
    vllm: VllmSpec | None = Field(None, description="how vLLM is started, under backend: vllm")

    @model_validator(mode="before")
    @classmethod
    def _suites_written_out(cls, content: Any) -> Any:
        if not isinstance(content, dict) or not isinstance(content.get("tasks"), (list, tuple)):
            return content
        names = list(written_out(content["tasks"]))
        without = content.get("without")
        if not isinstance(without, (list, tuple)):
            return {**content, "tasks": names}
        return {**content, "tasks": [name for name in names if _base(name) not in without]}

    @field_validator("without")
    @classmethod
    def _members_only(cls, without: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in without if name not in members()]:
            raise ValueError(f"{', '.join(unknown)} is in no suite; valid: {', '.join(members())}")
        return without

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if twice := found_twice(tasks):
            raise ValueError(f"each task once, found twice: {twice}")
        return tasks

    @model_validator(mode="after")
    def _judged_tasks_show_nothing(self) -> Evaluation:
        if shown := [name for name in self.tasks if "@" in name and split_shots(name)[0] in JUDGED_TASKS]:
            raise ValueError(f"tasks: {', '.join(shown)}: a judged benchmark shows no examples; leave shots out")
        return self

    @model_validator(mode="after")
    def _data_of_tasks(self) -> Evaluation:
        tasks = base_tasks(self.tasks)
        for name, source in self.data.items():
            if name not in tasks:
                raise ValueError(f"data: {name!r} is none of the tasks; valid: {', '.join(tasks) or 'none'}")
            if name in JUDGED_TASKS:
                raise ValueError(f"data: {name} is judged, so its questions are named under judge.questions")
            if source == {}:
                raise ValueError(f"data.{name}: a file or folder, or one for each split, found an empty mapping")
        return self

    @model_validator(mode="after")
    def _suites_have_what_they_need(self) -> Evaluation:
        """What single tasks need is said below; of a suite that needs all of it everything is said at once."""
        running = [task for task in base_tasks(self.tasks) if task in CODE_TASKS]
        judged = [task for task in self.tasks if task in JUDGED_TASKS]
        if running and judged and self.run_code is False and self.judge is None:
            raise ValueError(
                f"{' and '.join(running)} run programs that the models wrote, in a sandbox: allow it with run_code: "
                f"true; {' and '.join(judged)} are judged: say by whom under judge; or leave them out, of a suite by "
                f"without: [{', '.join([*running, *judged])}]"
            )
        return self

    @model_validator(mode="after")
    def _code_tasks_may_run_code(self) -> Evaluation:
        check_run_code(base_tasks(self.tasks), self.run_code)
        return self

    @model_validator(mode="after")
    def _vllm_is_used(self) -> Evaluation:
        if self.vllm is not None and self.backend != "vllm":
            raise ValueError(f"vllm belongs to backend: vllm, found with backend: {self.backend}")
        return self

    @model_validator(mode="after")
    def _judged_tasks_have_a_judge(self) -> Evaluation:
        check_judge(self.tasks, self.judge)
        return self

    @property
    def served_by(self) -> VllmSpec | None:
        """How vLLM answers, if it does."""
        return (self.vllm or VllmSpec()) if self.backend == "vllm" else None


def _base(name: Any) -> Any:
    return split_shots(name)[0] if isinstance(name, str) else name
