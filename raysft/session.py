"""What one process keeps between units: the base model in memory, benchmark items, tokenised rows, texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from raysft.corpus.example import Example
from raysft.corpus.sources import load_examples
from raysft.corpus.tokenize import TokenisedRow, tokenise_examples
from raysft.evaluation.harness import Benchmarks, load_benchmarks
from raysft.models.load import Base, BaseCache, pad_id
from raysft.probes.log_likelihood import likelihood_texts
from raysft.spec.grid import Trial
from raysft.spec.sweep import Sweep
from raysft.store.layout import Storage, open_storage
from raysft.store.results import record_failure


@dataclass
class Session:
    """State of a process that works on one sweep. Everything is loaded when first asked for."""

    sweep: Sweep
    device: torch.device
    bases: BaseCache = field(default_factory=BaseCache)
    _examples: dict[tuple[str, int | None], list[Example]] = field(default_factory=dict)
    _rows: dict[tuple[Any, ...], list[TokenisedRow]] = field(default_factory=dict)

    @cached_property
    def storage(self) -> Storage:
        return open_storage(self.sweep.storage)

    @cached_property
    def benchmarks(self) -> Benchmarks:
        return load_benchmarks(self.sweep)

    @cached_property
    def likelihood_texts(self) -> list[str]:
        assert self.sweep.probes.log_likelihood is not None
        return likelihood_texts(self.sweep.probes.log_likelihood)

    def base(self, model: str) -> Base:
        """The base model, in fp32: bfloat16 training computes in bfloat16 and keeps fp32 weights."""
        return self.bases.get(self.storage, self.sweep.model(model), "float32", self.device)

    def examples(self, dataset: str, size: int | None) -> list[Example]:
        """Training examples of a dataset at a size."""
        if (dataset, size) not in self._examples:
            self._examples[dataset, size] = load_examples(self.sweep, self.sweep.dataset(dataset), size)
        return self._examples[dataset, size]

    def rows(self, trial: Trial, base: Base) -> list[TokenisedRow]:
        """A trial's tokenised rows, kept for the other trials of the same base and data."""
        settings = trial.optimisation
        key = (base.key, trial.dataset, trial.size, settings.template, settings.max_length)
        if key not in self._rows:
            self._rows = {kept: rows for kept, rows in self._rows.items() if kept[0] == base.key}
            examples = self.examples(trial.dataset, trial.size)
            try:
                rows = tokenise_examples(examples, base.tokenizer, settings.template, settings.max_length)
            except ValueError as error:
                raise ValueError(f"datasets.{trial.dataset}: {error}") from error
            self._rows[key] = rows
        return self._rows[key]

    def pad_id(self, base: Base) -> int:
        return pad_id(base.tokenizer)

    def fail(self, stage: str, key: str, error: BaseException, subject: Mapping[str, Any]) -> dict[str, Any]:
        """Record a failed attempt in the storage."""
        return record_failure(self.storage, stage, key, error, subject)


def pick_device() -> torch.device:
    """The GPU that this process was given, or the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
