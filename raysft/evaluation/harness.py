"""lm-evaluation-harness tasks on a model that is already in memory.

`Benchmarks` is made once in a process: it finds the tasks and loads their items. `evaluate` scores one checkpoint on
some of them. Neither of lm-eval's caches is used: one is not keyed by the model, the other not by the prompt.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

# A pool of processes inside a worker, for a bootstrap of a few thousand draws, costs more than it saves.
os.environ.setdefault("DISABLE_MULTIPROC", "1")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from raysft.evaluation.templated_lm import TemplatedLM
from raysft.spec.benchmarks import local_tasks, missing_data_files, read_task, task_folders
from raysft.spec.keys import text_digest
from raysft.spec.sweep import SpecError, Sweep
from raysft.spec.templates import Template, evaluation_template
from raysft.store.schema import EVALUATE

_BOOTSTRAP_DRAWS = 1000  # for metrics whose standard error has no closed form
_NOTHING_EXTRACTED = ("", "[invalid]")  # what lm-eval's filters leave of an answer they could not read

logging.getLogger("lm_eval").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Benchmarks:
    """Tasks by the name the sweep gives them: lm-eval's loaded dictionaries of leaf tasks and groups. `template` is
    put around their prompts; None leaves these as the tasks write them."""

    loaded: Mapping[str, Mapping[str, Any]]
    limit: int | None
    batch_size: int
    template: Template | None = None


def load_benchmarks(sweep: Sweep) -> Benchmarks:
    """Find and load the sweep's tasks. SpecError for a name that is no task, or data files that are not there.

    lm-eval's own index of thousands of tasks takes seconds to read, so it is read only if a name is not found among the
    sweep's folders and this package's.
    """
    missing = missing_data_files(sweep)
    if missing:
        raise SpecError("; ".join(missing))
    names = sweep.evaluation.tasks
    local = local_tasks(sweep)
    manager = _task_manager(sweep, include_defaults=any(name not in local for name in names))
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise SpecError(
            f"evaluation.tasks: no task named {', '.join(unknown)}; there are {len(manager.all_tasks)} known: those of "
            f"lm-eval, and {', '.join(sorted(local)) or 'none'} in the sweep's folders and this package's"
        )
    loaded = {name: _load(manager, name, local) for name in names}
    return Benchmarks(loaded, sweep.evaluation.limit, sweep.evaluation.batch_size, evaluation_template(sweep))


def evaluate(model: Any, tokenizer: Any, benchmarks: Benchmarks, names: Sequence[str]) -> dict[str, pa.Table]:
    """Score `model` on the tasks `names`, all in one pass; a table of `schema.EVALUATE` for each name."""
    lm = _language_model(model, tokenizer, benchmarks)
    templated = benchmarks.template is not None
    chosen = [benchmarks.loaded[name] for name in names]
    task_dict = {
        part: {key: value for loaded in chosen for key, value in loaded[part].items()}
        for part in ("tasks", "groups", "group_map")
    }
    outcome = lm_eval.evaluate(
        lm,
        task_dict,
        limit=benchmarks.limit,
        bootstrap_iters=_BOOTSTRAP_DRAWS,
        apply_chat_template=templated,
        fewshot_as_multiturn=templated,
    )
    if templated:  # prompts then differ between bases, and items are matched over all of them
        for sample in itertools.chain.from_iterable(outcome["samples"].values()):
            sample["prompt_hash"] = sample["doc_hash"]
    gold = _gold_answers(lm, task_dict["tasks"], outcome["samples"])
    return {name: _table(benchmarks.loaded[name], outcome, gold) for name in names}


def benchmark_texts(benchmarks: Benchmarks, name: str, count: int) -> list[str]:
    """Prompt and gold answer of the first `count` items of a task, as one text each."""
    texts: list[str] = []
    for task in benchmarks.loaded[name]["tasks"].values():
        for doc in list(task.eval_docs)[: count - len(texts)]:
            texts.append(str(task.doc_to_text(doc)) + _gold_continuation(task, doc))
    return texts


@dataclass(frozen=True)
class _Gold:
    bits: float | None
    bytes: int | None


def _language_model(model: Any, tokenizer: Any, benchmarks: Benchmarks) -> HFLM:
    if benchmarks.template is not None:
        return TemplatedLM(model, tokenizer, benchmarks.template, benchmarks.batch_size)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=benchmarks.batch_size, backend="causal")


def _task_manager(sweep: Sweep, include_defaults: bool) -> TaskManager:
    return TaskManager(include_path=[str(path) for path in task_folders(sweep)], include_defaults=include_defaults)


def _load(manager: TaskManager, name: str, local: Mapping[str, Any]) -> Mapping[str, Any]:
    path = local.get(name)
    if path is None:
        return manager.load([name])
    kwargs = read_task(path).get("dataset_kwargs") or {}
    if "data_files" not in kwargs:
        return manager.load([name])
    # lm-eval takes relative data files from the current folder, which differs between a laptop and a worker.
    located = _located(kwargs["data_files"], path.parent)
    return manager.load([{**load_yaml(path), "dataset_kwargs": {**kwargs, "data_files": located}}])


def _located(files: Any, folder: Any) -> Any:
    if isinstance(files, dict):
        return {split: _located(entry, folder) for split, entry in files.items()}
    if isinstance(files, list):
        return [_located(entry, folder) for entry in files]
    return files if "://" in files else str((folder / files).resolve())


def _gold_answers(lm: HFLM, tasks: Mapping[str, Any], samples: Mapping[str, Any]) -> dict[tuple[str, int], _Gold]:
    """Information in the gold answer of every item: read from the scores of the choices, or asked for."""
    gold: dict[tuple[str, int], _Gold] = {}
    asked: list[Instance] = []
    places: list[tuple[str, int]] = []
    for name, task in tasks.items():
        for doc_id, sample in _first_by_doc(samples[name]).items():
            answer = _gold_continuation(task, sample["doc"])
            if not answer:
                gold[name, doc_id] = _Gold(None, None)
            elif task.OUTPUT_TYPE == "multiple_choice" and isinstance(sample["target"], int):
                log_likelihood = sample["filtered_resps"][sample["target"]][0]
                gold[name, doc_id] = _Gold(-float(log_likelihood) / math.log(2), len(answer.strip().encode()))
            else:
                request = (sample["arguments"][0][0], answer)
                asked.append(Instance(request_type="loglikelihood", doc=sample["doc"], arguments=request, idx=0))
                places.append((name, doc_id))
    for place, request, (log_likelihood, _) in zip(
        places, asked, lm.loglikelihood(asked, disable_tqdm=True), strict=True
    ):
        gold[place] = _Gold(-float(log_likelihood) / math.log(2), len(request.args[1].strip().encode()))
    return gold


def _first_by_doc(samples: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """One sample for each item; a task with several filters logs an item once for each."""
    first: dict[int, Mapping[str, Any]] = {}
    for sample in samples:
        first.setdefault(int(sample["doc_id"]), sample)
    return first


def _gold_continuation(task: Any, doc: Any) -> str:
    """The gold answer as it follows the prompt, the first where there are several; empty where there is none."""
    target = task.doc_to_target(doc)
    if isinstance(target, (list, tuple)):
        target = target[0] if target else ""
    if isinstance(target, int) and task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(doc)
        target = choices[target] if 0 <= target < len(choices) else ""
    text = str(target)
    return f"{task.config.target_delimiter}{text}" if text.strip() else ""


def _table(loaded: Mapping[str, Any], outcome: Mapping[str, Any], gold: Mapping[tuple[str, int], _Gold]) -> pa.Table:
    rows = []
    for name, task in loaded["tasks"].items():
        rows.extend(_task_rows(name, task, outcome, gold))
    for name in loaded["groups"]:
        rows.extend(_metric_rows(name, outcome))
    return pa.Table.from_pylist(rows, schema=EVALUATE)


def _task_rows(
    name: str, task: Any, outcome: Mapping[str, Any], gold: Mapping[tuple[str, int], _Gold]
) -> list[dict[str, Any]]:
    rows = _metric_rows(name, outcome)
    known = [entry for (owner, _), entry in gold.items() if owner == name and entry.bits is not None]
    gold_bytes = sum(entry.bytes or 0 for entry in known)
    for row in rows:
        metric, _, filter_name = row["metric"].partition(",")
        samples = [
            _sample(sample, metric, gold[name, int(sample["doc_id"])])
            for sample in outcome["samples"][name]
            if sample["filter"] == filter_name and metric in sample
        ]
        row["samples"] = samples
        row["n"] = len(samples)
        row["chance"] = _chance(task, samples, outcome["samples"][name])
        if samples:
            row["unextracted"] = sum(not sample["extracted"] for sample in samples) / len(samples)
        if gold_bytes:
            row["bits_per_byte"] = sum(entry.bits or 0.0 for entry in known) / gold_bytes
    return rows


def _metric_rows(name: str, outcome: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each metric of a task or group, with lm-eval's own standard error."""
    results = outcome["results"].get(name, {})
    rows = []
    for metric, value in results.items():
        base, _, filter_name = metric.partition(",")
        if "," not in metric or base.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        stderr = results.get(f"{base}_stderr,{filter_name}")
        rows.append(
            {
                "task": name,
                "metric": metric,
                "value": float(value),
                "stderr": float(stderr) if isinstance(stderr, (int, float)) else None,
                "n": int(results.get("sample_len") or 0),
                "higher_is_better": bool(outcome["higher_is_better"].get(name, {}).get(base, True)),
            }
        )
    return rows


