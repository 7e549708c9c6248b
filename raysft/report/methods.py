"""Methods in words, as they would stand in a paper, from the sweep's tables, the study's, and the sweep's YAML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysft import __version__
from raysft.report.findings import Findings
from raysft.report.methods_statistics import statistics
from raysft.spec.sweep import MethodSpec, Sweep
from raysft.study.tables import aggregate, reals

Paragraph = tuple[str, str]


def methods(findings: Findings, spec: Sweep | None) -> Iterator[Paragraph]:
    """Heading and text of each paragraph; only of what was done.

    Args:
        findings: the tables.
        spec: the sweep's YAML; without it, what only it knows (ranks, templates, lengths) is left out.
    """
    yield "Fine-tuning", " ".join(_training(findings, spec))
    if findings.sweep["scores"].num_rows:
        yield "Evaluation", " ".join(_evaluation(findings, spec))
    measured = " ".join(_measures(findings))
    if measured:
        yield "Measures", measured
    yield "Statistics", " ".join(statistics(findings))
    yield "Versions", " ".join(_versions(findings))


def _training(findings: Findings, spec: Sweep | None) -> Iterator[str]:
    trials = findings.trials
    done = trials.filter(pc.is_in(trials["state"], pa.array(["done", "diverged"])))
    models, datasets = (_names(trials, axis) for axis in ("model", "dataset"))
    if findings.stated:
        yield f"{trials.num_rows:,} fine-tunings were planned and {done.num_rows:,} are done:"
    else:
        yield f"Scores of {trials.num_rows:,} fine-tunings, as they were released:"
    yield f"{_counted(models, 'base model')} ({_listed(models)}) and {_counted(datasets, 'training set')} "
    yield f"({_listed(datasets)}), in {_counted(findings.variants, 'variant')} ({_listed(findings.variants)})."
    for method in _names(trials, "method"):
        yield _method(trials.filter(pc.equal(trials["method"], method)), method, spec)
    if spec is not None:
        training = spec.training
        yield f"Weight decay was {training.weight_decay:g}, gradients were clipped at norm {training.max_grad_norm:g}, "
        yield f"rows were cut at {training.max_length} tokens, weights were {training.dtype}, and the prompt template "
        yield f"was {_short(training.template)}. The loss of a step is a mean over its batch's supervised tokens."
    seeds = sorted({seed for seed in trials["seed"].to_pylist() if seed is not None})
    if seeds:
        yield f"{_counted(seeds, 'seed').capitalize()}: {_listed(seeds)}."
    else:
        yield "Seeds are not known."


def _method(trials: pa.Table, method: str, spec: Sweep | None) -> str:
    facts = [
        ("sizes", [f"{size:,}" for size in _values(trials, "size")], "rows"),
        ("epochs", _values(trials, "epochs"), "epochs"),
        ("learning rate", [f"{rate:g}" for rate in _values(trials, "learning_rate")], ""),
        ("batch", _values(trials, "batch_size"), "examples a batch"),
        ("schedule", _values(trials, "schedule"), "schedule"),
    ]
    said = []
    for name, values, unit in facts:
        if values:
            said.append(f"{name} {_listed(values)}" if not unit else f"{_listed(values)} {unit}")
    settings = next((entry for entry in spec.methods if entry.name == method), None) if spec is not None else None
    if settings is not None:
        said += _settings(settings)
    return f"{_short(method)}: {', '.join(said) or 'settings not known'}."


def _settings(method: MethodSpec) -> Iterator[str]:
    if method.kind == "lora":
        yield f"LoRA of rank {method.rank} and alpha {method.alpha:g} on {_short(str(method.targets))}"
        extra = [name for name in ("rslora", "dora") if getattr(method, name)]
        if method.dropout:
            extra.append(f"dropout {method.dropout:g}")
        yield from extra
    if method.depth is not None:
        yield f"layers of depth {method.depth[0]:g} to {method.depth[1]:g} only"


def _evaluation(findings: Findings, spec: Sweep | None) -> Iterator[str]:
    scores = findings.sweep["scores"]
    tasks = aggregate(scores, ["task"], ("n", "max"), ("n", "min")).to_pylist()
    items = {row["task"]: row["n_max"] for row in tasks}
    named = [f"{task} ({count:,} items)" if count else task for task, count in items.items()]
    checkpoints = len(
        set(zip(scores["model"].to_pylist(), scores["trial"].to_pylist(), scores["epoch"].to_pylist(), strict=True))
    )
    yield f"{checkpoints:,} checkpoints, base models among them, have scores on {_counted(named, 'task')}:"
    yield f"{_listed(named)}."
    metrics = sorted({metric.partition(",")[0] for metric in scores["metric"].to_pylist() if metric})
    yield f"Metrics: {_listed(metrics)}."
    if spec is not None:
        yield f"Tasks are those of lm-evaluation-harness, answered by {spec.evaluation.backend}."
        if spec.evaluation.limit is not None:
            yield f"At most {spec.evaluation.limit} items of each were used."
    if not np.isfinite(reals(scores, "stderr")).any():
        yield "No score has a standard error."


def _measures(findings: Findings) -> Iterator[str]:
    properties = findings.sweep["data_properties"]
    if properties.num_rows:
        rows = int(np.nanmax(reals(properties, "n"), initial=0))
        yield f"Perplexity, length and similarity of training sets are those of the base model on up to {rows:,} rows."
    if findings.study["weight_change_by_depth"].num_rows:
        yield "Weight change is the norm of the difference over the norm of the base, all tensors of a layer pooled."
    dimension = findings.study["intrinsic_dimension_by_depth"]
    if dimension.num_rows:
        n = sorted({count for count in dimension["n"].to_pylist() if count})
        used = aggregate(dimension, ["estimator", "scale"], ("n", "count")).to_pylist()
        scales: dict[str, list[int]] = {}
        for row in used:
            scales.setdefault(row["estimator"], []).append(row["scale"])
        estimators = [
            f"{name} (k = {', '.join(map(str, found))})" if any(found) else name.replace("_", " ")
            for name, found in sorted(scales.items())
        ]
        size = f"{n[0]:,}" if len(n) == 1 else f"{n[0]:,} to {n[-1]:,}"
        yield f"Intrinsic dimension: {_listed(estimators)}, on N = {size} texts, the same before and after."
    placed = findings.study["map"].to_pylist()
    if placed:
        first = placed[0]
        yield f"The map is of log-likelihoods of N = {first['texts']:,} texts under {len(placed):,} models, the lowest"
        yield f"raised to {first['clipped_below']:.4g} nats, laid out by {first['projection']}" + (
            f" of perplexity {first['perplexity']:.3g}." if first["perplexity"] else "."
        )
    overlap = findings.sweep["contamination"]
    if overlap.num_rows:
        ngrams = sorted({size for size in overlap["ngram"].to_pylist() if size})
        yield f"Training sets were searched for n-grams of {_listed(ngrams)} words of the tasks' items."


def _versions(findings: Findings) -> Iterator[str]:
    yield f"This page: raysft {__version__}."
    costs = findings.sweep["costs"]
    found = sorted(set(costs["versions"].to_pylist()) - {None}) if "versions" in costs.column_names else []
    if len(found) == 1:
        yield f"Every result: {found[0]}."
    elif found:
        yield f"Results were made under {len(found)} sets of versions: {' | '.join(found)}."
    else:
        yield "The versions of each result stand in its file's metadata."


def _names(table: pa.Table, axis: str) -> list[str]:
    return sorted({name for name in table[axis].to_pylist() if name})


def _values(table: pa.Table, column: str) -> list[Any]:
    return sorted({value for value in table[column].to_pylist() if value is not None})


def _counted(names: Sequence[object], what: str) -> str:
    return f"{len(names):,} {what}{'' if len(names) == 1 else 's'}"


def _listed(names: Sequence[object], most: int = 24) -> str:
    said = [str(name) for name in names[:most]]
    return ", ".join(said) + (f" and {len(names) - most} more" if len(names) > most else "")


def _short(text: str) -> str:
    """A template may be a text of many lines."""
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:79] + "…"
