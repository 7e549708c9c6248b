"""lm-evaluation-harness tasks on a model that is already in memory.

`Benchmarks` is made once in a process: it finds the tasks and loads their items. `evaluate` scores one checkpoint on
some of them. Neither of lm-eval's caches is used: one is not keyed by the model, the other not by the prompt.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

# A pool of processes inside a worker, for a bootstrap of a few thousand draws, costs more than it saves.
os.environ.setdefault("DISABLE_MULTIPROC", "1")

import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from raysft.evaluation.gold import gold_answers, prompt_and_gold
from raysft.evaluation.kept_requests import SEED, keep_requests, seeded_shuffles
from raysft.evaluation.layouts import Layouts
from raysft.evaluation.outcomes import score_table
from raysft.evaluation.prefix_lm import PrefixLM
from raysft.evaluation.programs import check_code_tasks, runs_programs
from raysft.evaluation.sandbox.pool import allowed, require
from raysft.evaluation.task_loading import load_task
from raysft.evaluation.templated_lm import TemplatedLM
from raysft.evaluation.token_lm import TokenLM
from raysft.evaluation.vllm_lm import Served, TemplatedVllmLM, VllmLM
from raysft.spec.benchmarks import is_local, local_tasks, missing_data_files, task_folders
from raysft.spec.judge import JUDGED_TASKS
from raysft.spec.questions import question_texts
from raysft.spec.run_code import RunCode
from raysft.spec.suites import base_tasks
from raysft.spec.sweep import SpecError, Sweep
from raysft.spec.templates import Template, evaluation_template
from raysft.spec.vllm import VllmSpec

_BOOTSTRAP_DRAWS = 1000  # for metrics whose standard error has no closed form

logging.getLogger("lm_eval").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Benchmarks:
    """Tasks by the name the sweep gives them: lm-eval's loaded dictionaries of leaf tasks and groups. `template` is
    put around their prompts; None leaves these as the tasks write them. `questions`: texts of judged tasks. `served_by`
    says how vLLM answers for a model."""

    loaded: Mapping[str, Mapping[str, Any]]
    limit: int | None
    batch_size: int
    template: Template | None = None
    layouts: Layouts = field(default_factory=Layouts)
    questions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    run_code: RunCode = False
    served_by: VllmSpec | None = None


def load_benchmarks(sweep: Sweep) -> Benchmarks:
    """Find and load the sweep's tasks. SpecError for a name that is no task, or data files that are not there.

    lm-eval's own index of thousands of tasks takes seconds to read, so it is read only if a name is not found among the
    sweep's folders and this package's.
    """
    missing = missing_data_files(sweep)
    if missing:
        raise SpecError("; ".join(missing))
    names = [name for name in sweep.evaluation.tasks if name not in JUDGED_TASKS]
    tasks = base_tasks(names)
    manager = _task_manager(sweep, include_defaults=any(not is_local(sweep, name) for name in tasks))
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise SpecError(
            f"evaluation.tasks: no task named {', '.join(unknown)}; there are {len(manager.all_tasks)} known: those of "
            f"lm-eval, and {', '.join(sorted(local_tasks(sweep))) or 'none'} in the sweep's folders and this package's"
        )
    loaded = {}
    for name in names:
        with seeded_shuffles():
            loaded[name] = load_task(manager, sweep, name)
    leaves = {id(task): task for part in loaded.values() for task in part["tasks"].values()}.values()
    check_code_tasks(leaves, sweep.evaluation.run_code)
    for task in leaves:
        keep_requests(task)
    questions = {name: question_texts(sweep, name) for name in sweep.evaluation.tasks if name in JUDGED_TASKS}
    settings = (sweep.evaluation.limit, sweep.evaluation.batch_size, evaluation_template(sweep))
    spec = sweep.evaluation
    return Benchmarks(loaded, *settings, questions=questions, run_code=spec.run_code, served_by=spec.served_by)


@contextmanager
def answering(model: Any, served_by: VllmSpec | None) -> Iterator[Any]:
    """What to hand to `evaluate` and `generator` in place of a model that is asked for several things: under vLLM, one
    process answers for all of them, and has ended afterwards."""
    if served_by is None or isinstance(model, Served):
        yield model
        return
    with Served(model, served_by) as served:
        yield served


def evaluate(model: Any, tokenizer: Any, benchmarks: Benchmarks, names: Sequence[str]) -> dict[str, pa.Table]:
    """Score `model` on the tasks `names`, in as few passes as there can be; a table of `schema.EVALUATE` for each."""
    tables: dict[str, pa.Table] = {}
    with answering(model, benchmarks.served_by) as one:
        lm = _language_model(one, tokenizer, benchmarks)
        for together in _passes(benchmarks, names):
            tables |= _evaluate_together(lm, benchmarks, together)
    return tables


def _passes(benchmarks: Benchmarks, names: Sequence[str]) -> list[list[str]]:
    """Tasks that lm-eval takes together: of two leaves of one name, such as a group's and one asked alone, it knows
    one, and they may be asked with other examples or data."""
    passes: list[tuple[set[str], list[str]]] = []
    for name in names:
        leaves = benchmarks.loaded[name]["tasks"].keys() | benchmarks.loaded[name]["groups"].keys()
        for taken, together in passes:
            if not taken & leaves:
                taken |= leaves
                together.append(name)
                break
        else:
            passes.append((set(leaves), [name]))
    return [together for _, together in passes]


def _evaluate_together(lm: TokenLM, benchmarks: Benchmarks, names: Sequence[str]) -> dict[str, pa.Table]:
    templated = benchmarks.template is not None
    chosen = [benchmarks.loaded[name] for name in names]
    task_dict = {
        part: {key: value for loaded in chosen for key, value in loaded[part].items()}
        for part in ("tasks", "groups", "group_map")
    }
    if any(runs_programs(task) for task in task_dict["tasks"].values()):
        require(benchmarks.run_code)  # before an answer is generated, not after
    with allowed(benchmarks.run_code), _seeded():
        outcome = lm_eval.evaluate(
            lm,
            task_dict,
            limit=benchmarks.limit,
            bootstrap_iters=_BOOTSTRAP_DRAWS,
            apply_chat_template=templated,
            fewshot_as_multiturn=templated,
            confirm_run_unsafe_code=benchmarks.run_code is not False,  # `check_code_tasks` has seen every task
        )
    if templated:  # prompts then differ between bases, and items are matched over all of them
        for sample in itertools.chain.from_iterable(outcome["samples"].values()):
            sample["prompt_hash"] = sample["doc_hash"]
    gold = gold_answers(lm, task_dict["tasks"], outcome["samples"])
    return {name: score_table(benchmarks.loaded[name], outcome, gold, lm.endless) for name in names}


@contextmanager
def _seeded() -> Iterator[None]:
    """Inside, what is sampled is drawn from one seed, whatever the process did before."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        torch.manual_seed(SEED)
        yield


