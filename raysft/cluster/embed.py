"""Geometry of a sweep: Ray Data streams texts through actors that hold a model, and tasks estimate dimensions.

Protocol. One block of texts for each subject (a base or a checkpoint, with its training texts), blocks of one base next
to each other; a stream takes `_SUBJECTS` of them, all with one shape of hidden states, so that these are real
fixed-shape tensor columns. What a stream wrote is moved to `embeddings/<key>/` subject by subject, with a manifest, and
from there on survives a kill. A stream that fails is tried again in halves, until the subject that fails is alone.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
import torch
from ray.data import ActorPoolStrategy

from raysft.corpus.example import Example, examples_from_table, examples_to_table
from raysft.corpus.sources import load_examples
from raysft.corpus.tokenize import TokenisedRows, tokenise_examples
from raysft.models.load import model_shape, pad_id
from raysft.models.methods import Tuned, apply_method
from raysft.probes.embeddings import POOLING, pooled_states
from raysft.probes.intrinsic_dimension import intrinsic_dimension
from raysft.session import Session, pick_device
from raysft.spec.grid import Trial
from raysft.spec.plan import Plan, Work, text_count
from raysft.spec.resources import Shape
from raysft.spec.sweep import Sweep
from raysft.spec.templates import Template
from raysft.store.checkpoints import (
    delete_folder,
    is_complete,
    local_folder,
    read_manifest,
    sound_folder,
    write_folder,
)
from raysft.store.layout import Storage, checkpoint_folder, embeddings_folder, open_storage
from raysft.store.probe_schemas import EMBED
from raysft.store.results import Cost, commit_result, record_failure

ray.data.DataContext.get_current().enable_progress_bars = False
for _handler in logging.getLogger("ray.data").handlers:
    if isinstance(_handler, logging.StreamHandler):  # the console's; its log file below the session keeps everything
        _handler.setLevel(logging.ERROR)

_SUBJECTS = 64  # of one stream: what a kill can cost, against starting actors anew


@dataclass(frozen=True)
class EmbedJob:
    """What one actor needs to know of a subject: which weights, under which template."""

    key: str
    model: str
    trial: Trial | None
    epoch: int
    template: Template
    max_length: int
    overlong_rows: Literal["refuse", "drop"]


@dataclass(frozen=True)
class Subject:
    """What is embedded: the work, the weights, the texts as one block, and how many texts were there twice."""

    work: Work
    job: EmbedJob
    texts: pa.Table
    duplicates: int


def run_geometry(plan: Plan, storage: Storage, watch: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """Embed and estimate everything the plan misses; returns the failures, which are recorded in the storage."""
    works = plan.missing_geometry()
    if not works:
        return []
    failures = _embed_missing(plan, storage, works, watch)
    failed = {failure["key"] for failure in failures}
    ready = [work for work in works if work.source not in failed]
    probe = plan.sweep.probes.intrinsic_dimension
    assert probe is not None
    tasks = [_estimate.remote(plan.sweep.storage, work, probe.neighbours) for work in ready]
    failures += [failure for failure in ray.get(tasks) if failure is not None]
    failed = {failure["key"] for failure in failures}
    watch(f"estimated {len(ready)} intrinsic dimensions")
    if not probe.keep_embeddings:
        for work in ready:
            if work.key not in failed:
                delete_folder(storage, embeddings_folder(work.source or ""))
    return failures


def _embed_missing(
    plan: Plan, storage: Storage, works: list[Work], watch: Callable[[str], None]
) -> list[dict[str, Any]]:
    failures: list[dict[str, Any]] = []
    streams: dict[tuple[int, int], list[Subject]] = {}
    trials = {trial.key: trial for trial in plan.trials}
    examples: dict[tuple[str, int | None], list[Example]] = {}
    for work in works:
        if sound_folder(storage, embeddings_folder(work.source or "")) is not None:
            continue
        try:
            job = _job(plan, trials, work)
            if job.trial is not None and not is_complete(storage, checkpoint_folder(job.trial.key, job.epoch)):
                raise FileNotFoundError(f"checkpoint {checkpoint_folder(job.trial.key, job.epoch)} is not there")
            shape = model_shape(storage, plan.sweep.model(job.model))
            data = (work.about or "", work.subject.size)
            if data not in examples:
                examples[data] = load_examples(plan.sweep, plan.sweep.dataset(data[0]), data[1])
            streams.setdefault(shape, []).append(_subject(plan.sweep, work, job, examples[data]))
        except (ValueError, OSError) as error:
            failures.append(record_failure(storage, "embed", work.source or "", error, work.subject.as_row()))
    for shape, subjects in streams.items():
        for start in range(0, len(subjects), _SUBJECTS):
            part = subjects[start : start + _SUBJECTS]
            watch(f"embedding {sum(len(subject.texts) for subject in part)} texts of {len(part)} subjects")
            failures += _stream(plan.sweep, storage, part, shape)
    return failures


def _job(plan: Plan, trials: dict[str, Trial], work: Work) -> EmbedJob:
    trial = trials[work.subject.trial] if work.subject.trial is not None else None
    settings = trials[work.as_in or ""].optimisation
    return EmbedJob(
        key=work.source or "",
        model=work.subject.model,
        trial=trial,
        epoch=work.subject.epoch or 0,
        template=settings.prompt,
        max_length=settings.max_length,
        overlong_rows=settings.overlong_rows,
    )


def _subject(sweep: Sweep, work: Work, job: EmbedJob, examples: list[Example]) -> Subject:
    """The first training examples of a subject as one block; an example that stands there twice is taken once."""
    chosen = examples[: text_count(sweep, work.about or "", work.subject.size)]
    distinct = list(dict.fromkeys(chosen))
    texts = examples_to_table(distinct).add_column(0, "key", pa.array([job.key] * len(distinct), pa.string()))
    return Subject(work, job, texts, len(chosen) - len(distinct))


def _stream(sweep: Sweep, storage: Storage, subjects: list[Subject], shape: tuple[int, int]) -> list[dict[str, Any]]:
    """Embed the texts of `subjects`, whose hidden states all have `shape` = (layers + 1, width); returns failures."""
    started = time.perf_counter()
    staging = f".embeddings-{uuid.uuid4().hex}"
    try:
        _write_states(sweep, storage, subjects, shape, staging)
        seconds = (time.perf_counter() - started) / len(subjects)
        for subject in subjects:
            _publish(storage, staging, subject, shape, seconds)
    except (ray.exceptions.RayError, OSError, ValueError) as error:
        waiting = [subject for subject in subjects if not is_complete(storage, embeddings_folder(subject.job.key))]
        if len(waiting) == 1:
            work = waiting[0].work
            return [record_failure(storage, "embed", work.source or "", error, work.subject.as_row())]
        middle = len(waiting) // 2
        halves = (waiting[:middle], waiting[middle:])
        return [failure for half in halves if half for failure in _stream(sweep, storage, half, shape)]
    finally:
        if storage.exists(staging):
            storage.filesystem.delete_dir(storage.path(staging))
    return []


def _write_states(
    sweep: Sweep, storage: Storage, subjects: list[Subject], shape: tuple[int, int], staging: str
) -> None:
    probe = sweep.probes.intrinsic_dimension
    assert probe is not None
    jobs = [subject.job for subject in subjects]
    actors, resources = _actors(sweep.resources.measuring_shape)
    ray.data.from_arrow([subject.texts for subject in subjects]).map_batches(
        Embedder,
        fn_constructor_kwargs={"sweep": sweep, "jobs": jobs, "shape": shape},
        batch_size=probe.batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=actors),
        **resources,
    ).write_parquet(storage.path(staging), filesystem=storage.filesystem, partition_cols=["key"])


def _actors(each: Shape) -> tuple[int, dict[str, Any]]:
    """(number of actors, what each holds). Half a CPU at least stays free for the tasks that write, or the stream
    would wait for itself. On one machine no actor is restarted, since what kills one there kills all."""
    have = ray.cluster_resources()
    others: dict[str, Any] = {} if len(ray.nodes()) > 1 else {"max_restarts": 0, "max_task_retries": 0}
    if each.labels:
        others["label_selector"] = dict(each.labels)
    free = have.get("CPU", 1.0)
    if each.gpus > 0:
        gpus = min(1.0, each.gpus)
        return max(1, int(have.get("GPU", 0.0) / gpus)), {"num_gpus": gpus, "num_cpus": 0, **others}
    cpus = min(each.cpus, max(0.5, free - 1))
    return max(1, int((free - 0.5) / cpus)) if cpus <= free - 1 else 1, {"num_cpus": cpus, **others}


def _publish(storage: Storage, staging: str, subject: Subject, shape: tuple[int, int], seconds: float) -> None:
    """Move what the stream wrote for one subject to its place, with a manifest, and commit the result."""
    work, job = subject.work, subject.job
    source = storage.path(staging, f"key={job.key}")
    local = pafs.LocalFileSystem()
    texts = pads.dataset(source, filesystem=storage.filesystem).count_rows()  # without the rows dropped as too long

    def save(folder: Path) -> None:
        pafs.copy_files(source, str(folder), source_filesystem=storage.filesystem, destination_filesystem=local)

    write_folder(storage, embeddings_folder(job.key), save, {"duplicates": subject.duplicates})
    row = {"folder": embeddings_folder(job.key), "texts": texts, "layers": shape[0], "width": shape[1]}
    table = pa.Table.from_pylist([{**row, "pooling": POOLING}], schema=EMBED)
    commit_result(storage, "embed", job.key, table, work.subject.as_row(), Cost(seconds))


class Embedder:
    """Ray Data actor: holds one model, and takes on another when a batch of the next subject comes."""

    def __init__(self, sweep: Sweep, jobs: Iterable[EmbedJob], shape: tuple[int, int]) -> None:
        torch.set_num_threads(max(1, int(sweep.resources.measuring_shape.cpus)))
        self.session = Session(sweep, pick_device())
        self.jobs = {job.key: job for job in jobs}
        self.type = pa.fixed_shape_tensor(pa.float32(), shape)
        self.loaded: str | None = None
        self.tuned: Tuned | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        parts = []
        for key in dict.fromkeys(batch.column("key").to_pylist()):  # a batch may hold the seam of two subjects
            rows = self._rows(self.jobs[key], batch.filter(pc.equal(batch.column("key"), key)))
            keys = pa.array([key] * len(rows), pa.string())
            parts.append(pa.table({"key": keys, "states": self._tensors(self.jobs[key], rows)}))
        return pa.concat_tables(parts)

    def _rows(self, job: EmbedJob, texts: pa.Table) -> TokenisedRows:
        """The rows of these texts that a trial trains on: without those that it refuses, or drops, as too long."""
        examples = examples_from_table(texts)
        tokenizer = self.session.base(job.model).tokenizer
        return tokenise_examples(examples, tokenizer, job.template, job.max_length, job.overlong_rows)

    def _tensors(self, job: EmbedJob, rows: TokenisedRows) -> pa.Array:
        if not rows:
            return pa.ExtensionArray.from_storage(self.type, pa.array([], self.type.storage_type))
        states = np.ascontiguousarray(self._states(job, rows))
        return pa.FixedShapeTensorArray.from_numpy_ndarray(states).cast(self.type)

    def _states(self, job: EmbedJob, rows: TokenisedRows) -> np.ndarray:
        base = self.session.base(job.model)
        self._load(job)
        if self.tuned is None:
            return pooled_states(base.model, rows, pad_id(base.tokenizer))
        self.tuned.model.eval()
        return pooled_states(self.tuned.model, rows, pad_id(base.tokenizer))

    def _load(self, job: EmbedJob) -> None:
        if self.loaded == job.key:
            return
        if self.tuned is not None:
            self.tuned.detach()
            self.tuned = None
        base = self.session.base(job.model)
        if job.trial is None:
            base.restore()
        else:
            folder = checkpoint_folder(job.trial.key, job.epoch)
            self.tuned = apply_method(base, self.session.sweep.method(job.trial.method), job.trial.seed)
            self.tuned.load(local_folder(self.session.storage, folder))
        self.loaded = job.key


@ray.remote(num_cpus=1)  # type: ignore[untyped-decorator]  # Ray ships no types
def _estimate(uri: str, work: Work, neighbours: int) -> dict[str, Any] | None:
    """Estimate and commit one subject's dimensions; the failure's record if it cannot be done."""
    storage = open_storage(uri)
    started = time.perf_counter()
    try:
        folder = local_folder(storage, embeddings_folder(work.source or ""))
        files = sorted(str(path) for path in folder.glob("*.parquet"))
        column = pq.ParquetDataset(files).read(columns=["states"]).column("states").combine_chunks()
        repeated = read_manifest(storage, embeddings_folder(work.source or ""))["duplicates"]
        table = intrinsic_dimension(column.to_numpy_ndarray(), neighbours, work.about or "", repeated)
    except (ValueError, OSError) as error:
        return record_failure(storage, work.stage, work.key, error, work.subject.as_row())
    commit_result(storage, work.stage, work.key, table, work.subject.as_row(), Cost(time.perf_counter() - started))
    return None