def _sample(sample: Mapping[str, Any], metric: str, gold: _Gold) -> dict[str, Any]:
    response, extracted = _response(sample)
    value = sample[metric]
    return {
        "doc": int(sample["doc_id"]),
        "doc_hash": text_digest(sample["prompt_hash"] + sample["target_hash"]),
        "value": float(value) if isinstance(value, (int, float)) else None,
        "extracted": extracted,
        "gold_bits": gold.bits,
        "gold_bytes": gold.bytes,
        "response": response,
    }


def _response(sample: Mapping[str, Any]) -> tuple[str, bool]:
    """(answer, whether it could be extracted): generated text, or the index of the likeliest choice."""
    answers = sample["filtered_resps"]
    if answers and isinstance(answers[0], str):
        return answers[0], answers[0].strip() not in _NOTHING_EXTRACTED
    scores = [answer[0] for answer in answers if isinstance(answer, (list, tuple))]
    return (str(max(range(len(scores)), key=scores.__getitem__)), True) if scores else (str(answers), True)


def _chance(task: Any, rows: Sequence[Any], samples: Sequence[Mapping[str, Any]]) -> float | None:
    """Score of a uniform guess: given by the task's metadata, or one over the number of choices."""
    given = (task.config.metadata or {}).get("chance")
    if given is not None:
        return float(given)
    if task.OUTPUT_TYPE == "multiple_choice" and samples:
        return sum(1 / len(sample["filtered_resps"]) for sample in samples) / len(samples)
    return None