def generator(model: Any, tokenizer: Any, benchmarks: Benchmarks) -> Callable[[list[str], int], list[str]]:
    """Greedy continuations of contexts, of at most so many tokens, and of half the model's window."""

    def generate(contexts: list[str], longest: int) -> list[str]:
        with answering(model, benchmarks.served_by) as one:
            lm = _language_model(one, tokenizer, benchmarks)
            wanted = {"until": [], "max_gen_toks": min(longest, lm.max_length // 2), "do_sample": False}
            requests = [Instance("generate_until", {}, (context, wanted), 0) for context in contexts]
            return lm.generate_until(requests, disable_tqdm=True)

    return generate


def benchmark_texts(benchmarks: Benchmarks, name: str, count: int) -> list[str]:
    """Prompt and gold answer of the first `count` items of a task, as one text each."""
    return [text for _, _, text in itertools.islice(benchmark_items(benchmarks, name), count)]


def benchmark_items(benchmarks: Benchmarks, name: str, limit: int | None = None) -> Iterator[tuple[str, int, str]]:
    """(leaf task, index there, prompt and gold answer as one text) of the items, of each leaf the first `limit`."""
    for number, text in enumerate(benchmarks.questions.get(name, ())):
        yield name, number, text
    for leaf, task in benchmarks.loaded.get(name, {"tasks": {}})["tasks"].items():
        for number, doc in enumerate(itertools.islice(task.eval_docs, limit)):
            yield leaf, number, prompt_and_gold(task, doc)


def _language_model(model: Any, tokenizer: Any, benchmarks: Benchmarks) -> TokenLM:
    how: dict[str, Any] = {
        "batch_size": benchmarks.batch_size,
        "layouts": benchmarks.layouts,
    }
    is_served = isinstance(model, Served)
    if benchmarks.template is not None:
        return (TemplatedVllmLM if is_served else TemplatedLM)(model, tokenizer, benchmarks.template, **how)
    return (VllmLM if is_served else PrefixLM)(model, tokenizer, **how)


def _task_manager(sweep: Sweep, include_defaults: bool) -> TaskManager:
    folders = [str(path) for path in reversed(task_folders(sweep))]  # of two with one name lm-eval takes the later
    return TaskManager(include_path=folders, include_defaults=include_defaults)
