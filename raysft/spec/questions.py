"""What judged benchmarks ask, from the user's files, and what of a judge makes its verdicts what they are.

MT-Bench: one JSON object a line with question_id, category, turns (two texts) and, where there is one, reference (a
text for each turn). Answers to compare with: one object a line with question_id and choices[0].turns. AlpacaEval: a
JSON list of objects with instruction, output (of the model to compare with) and its generator; instruction_difficulty,
a number, where one is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysft.spec.judge import JudgeSpec
from raysft.spec.keys import Identity, file_digest, folder_digest, text_digest
from raysft.spec.mistakes import describe, shown
from raysft.spec.reading import read_text
from raysft.spec.recipe import found_twice
from raysft.spec.sweep import SpecError, Sweep

PROMPTS_FOLDER = Path(__file__).parent.parent / "evaluation" / "judge" / "prompts"

# Raised when raysft/evaluation/judge reads or counts verdicts in another way.
JUDGING_VERSION = 1


class _Row(BaseModel):
    """A row of a file that others made: fields beyond those that are read are theirs."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class TwoTurns(_Row):
    """A question of MT-Bench. `reference`: an answer known to be right, for each turn or the first."""

    question_id: int | str
    category: str = ""
    turns: tuple[str, str]
    reference: tuple[str, ...] | None = Field(None, max_length=2)

    @property
    def text(self) -> str:
        """All that is asked."""
        return "\n\n".join(self.turns)


class _Choice(_Row):
    turns: tuple[str, str]


class TwoAnswers(_Row):
    """Another model's answers to a question of MT-Bench; the first choice counts."""

    question_id: int | str
    choices: tuple[_Choice, ...] = Field(min_length=1)


class Compared(_Row):
    """A question of AlpacaEval with the output to compare with."""

    instruction: str
    output: str
    generator: str = ""
    instruction_difficulty: float | None = None

    @property
    def text(self) -> str:
        """The question and the answer that there is to it."""
        return f"{self.instruction}\n\n{self.output}"


_Kind = TypeVar("_Kind", TwoTurns, TwoAnswers, Compared)


def mt_bench_questions(sweep: Sweep) -> list[TwoTurns]:
    """The questions that the sweep asks of MT-Bench. SpecError for a file that is not there or a row that is wrong."""
    where = "evaluation.judge.questions.mt_bench"
    questions = _rows(questions_file(_judge(sweep), "mt_bench"), where, TwoTurns)
    if twice := found_twice(question.question_id for question in questions):
        raise SpecError(f"{where}: question_id must differ, found twice: {shown(twice, 80)}")
    return questions[: sweep.evaluation.limit]


def mt_bench_baseline(sweep: Sweep) -> dict[int | str, tuple[str, str]] | None:
    """question_id -> answers to compare with; None if the sweep names none. SpecError if a question has none."""
    path = _judge(sweep).baseline
    if path is None:
        return None
    where = "evaluation.judge.baseline"
    answers = {row.question_id: row.choices[0].turns for row in _rows(path, where, TwoAnswers)}
    lacking = [question.question_id for question in mt_bench_questions(sweep) if question.question_id not in answers]
    if lacking:
        raise SpecError(f"{where}: {shown(path.name)}: no answer to question {shown(lacking[0], 80)}")
    return answers


def alpaca_eval_questions(sweep: Sweep) -> list[Compared]:
    """The questions that the sweep asks of AlpacaEval. SpecError as for MT-Bench."""
    where = "evaluation.judge.questions.alpaca_eval"
    questions = _rows(questions_file(_judge(sweep), "alpaca_eval"), where, Compared)[: sweep.evaluation.limit]
    known = sum(question.instruction_difficulty is not None for question in questions)
    if known not in (0, len(questions)):
        raise SpecError(f"{where}: instruction_difficulty stands in {known} of {len(questions)} rows; valid: all, none")
    return questions


def question_texts(sweep: Sweep, task: str) -> list[str]:
    """What a judged task asks, with the answer that its file holds, as one text for each question."""
    questions: Sequence[TwoTurns | Compared]
    questions = mt_bench_questions(sweep) if task == "mt_bench" else alpaca_eval_questions(sweep)
    return [question.text for question in questions]


def check_questions(sweep: Sweep) -> None:
    """Read every file that the sweep's judged tasks need; SpecError for the first mistake."""
    if "mt_bench" in sweep.evaluation.tasks:
        mt_bench_questions(sweep)
        mt_bench_baseline(sweep)
    if "alpaca_eval" in sweep.evaluation.tasks:
        alpaca_eval_questions(sweep)


def judge_identity(sweep: Sweep, task: str) -> Identity:
    """What decides a judged task's numbers besides the model: questions, judge, prompts, how long answers may be."""
    judge = _judge(sweep)
    identity = {
        "judge": verdict_identity(judge),
        "prompts": prompts_digest(),
        "questions": file_digest(questions_file(judge, task), f"evaluation.judge.questions.{task}"),
        "max_answer_tokens": judge.max_answer_tokens,
        "asks": judge.asks,
        "version": JUDGING_VERSION,
    }
    if task == "mt_bench" and judge.baseline is not None:
        identity["baseline"] = file_digest(judge.baseline, "evaluation.judge.baseline")
    return identity


def verdict_identity(judge: JudgeSpec) -> Identity:
    """What a judge is, wherever it runs: the model's name and version, or the digest of its folder."""
    identity: Identity = {"temperature": judge.temperature, "max_tokens": judge.max_tokens}
    if judge.path is not None:
        return {"folder": folder_digest(judge.path, "evaluation.judge.path"), **identity}
    return {"model": judge.model, "version": judge.version, **identity}


def questions_file(judge: JudgeSpec, task: str) -> Path:
    """The file of a judged task's questions, which a spec that asks for the task names."""
    return next(path for name, path in judge.questions.items() if name == task)


def prompt_texts() -> dict[str, str]:
    """Name -> text of every prompt to a judge."""
    files = sorted(PROMPTS_FOLDER.glob("*.txt"))
    return {file.stem: file.read_text(encoding="utf-8").strip() for file in files}


def prompts_digest() -> str:
    """16 hexadecimal digits."""
    return text_digest(json.dumps(prompt_texts(), sort_keys=True))


def _judge(sweep: Sweep) -> JudgeSpec:
    assert sweep.evaluation.judge is not None  # a spec with a judged task and no judge is refused
    return sweep.evaluation.judge


def _rows(path: Path, where: str, kind: type[_Kind]) -> list[_Kind]:
    """The rows of a JSON list or of JSON lines, each checked."""
    place = f"{where}: {shown(path.name)}"
    rows = [_row(content, f"{place}, {at}", kind) for at, content in _objects(read_text(path, where), place)]
    if not rows:
        raise SpecError(f"{place}: no questions")
    return rows


def _row(content: Any, place: str, kind: type[_Kind]) -> _Kind:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise SpecError(f"{place}: {describe(error, kind)}") from error


def _objects(text: str, place: str) -> Iterator[tuple[str, Any]]:
    """(where it stands, row) for each row."""
    if text.lstrip().startswith("["):
        content = _json(text, place)
        yield from ((f"row {number}", row) for number, row in enumerate(content, start=1))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", _json(line, f"{place}, line {number}")


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{place}: not JSON ({shown(error)})") from error
