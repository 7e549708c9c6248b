"""Geometry of a sweep: what is embedded of the plan, in which streams, and the estimates that are made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from raysft.cluster.embed import embed
from raysft.cluster.estimate import estimate
from raysft.cluster.subjects import subjects_of
from raysft.spec.cost import geometry_shape
from raysft.spec.plan import Plan, Work
from raysft.store.checkpoints import delete_folder
from raysft.store.layout import Storage, embeddings_folder, open_storage
from raysft.store.results import record_failure

Watch = Callable[[str], None]


def run_geometry(plan: Plan, storage: Storage, watch: Watch = lambda _: None) -> list[dict[str, Any]]:
    """Embed and estimate everything the plan misses; returns the failures, which are recorded in the storage."""
    works = plan.missing_geometry()
    if not works:
        return []
    failures = _embed_missing(plan, storage, works, watch)
    failed = {failure["key"] for failure in failures}
    ready = [work for work in works if work.source not in failed]
    failures += _estimate_all(plan, ready, watch)
    failed = {failure["key"] for failure in failures}
    probe = plan.sweep.probes.intrinsic_dimension
    assert probe is not None
    if not probe.keep_embeddings:
        kept = {work.source for work in ready if work.key in failed}
        for source in dict.fromkeys(work.source or "" for work in ready):
            if source not in kept:
                delete_folder(storage, embeddings_folder(source))
    return failures


def _embed_missing(plan: Plan, storage: Storage, works: list[Work], watch: Watch) -> list[dict[str, Any]]:
    failures: list[dict[str, Any]] = []
    for shape, subjects in subjects_of(plan, storage, works, failures):
        watch(f"embedding {sum(len(subject.texts) for subject in subjects)} texts of {len(subjects)} subjects")
        failures += embed(plan.sweep, storage, subjects, shape)
    return failures


def _estimate_all(plan: Plan, works: Sequence[Work], watch: Watch) -> list[dict[str, Any]]:
    """Estimates of all sources: bases first, for checkpoints are compared with their neighbours there."""
    probe = plan.sweep.probes.intrinsic_dimension
    assert probe is not None
    shape = geometry_shape(plan.sweep, "intrinsic_dimension")
    labels = {"label_selector": dict(shape.labels)} if shape.labels else {}
    task = estimate.options(num_cpus=shape.cpus, num_gpus=shape.gpus, **labels)
    failures: list[dict[str, Any]] = []
    for is_base in (True, False):
        sources: dict[str, list[Work]] = {}
        for work in works:
            if (work.subject.trial is None) == is_base:
                sources.setdefault(work.source or "", []).append(work)
        waiting = {task.remote(plan.sweep.storage, own, probe, shape.gpus): own for own in sources.values()}
        failures += [failure for done in waiting for failure in _outcome(plan, done, waiting[done])]
    watch(f"estimated {sum(work.stage == 'intrinsic_dimension' for work in works)} intrinsic dimensions")
    return failures


def _outcome(plan: Plan, done: Any, works: Sequence[Work]) -> list[dict[str, Any]]:
    """A task's failures; its process may have died, which is one of its works'."""
    try:
        failures: list[dict[str, Any]] = ray.get(done)
    except ray.exceptions.RayError as error:
        storage = open_storage(plan.sweep.storage)
        return [record_failure(storage, work.stage, work.key, error, work.subject.as_row()) for work in works]
    return failures
