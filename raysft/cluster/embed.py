"""Ray Data streams the texts of many subjects through actors that hold a model, into parts of Parquet.

Protocol. A subject is a base or a checkpoint with its training texts. A stream takes the subjects whose hidden states
have one shape, those of one base next to each other, as rows (subject, text); each layer is a fixed-shape tensor column
of what comes out. Whoever writes a batch names it by its content, in the place where the subject's folder gathers, and
the driver publishes the folder when the last of its texts is there. A kill costs the batches in flight: the next stream
asks for those texts alone of which there is no part. A subject that fails says so, and the others go on; a stream that
fails as a whole, as when its process dies, is tried again in halves, until the subject that kills it is alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from raysft.cluster.embedder import Embedder, EmbedJob, part_facts, write_states
from raysft.spec.plan import Work
from raysft.spec.resources import Shape
from raysft.spec.sweep import Sweep
from raysft.store.checkpoints import is_complete
from raysft.store.layout import Storage, embeddings_folder
from raysft.store.parts import forget_gathered, gathered, publish_parts, read_parts
from raysft.store.probe_schemas import EMBED
from raysft.store.results import Cost, commit_result, record_failure

ray.data.DataContext.get_current().enable_progress_bars = False
for _handler in logging.getLogger("ray.data").handlers:
    if isinstance(_handler, logging.StreamHandler):  # the console's; its log file below the session keeps everything
        _handler.setLevel(logging.ERROR)

_WRITING = 0.25  # CPUs that a task holds which writes a part
_RESTARTS = 3  # of an actor
_LEAST_BLOCK = 256  # texts: fewer are not worth another actor's taking on the model


class EmbeddingError(RuntimeError):
    """A subject could not be embedded; the cause is the traceback of where that was."""


@dataclass
class Subject:
    """What is embedded: the work, the weights, which of the data's examples in the order they stream in, and how many
    more were there twice. `parts`, `written`, `dropped` and `seconds` are what there is of it so far."""

    work: Work
    job: EmbedJob
    texts: Sequence[int]
    duplicates: int
    parts: list[str] = field(default_factory=list)
    written: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    seconds: float = 0.0

    @property
    def is_written(self) -> bool:
        return self.written.issuperset(self.texts)

    def add(self, part: str, texts: Sequence[int], dropped: Sequence[int], seconds: float) -> None:
        """Count a part, unless all of it is there: what Ray does again after a death may come twice."""
        if self.written.issuperset(texts):
            return
        self.parts.append(part)
        self.written.update(texts)
        self.dropped.update(dropped)
        self.seconds += seconds

    def anew(self) -> Subject:
        """The same with nothing written, to be looked at again."""
        return replace(self, parts=[], written=set(), dropped=set(), seconds=0.0)


def embed(sweep: Sweep, storage: Storage, subjects: Sequence[Subject], shape: tuple[int, int]) -> list[dict[str, Any]]:
    """Embed the texts of `subjects`, whose hidden states all have `shape` = (layers + 1, width), and commit what they
    are and what that took; returns the failures, which are recorded in the storage."""
    waiting = {subject.job.key: subject for subject in subjects}
    failures: list[dict[str, Any]] = []
    actors, each = _actors(sweep.resources.measuring_shape)
    gpus = each.get("num_gpus", 0.0)
    try:
        blocks = [block for subject in subjects for block in _blocks(storage, subject, 2 * actors // len(subjects))]
        for key in [key for key, subject in waiting.items() if subject.is_written]:
            _publish(storage, waiting[key], shape, gpus)
            del waiting[key]
        for part in _stream(sweep, blocks, subjects, shape) if waiting else ():
            key, error, cause = part.pop("key"), part.pop("error"), part.pop("traceback")
            if key not in waiting:  # another actor said already that it failed
                continue
            if error is not None:
                failures.append(_failed(storage, waiting.pop(key), _reported(error, cause)))
                forget_gathered(storage, embeddings_folder(key))
                continue
            waiting[key].add(**part)
            if waiting[key].is_written:
                _publish(storage, waiting[key], shape, gpus)
                del waiting[key]
        if waiting:
            raise EmbeddingError(f"the stream ended without all texts of {len(waiting)} subjects")
    except (ray.exceptions.RayError, EmbeddingError, OSError, ValueError) as error:
        rest = [subject.anew() for subject in waiting.values()]
        if len(rest) == 1:
            return [*failures, _failed(storage, rest[0], error)]
        for half in (rest[: len(rest) // 2], rest[len(rest) // 2 :]):
            failures += embed(sweep, storage, half, shape) if half else []
    return failures


def _blocks(storage: Storage, subject: Subject, most: int) -> list[pa.Table]:
    """Rows (key, text) of the subject's texts of which there is no part yet. An actor takes on its model for each
    block, so there is one, or `most` where there are more actors than subjects. Each holds short texts and long ones.
    """
    folder, columns = embeddings_folder(subject.job.key), ["text", "dropped", "seconds"]
    if is_complete(storage, folder):
        subject.add("all", **part_facts(read_parts(storage, folder, columns)))
        return []
    for name, part in gathered(storage, folder, columns).items():
        subject.add(name, **part_facts(part))
    left = [text for text in subject.texts if text not in subject.written]
    count = max(1, min(most, len(left) // _LEAST_BLOCK))
    return [
        pa.table({"key": pa.array([subject.job.key] * len(block), pa.string()), "text": pa.array(block, pa.int32())})
        for block in (left[start::count] for start in range(count))
        if block
    ]


def _stream(
    sweep: Sweep, blocks: list[pa.Table], subjects: Sequence[Subject], shape: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """Rows of `PARTS`, as the parts are written."""
    probe = sweep.probes.intrinsic_dimension
    assert probe is not None
    actors, each = _actors(sweep.resources.measuring_shape)
    states = ray.data.from_arrow(blocks).map_batches(
        Embedder,
        fn_constructor_kwargs={"sweep": sweep, "jobs": [subject.job for subject in subjects], "shape": shape},
        batch_size=probe.batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=actors),
        **each,
    )
    parts = states.map_batches(
        write_states,
        fn_kwargs={"storage": sweep.storage},
        batch_size=None,  # a block of what the actors made, of 128 MiB at most, is one part
        batch_format="pyarrow",
        num_cpus=_WRITING,
    )
    for part in parts.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from part.to_pylist()


def _actors(each: Shape) -> tuple[int, dict[str, Any]]:
    """(number of actors, what each holds). Half a CPU at least stays free for the tasks that write, or the stream
    would wait for itself. An actor that dies starts again a few times, so that a lost node costs its batches alone; on
    one machine it does not, since what kills it there kills all. A subject that kills every actor ends the stream."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    again = 0 if len(nodes) == 1 else _RESTARTS
    others: dict[str, Any] = {"ray_remote_args_fn": lambda: {"max_restarts": again, "max_task_retries": again}}
    if each.labels:
        others["label_selector"] = dict(each.labels)
    wanted = dict(each.labels).items()
    fitting = [node["Resources"] for node in nodes if wanted <= node.get("Labels", {}).items()]
    if each.gpus > 0:
        gpus = min(1.0, each.gpus)
        there = sum(resources.get("GPU", 0.0) for resources in fitting)
        return max(1, int(there / gpus)), {"num_gpus": gpus, "num_cpus": 0, **others}
    free = sum(resources.get("CPU", 0.0) for resources in fitting) or 1.0
    cpus = min(each.cpus, max(0.5, free - 1))
    return max(1, int((free - 0.5) / cpus)) if cpus <= free - 1 else 1, {"num_cpus": cpus, **others}


def _publish(storage: Storage, subject: Subject, shape: tuple[int, int], gpus: float) -> None:
    """Publish a subject's folder and commit the result, with the seconds that its batches took."""
    work, folder = subject.work, embeddings_folder(subject.job.key)
    if not is_complete(storage, folder):  # or the storage refused what came after it
        publish_parts(storage, folder, subject.parts, {"duplicates": subject.duplicates})
    row = {
        "folder": folder,
        "texts": len(subject.written - subject.dropped),
        "layers": shape[0],
        "width": shape[1],
        "pooling": subject.job.pooling,
        "dropped": len(subject.dropped),
    }
    cost = Cost(subject.seconds, subject.seconds * gpus)
    commit_result(storage, "embed", work.key, pa.Table.from_pylist([row], schema=EMBED), work.subject.as_row(), cost)


def _failed(storage: Storage, subject: Subject, error: BaseException) -> dict[str, Any]:
    work = subject.work
    return record_failure(storage, work.stage, work.key, error, work.subject.as_row())


def _reported(error: str, cause: str) -> EmbeddingError:
    reported = EmbeddingError(error)
    reported.__cause__ = EmbeddingError(cause)
    return reported
