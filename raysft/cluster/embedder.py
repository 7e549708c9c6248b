"""The actor of Ray Data that holds a model and turns texts into one vector for each layer, and what writes these."""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from raysft.corpus.tokenize import TokenisedRow
from raysft.models.load import Base, pad_id
from raysft.models.methods import Tuned, apply_method
from raysft.probes.pooling import pooled_layers
from raysft.probes.scoring import check_context
from raysft.session import Session, pick_device
from raysft.spec.grid import Trial
from raysft.spec.probes import Pooling
from raysft.spec.sweep import Sweep
from raysft.store.checkpoints import local_folder
from raysft.store.layout import Storage, checkpoint_folder, embeddings_folder, one_line, open_storage
from raysft.store.parts import write_part

LAYER = "layer_"

# Of a batch that went through the actor: whose texts, which of the data's examples, and whether the trial drops them as
# too long; what the batch took; and why it failed, in a row of its own.
ABOUT = pa.schema(
    [
        ("key", pa.string()),
        ("text", pa.int32()),
        ("dropped", pa.bool_()),
        ("seconds", pa.float64()),
        ("error", pa.string()),
        ("traceback", pa.string()),
    ]
)
_KINDS = dict(zip(ABOUT.names, ABOUT.types, strict=True))

# Of a part that was written, or of a subject that failed.
PARTS = pa.schema(
    [
        ("key", pa.string()),
        ("part", pa.string()),
        ("texts", pa.list_(pa.int32())),
        ("dropped", pa.list_(pa.int32())),
        ("seconds", pa.float64()),
        ("error", pa.string()),
        ("traceback", pa.string()),
    ]
)


@dataclass(frozen=True)
class EmbedJob:
    """What one actor needs to know of a subject: which weights (`epoch` of `trial`, or the base), whose texts.

    `texts_of` is a trial: its texts are tokenised as it trains on them.
    """

    key: str
    model: str
    trial: Trial | None
    epoch: int
    texts_of: Trial
    pooling: Pooling


def layer_column(layer: int) -> str:
    """Name of the column that holds hidden states of a layer."""
    return f"{LAYER}{layer:03d}"


class Embedder:
    """Holds one model, and takes on another when a batch of the next subject comes. A batch: `key` and `text`.

    `shape` is (layers + 1, width) of all subjects. A subject that fails says so in a row of its own, and its other
    texts pass by.
    """

    def __init__(self, sweep: Sweep, jobs: Iterable[EmbedJob], shape: tuple[int, int]) -> None:
        torch.set_num_threads(max(1, int(sweep.resources.measuring_shape.cpus)))
        self.session = Session(sweep, pick_device())
        self.jobs = {job.key: job for job in jobs}
        self.layers, width = shape
        self.type = pa.fixed_shape_tensor(pa.float32(), (width,))
        self.schema = pa.schema([*ABOUT, *(pa.field(layer_column(layer), self.type) for layer in range(self.layers))])
        self.failed: set[str] = set()
        self.loaded: str | None = None
        self.tuned: Tuned | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        tables = [self.schema.empty_table()]
        for key in pc.unique(batch["key"]).to_pylist():  # a batch may hold the seam of two subjects
            texts = batch.filter(pc.equal(batch["key"], key))["text"].to_pylist()
            if key not in self.failed:
                tables.append(self._embedded(self.jobs[key], texts))
        return pa.concat_tables(tables)

    def _embedded(self, job: EmbedJob, texts: Sequence[int]) -> pa.Table:
        started = time.perf_counter()
        try:
            base = self._load(job)
            found = self.session.rows(job.texts_of, base)
            places = np.searchsorted(found.kept, texts).clip(max=len(found) - 1)
            there = found.kept[places] == texts
            rows = [found[place] for place in places[there].tolist()]
            states = self._states(job, base, rows, np.array(texts)[there].tolist())
        except Exception as error:  # noqa: BLE001  whatever it is, it is recorded and the other subjects go on
            self._forget(job)
            return self._failure(job, error)
        about: dict[str, list[Any]] = {
            "key": [job.key] * len(texts),
            "text": [*np.array(texts)[there].tolist(), *np.array(texts)[~there].tolist()],
            "dropped": [False] * int(there.sum()) + [True] * int((~there).sum()),
            "seconds": [(time.perf_counter() - started) / len(texts)] * len(texts),
        }
        missing = np.zeros((int((~there).sum()), *states.shape[1:]), np.float32)
        return self._table(about, np.concatenate([states, missing]))

    def _states(self, job: EmbedJob, base: Base, rows: Sequence[TokenisedRow], places: Sequence[int]) -> np.ndarray:
        if not rows:
            return np.zeros((0, self.layers, self.type.shape[0]), np.float32)
        model = base.model if self.tuned is None else self.tuned.model.eval()
        check_context(model, rows, places)
        budget = self.session.sweep.training.token_budget
        return pooled_layers(model, rows, pad_id(base.tokenizer), budget, job.pooling)

    def _failure(self, job: EmbedJob, error: Exception) -> pa.Table:
        said: dict[str, list[Any]] = {
            "key": [job.key],
            "text": [-1],
            "dropped": [False],
            "seconds": [0.0],
            "error": [f"{type(error).__name__}: {one_line(error)}"],
            "traceback": ["".join(traceback.format_exception(error))],
        }
        return self._table(said, np.zeros((1, self.layers, self.type.shape[0]), np.float32))

    def _table(self, about: dict[str, list[Any]], states: np.ndarray) -> pa.Table:
        named = pa.Table.from_pydict(about, schema=pa.schema([field for field in ABOUT if field.name in about]))
        columns = [
            named[name] if name in about else pa.nulls(len(named), ABOUT.field(name).type) for name in ABOUT.names
        ]
        for layer in range(self.layers):
            tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(states[:, layer]))
            columns.append(tensors.cast(self.type))
        return pa.Table.from_arrays(columns, schema=self.schema)

    def _load(self, job: EmbedJob) -> Base:
        """The base with the weights of `job`, which are those of the batch before or are loaded now."""
        if self.loaded == job.key:
            return self.session.base(job.model)
        self.loaded = None
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
        return base

    def _forget(self, job: EmbedJob) -> None:
        """After a failure, which may have left the model in any state."""
        self.failed.add(job.key)
        self.loaded = self.tuned = None
        self.session.bases.drop()


def write_states(block: pa.Table, storage: str) -> pa.Table:
    """Write the texts of a block as one part for each subject; a table of `PARTS` that says so."""
    written = []
    for key in pc.unique(block["key"]).to_pylist():
        own = block.filter(pc.equal(block["key"], key))
        failures = own.filter(pc.is_valid(own["error"])).select(["error", "traceback"]).to_pylist()
        if failures:
            written.append({"key": key, **failures[0]})
            own = own.filter(pc.is_null(own["error"]))
        if own.num_rows:
            part = write_part(_opened(storage), embeddings_folder(key), own.drop(["key", "error", "traceback"]))
            written.append({"key": key, "part": part, **part_facts(own)})
    return pa.Table.from_pylist(written, schema=PARTS)


def part_facts(rows: pa.Table) -> dict[str, Any]:
    """What a part holds, from its columns `text`, `dropped` and `seconds`."""
    dropped = rows["text"].filter(rows["dropped"]).to_pylist()
    return {"texts": rows["text"].to_pylist(), "dropped": dropped, "seconds": pc.sum(rows["seconds"]).as_py()}


@functools.cache
def _opened(storage: str) -> Storage:
    return open_storage(storage)
