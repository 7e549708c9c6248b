"""Geometry of a sweep: what is embedded of the plan, in which streams, and the estimates that are made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from raysft.cluster.embed import Subject, embed
from raysft.cluster.estimate import estimate
from raysft.cluster.subjects import is_there, subjects_of
from raysft.spec.cost import geometry_shape
from raysft.spec.plan import Plan, Work
from raysft.store.checkpoints import delete_folder
from raysft.store.layout import Storage, embeddings_folder, open_storage
from raysft.store.results import read_result, record_failure, result_path

Watch = Callable[[str], None]

_HELD = 64 << 30  # bytes of embeddings in the storage at a time
_COPIES = 3  # of a layer's states that a task holds, with what it makes of them
_MUCH = 1 << 30  # bytes of a task that Ray is told of


def run_geometry(plan: Plan, storage: Storage, watch: Watch = lambda _: None) -> list[dict[str, Any]]:
    """Embed and estimate everything the plan misses; returns the failures, which are recorded in the storage.

    The storage holds the embeddings of one portion of the subjects at a time. Trials that are not trained are left out.
    """
    forget_embeddings(plan, storage)
    works = _can_be_made(plan)
    failures: list[dict[str, Any]] = []
    there = {source: is_there(storage, source) for source in dict.fromkeys(work.source or "" for work in works)}
    ready = [work for work in works if there[work.source or ""]]
    # Checkpoints are compared with what their base has, and so come after it.
    failures += _estimates(plan, storage, [work for work in ready if _is_base(work)], watch)
    to_embed = [work for work in works if not there[work.source or ""]]
    for shape, subjects in subjects_of(plan, storage, to_embed, failures):
        for portion in _portions(subjects, shape):
            watch(f"embedding {sum(len(subject.texts) for subject in portion)} texts of {len(portion)} subjects")
            failures += embed(plan.sweep, storage, portion, shape)
            done = {subject.job.key for subject in portion} - {failure["key"] for failure in failures}
            failures += _estimates(plan, storage, [work for work in works if work.source in done], watch)
    return failures + _estimates(plan, storage, [work for work in ready if not _is_base(work)], watch)


def forget_embeddings(plan: Plan, storage: Storage) -> None:
    """Delete the plan's embeddings of which nothing is to be made any more, unless they are to be kept."""
    probe = plan.sweep.probes.intrinsic_dimension
    if probe is None or probe.keep_embeddings:
        return
    needed = {work.source for work in plan.missing_geometry()}
    there = set(storage.names("embeddings")) if storage.exists("embeddings") else set()
    for work in plan.geometry:
        if work.stage == "embed" and work.key in there - needed:
            delete_folder(storage, embeddings_folder(work.key))


def _can_be_made(plan: Plan) -> list[Work]:
    """What is missing of bases, and of trials whose training is done."""
    trained = {
        work.subject.trial for unit in plan.units for work in unit.works if work.stage == "train" and plan.is_done(work)
    }
    return [work for work in plan.missing_geometry() if _is_base(work) or work.subject.trial in trained]


def _is_base(work: Work) -> bool:
    return work.subject.trial is None


def _portions(subjects: Sequence[Subject], shape: tuple[int, int]) -> Iterator[list[Subject]]:
    """Subjects model by model, each base before its checkpoints, as many at a time as `_HELD` bytes have room for."""
    models = list(dict.fromkeys(subject.job.model for subject in subjects))
    portion: list[Subject] = []
    held = 0
    for subject in sorted(subjects, key=lambda one: (models.index(one.job.model), not _is_base(one.work))):
        size = 4 * shape[0] * shape[1] * len(subject.texts)
        if portion and held + size > _HELD:
            yield portion
            portion, held = [], 0
        portion.append(subject)
        held += size
    if portion:
        yield portion


def _estimates(plan: Plan, storage: Storage, works: Sequence[Work], watch: Watch) -> list[dict[str, Any]]:
    """Make what is asked of embeddings that are there, bases first, and delete those of which all was made."""
    if not works:
        return []
    probe = plan.sweep.probes.intrinsic_dimension
    assert probe is not None
    shape = geometry_shape(plan.sweep, "intrinsic_dimension")
    labels = {"label_selector": dict(shape.labels)} if shape.labels else {}
    held = {"num_cpus": shape.cpus, "num_gpus": shape.gpus, **labels}
    failures: list[dict[str, Any]] = []
    for is_base in (True, False):
        sources: dict[str, list[Work]] = {}
        for work in works:
            if _is_base(work) == is_base:
                sources.setdefault(work.source or "", []).append(work)
        waiting = {
            estimate.options(**held, **_memory(storage, source)).remote(plan.sweep.storage, own, probe, shape.gpus): own
            for source, own in sources.items()
        }
        failures += [failure for done in waiting for failure in _outcome(plan, done, waiting[done])]
    failed = {failure["key"] for failure in failures}
    made = [work for work in works if work.stage == "intrinsic_dimension" and work.key not in failed]
    watch(f"estimated {len(made)} intrinsic dimensions")
    kept = {work.source for work in works if work.key in failed}
    for source in {work.source or "" for work in works} - kept if not probe.keep_embeddings else ():
        delete_folder(storage, embeddings_folder(source))
    return failures


def _memory(storage: Storage, source: str) -> dict[str, int]:
    """What a task on these embeddings asks of a node, if it is much: a layer's states, some of them once more, and what
    is made of them. No more than the largest node has, or the task would wait for ever."""
    if not storage.exists(result_path("embed", source)):
        return {}
    (facts,) = read_result(storage, "embed", source).to_pylist()
    needed = _COPIES * 4 * facts["texts"] * facts["width"]
    there = max((node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]), default=0)
    return {"memory": int(min(needed, there))} if needed > _MUCH else {}


def _outcome(plan: Plan, done: Any, works: Sequence[Work]) -> list[dict[str, Any]]:
    """A task's failures; its process may have died, which is one of its works'."""
    try:
        failures: list[dict[str, Any]] = ray.get(done)
    except ray.exceptions.RayError as error:
        storage = open_storage(plan.sweep.storage)
        return [record_failure(storage, work.stage, work.key, error, work.subject.as_row()) for work in works]
    return failures
