"""Geometry of a sweep: Ray Data streams texts through actors that hold a model, and tasks estimate dimensions.

Protocol. One block of texts for each subject (a base or a checkpoint, with its training texts), blocks of one base next
to each other; one stream for each shape of hidden states, so that they are real fixed-shape tensor columns. What a
stream wrote is moved to `embeddings/<key>/` subject by subject, with a manifest, and from there on survives a kill.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
import torch
from ray.data import ActorPoolStrategy

from raysft.cluster.connect import trials_at_once
from raysft.corpus.example import Example
from raysft.corpus.sources import load_examples
from raysft.corpus.tokenize import TokenisedRow, tokenise_examples
from raysft.models.load import model_shape, pad_id
from raysft.models.methods import Tuned, apply_method
from raysft.probes.embeddings import POOLING, pooled_states
from raysft.probes.intrinsic_dimension import intrinsic_dimension
from raysft.session import Session, pick_device
from raysft.spec.grid import Trial
from raysft.spec.plan import Plan, Work, text_count
from raysft.spec.sweep import Sweep
from raysft.store.checkpoints import delete_folder, is_complete, local_folder, write_folder
from raysft.store.layout import Storage, checkpoint_folder, embeddings_folder, open_storage
from raysft.store.results import Cost, commit_result, record_failure
from raysft.store.schema import EMBED

ray.data.DataContext.get_current().enable_progress_bars = False


@dataclass(frozen=True)
class EmbedJob:
    """What one actor needs to know of a subject: which weights, under which template."""

    key: str
    model: str
    trial: Trial | None
    epoch: int
    template: str
    max_length: int


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
    streams: dict[tuple[int, int], list[tuple[Work, EmbedJob, pa.Table]]] = {}
    trials = {trial.key: trial for trial in plan.trials}
    for work in works:
        if is_complete(storage, embeddings_folder(work.source or "")):
            continue
        try:
            job = _job(plan, trials, work)
            if job.trial is not None and not is_complete(storage, checkpoint_folder(job.trial.key, job.epoch)):
                raise FileNotFoundError(f"checkpoint {checkpoint_folder(job.trial.key, job.epoch)} is not there")
            shape = model_shape(storage, plan.sweep.model(job.model))
            streams.setdefault(shape, []).append((work, job, _texts(plan.sweep, work, job.key)))
        except (ValueError, OSError) as error:
            failures.append(record_failure(storage, "embed", work.source or "", error, work.subject.as_row()))
    for shape, subjects in streams.items():
        watch(f"embedding {sum(len(texts) for _, _, texts in subjects)} texts of {len(subjects)} subjects")
        failures += _stream(plan.sweep, storage, subjects, shape)
    return failures


def _job(plan: Plan, trials: dict[str, Trial], work: Work) -> EmbedJob:
    trial = trials[work.subject.trial] if work.subject.trial is not None else None
    training = plan.sweep.training
    return EmbedJob(
        key=work.source or "",
        model=work.subject.model,
        trial=trial,
        epoch=work.subject.epoch or 0,
        template=trial.optimisation.template if trial is not None else training.template,
        max_length=trial.optimisation.max_length if trial is not None else training.max_length,
    )


def _texts(sweep: Sweep, work: Work, key: str) -> pa.Table:
    """The first training examples of a subject as one block; an example that stands there twice is taken once."""
    count = text_count(sweep, work.subject.size)
    examples = load_examples(sweep, sweep.dataset(work.about or ""), work.subject.size)
    distinct = list(dict.fromkeys(examples))[:count]
    rows = [{"key": key, **asdict(example)} for example in distinct]
    return pa.Table.from_pylist(rows)


def _stream(
    sweep: Sweep, storage: Storage, subjects: list[tuple[Work, EmbedJob, pa.Table]], shape: tuple[int, int]
) -> list[dict[str, Any]]:
    """Embed the texts of `subjects`, whose hidden states all have `shape` = (layers + 1, width)."""
    probe = sweep.probes.intrinsic_dimension
    assert probe is not None
    started = time.perf_counter()
    staging = f".embeddings-{uuid.uuid4().hex}"
    gpus = min(1.0, sweep.resources.gpus_per_worker)
    # One CPU stays free for the tasks that write, or the stream waits for itself.
    actors = trials_at_once(sweep.resources.model_copy(update={"workers": 1}))
    actors = actors if gpus else max(1, actors - 1)
    try:
        ray.data.from_arrow([texts for _, _, texts in subjects]).map_batches(
            Embedder,
            fn_constructor_kwargs={"sweep": sweep, "jobs": [job for _, job, _ in subjects], "shape": shape},
            batch_size=probe.batch_size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=actors),
            num_cpus=sweep.resources.cpus_per_worker if not gpus else 1,
            num_gpus=gpus or None,
        ).write_parquet(storage.path(staging), filesystem=storage.filesystem, partition_cols=["key"])
        seconds = (time.perf_counter() - started) / len(subjects)
        for work, job, texts in subjects:
            _publish(storage, staging, work, job, len(texts), shape, seconds)
    except (ray.exceptions.RayError, OSError, ValueError) as error:
        return [
            record_failure(storage, "embed", job.key, error, work.subject.as_row())
            for work, job, _ in subjects
            if not is_complete(storage, embeddings_folder(job.key))
        ]
    finally:
        if storage.exists(staging):
            storage.filesystem.delete_dir(storage.path(staging))
    return []


def _publish(
    storage: Storage, staging: str, work: Work, job: EmbedJob, texts: int, shape: tuple[int, int], seconds: float
) -> None:
    """Move what the stream wrote for one subject to its place, with a manifest, and commit the result."""
    source = storage.path(staging, f"key={job.key}")
    local = pafs.LocalFileSystem()

    def save(folder: Path) -> None:
        pafs.copy_files(source, str(folder), source_filesystem=storage.filesystem, destination_filesystem=local)

    write_folder(storage, embeddings_folder(job.key), save, {"subject": work.subject.as_row()})
    row = {"folder": embeddings_folder(job.key), "texts": texts, "layers": shape[0], "width": shape[1]}
    table = pa.Table.from_pylist([{**row, "pooling": POOLING}], schema=EMBED)
    commit_result(storage, "embed", job.key, table, work.subject.as_row(), Cost(seconds))


class Embedder:
    """Ray Data actor: holds one model, and takes on another when a batch of the next subject comes."""

    def __init__(self, sweep: Sweep, jobs: Iterable[EmbedJob], shape: tuple[int, int]) -> None:
        torch.set_num_threads(max(1, int(sweep.resources.cpus_per_worker)))
        self.session = Session(sweep, pick_device())
        self.jobs = {job.key: job for job in jobs}
        self.type = pa.fixed_shape_tensor(pa.float32(), shape)
        self.loaded: str | None = None
        self.tuned: Tuned | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        parts = []
        for key in dict.fromkeys(batch.column("key").to_pylist()):  # a batch may hold the seam of two subjects
            rows = batch.filter(pc.equal(batch.column("key"), key))
            states = self._states(self.jobs[key], rows)
            tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(states)).cast(self.type)
            parts.append(pa.table({"key": rows.column("key"), "states": tensors}))
        return pa.concat_tables(parts)

    def _states(self, job: EmbedJob, texts: pa.Table) -> np.ndarray:
        base = self.session.base(job.model)
        self._load(job)
        examples = [Example(row["instruction"], row["response"]) for row in texts.to_pylist()]
        rows: list[TokenisedRow] = tokenise_examples(examples, base.tokenizer, job.template, job.max_length)
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
        table = intrinsic_dimension(column.to_numpy_ndarray(), neighbours, work.about or "")
    except (ValueError, OSError) as error:
        return record_failure(storage, work.stage, work.key, error, work.subject.as_row())
    commit_result(storage, work.stage, work.key, table, work.subject.as_row(), Cost(time.perf_counter() - started))
    return None
