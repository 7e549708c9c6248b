"""What of a plan is to be embedded: the weights, and which of the training texts, of each subject."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raysft.cluster.embed import Subject
from raysft.cluster.embedder import EmbedJob
from raysft.corpus.example import Example
from raysft.corpus.sources import load_examples
from raysft.models.load import model_shape
from raysft.spec.grid import Trial
from raysft.spec.plan import Plan, Work, text_count
from raysft.spec.sweep import Sweep
from raysft.store.checkpoints import is_complete, sound_folder
from raysft.store.layout import Storage, checkpoint_folder, embeddings_folder
from raysft.store.results import record_failure


def subjects_of(
    plan: Plan, storage: Storage, works: Iterable[Work], failures: list[dict[str, Any]]
) -> list[tuple[tuple[int, int], list[Subject]]]:
    """(shape of hidden states, subjects of that shape) of works whose embeddings are to be made. What cannot be is
    recorded, and added to `failures`."""
    streams: dict[tuple[int, int], list[Subject]] = {}
    trials = {trial.key: trial for trial in plan.trials}
    examples: dict[tuple[str, int | None], list[Example]] = {}
    for source, work in {work.source or "": work for work in works}.items():
        embedding = replace(work, stage="embed", key=source)
        try:
            job = _job(plan, trials, work)
            if job.trial is not None and not is_complete(storage, checkpoint_folder(job.trial.key, job.epoch)):
                raise FileNotFoundError(f"checkpoint {checkpoint_folder(job.trial.key, job.epoch)} is not there")
            shape = model_shape(storage, plan.sweep.model(job.model))
            data = (work.about or "", work.subject.size)
            if data not in examples:
                examples[data] = load_examples(plan.sweep, plan.sweep.dataset(data[0]), data[1])
            subject = _subject(plan.sweep, embedding, job, examples[data])
            _check_texts(plan.sweep, subject)
            streams.setdefault(shape, []).append(subject)
        except (ValueError, OSError) as error:
            failures.append(record_failure(storage, "embed", source, error, work.subject.as_row()))
    return list(streams.items())


def is_there(storage: Storage, source: str) -> bool:
    """Whether embeddings are in the storage; on a local one, sound to the last byte."""
    folder = embeddings_folder(source)
    return sound_folder(storage, folder) is not None if storage.is_local else is_complete(storage, folder)


def _job(plan: Plan, trials: Mapping[str, Trial], work: Work) -> EmbedJob:
    probe = plan.sweep.probes.intrinsic_dimension
    assert probe is not None
    trial = trials[work.subject.trial] if work.subject.trial is not None else None
    texts_of = trials[work.as_in or ""]
    return EmbedJob(work.source or "", work.subject.model, trial, work.subject.epoch or 0, texts_of, probe.pooling)


def _check_texts(sweep: Sweep, subject: Subject) -> None:
    """ValueError for fewer texts than a neighbour table takes, before any of them goes through a model."""
    probe = sweep.probes.intrinsic_dimension
    assert probe is not None
    if len(subject.texts) < probe.neighbours + 2:
        raise ValueError(
            f"datasets.{subject.work.about} at size {subject.work.subject.size}: {len(subject.texts)} distinct texts, "
            f"{probe.neighbours + 2} are needed for {probe.neighbours} neighbours (probes.intrinsic_dimension)"
        )


def _subject(sweep: Sweep, work: Work, job: EmbedJob, examples: Sequence[Example]) -> Subject:
    """The first training examples of a subject, the short ones first; one that stands there twice is taken once."""
    chosen = examples[: text_count(sweep, work.about or "", work.subject.size)]
    distinct = list({example: place for place, example in reversed(list(enumerate(chosen)))}.values())
    lengths = {place: sum(len(asked) + len(reply) for asked, reply in chosen[place].turns) for place in distinct}
    return Subject(work, job, sorted(distinct, key=lambda place: (lengths[place], place)), len(chosen) - len(distinct))
