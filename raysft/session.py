"""What one process keeps between units: the base model in memory, benchmark items, mapped rows, texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from raysft.corpus.example import Example
from raysft.corpus.kept_rows import kept_rows, rows_identity, tokenizer_digest
from raysft.corpus.sources import load_examples
from raysft.corpus.tokenize import TokenisedRows, tokenise_examples
from raysft.evaluation.harness import Benchmarks, load_benchmarks
from raysft.evaluation.judge.client import Judge
from raysft.evaluation.judge.judged import open_judge
from raysft.models.load import Base, BaseCache, pad_id
from raysft.probes.log_likelihood import likelihood_texts
from raysft.spec.grid import Trial
from raysft.spec.sweep import SpecError, Sweep
from raysft.store.layout import Storage, open_storage
from raysft.store.results import record_failure


@dataclass
class Session:
    """State of a process that works on one sweep. Everything is loaded when first asked for."""

    sweep: Sweep
    device: torch.device
    bases: BaseCache = field(default_factory=BaseCache)
    _examples: dict[tuple[str, int | None], list[Example]] = field(default_factory=dict)
    _rows: dict[tuple[Any, ...], TokenisedRows] = field(default_factory=dict)
    _tokenizers: dict[str, str | None] = field(default_factory=dict)

    @cached_property
    def storage(self) -> Storage:
        return open_storage(self.sweep.storage)

    @cached_property
    def benchmarks(self) -> Benchmarks:
        return load_benchmarks(self.sweep)

    @cached_property
    def judge(self) -> Judge:
        return open_judge(self.sweep, self.device)

    @cached_property
    def likelihood_texts(self) -> list[str]:
        assert self.sweep.probes.log_likelihood is not None
        return likelihood_texts(self.sweep.probes.log_likelihood)

    def base(self, model: str, dtype: str = "float32") -> Base:
        """The base model for a training `dtype`: in fp32, unless that is pure_bfloat16."""
        return self.bases.get(self.storage, self.sweep.model(model), held_dtype(dtype), self.device)

    def examples(self, dataset: str, size: int | None) -> list[Example]:
        """Training examples of a dataset at a size."""
        if (dataset, size) not in self._examples:
            self._examples[dataset, size] = load_examples(self.sweep, self.sweep.dataset(dataset), size)
        return self._examples[dataset, size]

    def rows(self, trial: Trial, base: Base) -> TokenisedRows:
        """A trial's tokenised rows, mapped from the storage; whoever needs them first tokenises them for all.

        SpecError, with the names of dataset and model, for a row or a template that is refused, or if no row is left.
        """
        settings = trial.optimisation
        key = (base.key, trial.dataset, trial.size, settings.prompt, settings.max_length, settings.overlong_rows)
        if key not in self._rows:
            self._rows = {kept: rows for kept, rows in self._rows.items() if kept[0] == base.key}
            identity = rows_identity(trial, base.tokenizer, self._tokenizer_digest(base))
            self._rows[key] = kept_rows(self.storage, identity, lambda: self._tokenised(trial, base))
        return self._rows[key]

    def _tokenizer_digest(self, base: Base) -> str | None:
        if base.key not in self._tokenizers:
            self._tokenizers = {base.key: tokenizer_digest(base.tokenizer)}
        return self._tokenizers[base.key]

    def _tokenised(self, trial: Trial, base: Base) -> TokenisedRows:
        settings, examples = trial.optimisation, self.examples(trial.dataset, trial.size)
        try:
            rows = tokenise_examples(
                examples, base.tokenizer, settings.prompt, settings.max_length, settings.overlong_rows
            )
        except ValueError as error:
            raise SpecError(f"datasets.{trial.dataset}: {error} (models.{trial.model})") from error
        if not rows:
            raise SpecError(
                f"datasets.{trial.dataset}: max_length {settings.max_length} leaves none of {len(examples)} rows a "
                f"supervised token; raise training.max_length (models.{trial.model})"
            )
        return rows

    def pad_id(self, base: Base) -> int:
        return pad_id(base.tokenizer)

    def fail(self, stage: str, key: str, error: BaseException, subject: Mapping[str, Any]) -> dict[str, Any]:
        """Record a failed attempt in the storage."""
        return record_failure(self.storage, stage, key, error, subject)


def held_dtype(dtype: str) -> str:
    """The dtype in which weights are held for a training `dtype`."""
    return "bfloat16" if dtype == "pure_bfloat16" else "float32"


def pick_device() -> torch.device:
    """The GPU that this process was given, or the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
