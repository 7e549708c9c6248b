"""What a sweep asks of its datasets: under each base model, and of their texts alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from raysft.spec.keys import Identity, dataset_identity, key_of, sentence_model_identity
from raysft.spec.sweep import Sweep
from raysft.spec.templates import training_template


@dataclass(frozen=True)
class Asked:
    """A result about a dataset; `about` is the benchmark that it is compared with."""

    stage: str
    key: str
    dataset: str
    size: int | None = None
    about: str | None = None


def under_a_base(
    sweep: Sweep, model: Identity, datasets: Iterable[str], benchmarks: Mapping[str, Identity], reference: str
) -> Iterator[Asked]:
    """Properties of each dataset under a base, and its similarity to each benchmark, seen from the reference texts."""
    probe = sweep.probes.perplexity
    if probe is None:
        return
    for name in datasets:
        data = dataset_identity(sweep, sweep.dataset(name))
        options = {"model": model, "dataset": data, "rows": probe.rows, "template": training_template(sweep).digest}
        options["max_length"] = sweep.training.max_length
        yield Asked("perplexity", key_of("perplexity", options), name)
        for task, benchmark in benchmarks.items():
            key = key_of("similarity", {**options, "benchmark": benchmark, "reference": reference})
            yield Asked("similarity", key, name, about=task)


def of_texts_alone(
    sweep: Sweep, datasets: Iterable[str], benchmarks: Mapping[str, Identity], reference: str
) -> Iterator[Asked]:
    """Statistics of each dataset's texts and, if a sentence model is given, its similarity to each benchmark."""
    probe = sweep.probes.perplexity
    if probe is None:
        return
    encoder = probe.sentence_model and sentence_model_identity(probe.sentence_model)
    for name in datasets:
        options: Identity = {"dataset": dataset_identity(sweep, sweep.dataset(name)), "rows": probe.rows}
        yield Asked("text_statistics", key_of("text_statistics", options), name)
        for task, benchmark in benchmarks.items() if encoder else ():
            identity = {**options, "benchmark": benchmark, "encoder": encoder, "reference": reference}
            yield Asked("sentence_similarity", key_of("sentence_similarity", identity), name, about=task)


def overlaps(
    sweep: Sweep, sets: Iterable[tuple[str, int | None]], benchmarks: Mapping[str, Identity]
) -> Iterator[Asked]:
    """Overlap of each training set, at each size, with each benchmark."""
    probe = sweep.probes.contamination
    if probe is None:
        return
    for name, size in sets:
        data = dataset_identity(sweep, sweep.dataset(name))
        for task, benchmark in benchmarks.items():
            options = {"dataset": data, "size": size, "benchmark": benchmark, "ngram": probe.ngram}
            yield Asked("contamination", key_of("contamination", options), name, size, task)
