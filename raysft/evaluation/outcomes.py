"""From what lm-eval returns to rows of `schema.EVALUATE`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from raysft.evaluation import degenerate
from raysft.evaluation.extraction import was_extracted
from raysft.evaluation.gold import Gold
from raysft.spec.keys import text_digest
from raysft.store.schema import EVALUATE

# Shares of items whose choice is right, each by its own way of preferring one.
_MUTUAL_INFORMATION = "acc_mutual_info"
_ACCURACIES = ("acc", "acc_norm", "acc_bytes", _MUTUAL_INFORMATION)


def score_table(
    loaded: Mapping[str, Any],
    outcome: Mapping[str, Any],
    gold: Mapping[tuple[str, int], Gold],
    endless: Collection[tuple[str, str]],
) -> pa.Table:
    """Rows of one entry of `evaluation.tasks`, from what `lm_eval.evaluate` returned.

    `gold` is by leaf task and item; `endless` are the generations that were cut at the most tokens they might have.
    """
    rows = []
    for name, task in loaded["tasks"].items():
        rows.extend(_task_rows(name, task, outcome, gold, endless))
    for name in loaded["groups"]:
        rows.extend(_metric_rows(name, outcome))
    return pa.Table.from_pylist(rows, schema=EVALUATE)


def _task_rows(
    name: str,
    task: Any,
    outcome: Mapping[str, Any],
    gold: Mapping[tuple[str, int], Gold],
    endless: Collection[tuple[str, str]],
) -> list[dict[str, Any]]:
    rows = _metric_rows(name, outcome)
    known = [entry for (owner, _), entry in gold.items() if owner == name and entry.bits is not None]
    gold_bytes = sum(entry.bytes or 0 for entry in known)
    for row in rows:
        metric, _, filter_name = row["metric"].partition(",")
        samples = [
            _sample(task, sample, metric, gold[name, int(sample["doc_id"])])
            | {"degenerate": degenerate.of_sample(sample, endless)}
            for sample in outcome["samples"][name]
            if sample["filter"] == filter_name and metric in sample
        ]
        row["samples"] = samples
        row["n"] = len(samples)
        row["chance"] = _chance(task, metric, outcome["samples"][name])
        if samples:
            row["unextracted"] = sum(not sample["extracted"] for sample in samples) / len(samples)
        if samples and task.OUTPUT_TYPE == "generate_until":
            row["degenerate"] = sum(sample["degenerate"] is not None for sample in samples) / len(samples)
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


def _sample(task: Any, sample: Mapping[str, Any], metric: str, gold: Gold) -> dict[str, Any]:
    text, value = _text(task, sample), sample[metric]
    return {
        "doc": int(sample["doc_id"]),
        "doc_hash": text_digest(sample["prompt_hash"] + sample["target_hash"]),
        "value": float(value) if isinstance(value, (int, float)) else None,
        "extracted": text is None or was_extracted(task, metric, value, text),
        "gold_bits": gold.bits,
        "gold_bytes": gold.bytes,
        "response": _preferred(task, sample, metric) if text is None else text,
    }


def _text(task: Any, sample: Mapping[str, Any]) -> str | None:
    """What was generated, all of it of a task that asks several times; None where nothing was."""
    answers = sample["filtered_resps"]
    if answers and isinstance(answers[0], list) and all(isinstance(text, str) for text in answers[0]):
        return "\n\n".join(answers[0])
    if answers and isinstance(answers[0], str):
        return answers[0]
    return str(answers) if task.OUTPUT_TYPE == "generate_until" else None  # what a filter made of it


def _preferred(task: Any, sample: Mapping[str, Any], metric: str) -> str | None:
    """Index of the likeliest choice, or for mutual information of the one that its prompt makes likelier most; None
    where there is nothing to choose from."""
    scores = [answer[0] for answer in sample["filtered_resps"] if isinstance(answer, (list, tuple))]
    choices = _choices(task, scores)
    if metric == _MUTUAL_INFORMATION:
        scores = [given - alone for given, alone in zip(scores, scores[choices:], strict=False)]
    return str(max(range(choices), key=scores.__getitem__)) if choices > 1 else None


def _choices(task: Any, answers: Sequence[Any]) -> int:
    """The choices of an item: for mutual information with the prompt, lm-eval asks for each again without one, behind
    all of them."""
    listed = [entry.get("metric") for entry in task.config.metric_list or ()]
    asked_twice = task.OUTPUT_TYPE == "multiple_choice" and _MUTUAL_INFORMATION in listed
    return len(answers) // 2 if asked_twice else len(answers)


def _chance(task: Any, metric: str, samples: Sequence[Mapping[str, Any]]) -> float | None:
    """Score of a uniform guess: given by the task's metadata, or of an accuracy the share of choices that are right."""
    given = (task.config.metadata or {}).get("chance")
    if given is not None:
        return float(given)
    if task.OUTPUT_TYPE != "multiple_choice" or metric not in _ACCURACIES or not samples:
        return None
    shares = [_right(sample) / _choices(task, sample["filtered_resps"]) for sample in samples]
    return sum(shares) / len(shares)


def _right(sample: Mapping[str, Any]) -> int:
    """How many choices of an item are right."""
    return len(set(sample["target"])) if isinstance(sample["target"], list) else 1
