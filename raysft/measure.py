"""Measuring a model that is in memory, from works to committed results; a work that fails leaves a record."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from raysft.evaluation.harness import answering, benchmark_items, evaluate, generator
from raysft.evaluation.judge.judged import evaluate_judged
from raysft.measure_data import DataMeasures
from raysft.models.load import Base, model_source
from raysft.models.methods import Tuned
from raysft.probes.data.contamination import BenchmarkGrams, Item, contamination_tables, example_text
from raysft.probes.log_likelihood import log_likelihoods
from raysft.probes.weights.change import weight_change
from raysft.probes.weights.folders import weight_change_of_folders
from raysft.session import Session, held_dtype
from raysft.spec.grid import Trial
from raysft.spec.judge import JUDGED_TASKS
from raysft.spec.plan import Work
from raysft.store.results import Cost, commit_result
from raysft.training.loop import EpochStats


@dataclass
class Report:
    """What a unit did: seconds by stage, results committed, failures recorded, its training's tokens and seconds."""

    seconds: dict[str, float] = field(default_factory=dict)
    committed: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    tokens: int = 0
    supervised_tokens: int = 0
    trained_s: float = 0.0

    def add_seconds(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def add_training(self, epoch: EpochStats, earlier: EpochStats | None, seconds: float) -> None:
        """Count an epoch that was trained in so many seconds, less what another process did of it before."""
        self.tokens += epoch.tokens - (earlier.tokens if earlier else 0)
        self.supervised_tokens += epoch.supervised_tokens - (earlier.supervised_tokens if earlier else 0)
        self.trained_s += seconds


class Bench:
    """Commits the results of one unit's works and keeps its report. `gpus` are those that the unit holds."""

    def __init__(self, session: Session, report: Report, gpus: float) -> None:
        self.session = session
        self.report = report
        self.gpus = gpus if session.device.type == "cuda" else 0.0

    def commit(self, work: Work, table: pa.Table, seconds: float) -> None:
        """Commit a result; its GPU seconds are wall seconds times the GPUs that the unit holds."""
        cost = Cost(seconds, seconds * self.gpus)
        done = commit_result(self.session.storage, work.stage, work.key, table, work.subject.as_row(), cost)
        self.report.committed += done
        self.report.add_seconds(work.stage, seconds)

    def fail(self, work: Work, error: Exception) -> None:
        """Record a failed work; the others of the unit go on."""
        self.report.failures.append(self.session.fail(work.stage, work.key, error, work.subject.as_row()))

    def attempt(
        self, work: Work, measure: Callable[[], pa.Table], settled: Callable[[float], float] = lambda elapsed: elapsed
    ) -> None:
        """Measure and commit one work; `settled` says what of the seconds that went by it is charged with."""
        started = time.perf_counter()
        try:
            table = measure()
        except Exception as error:  # noqa: BLE001  whatever it is, it is recorded and the sweep goes on
            self.fail(work, error)
            return
        self.commit(work, table, settled(time.perf_counter() - started))

    def evaluate(self, works: Sequence[Work], model: Any, tokenizer: Any) -> None:
        """Score a model on the tasks of `works` in one pass; if that fails, task by task, to find the one that does."""
        if not works:
            return
        started = time.perf_counter()
        names = [work.about or "" for work in works]
        tables = None
        try:
            tables = evaluate(model, tokenizer, self.session.benchmarks, names)
        except Exception as error:  # noqa: BLE001  recorded once it is known whose it is
            if len(works) == 1:
                self.fail(works[0], error)
        if tables is None:  # and the error has let go of the memory that it held
            for work in works if len(works) > 1 else ():
                self.evaluate([work], model, tokenizer)
            return
        seconds = (time.perf_counter() - started) / len(works)
        for work, name in zip(works, names, strict=True):
            self.commit(work, tables[name], seconds)


def measure_checkpoint(bench: Bench, works: Sequence[Work], tuned: Tuned) -> None:
    """Weight change, benchmarks and likelihood vector of a fine-tuned model in memory."""
    for work in _of_stage(works, "weight_change"):
        bench.attempt(work, partial(weight_change, tuned))
    with tuned.plain() as model:
        _measure_plain(bench, works, model, tuned.base)


def measure_folder(bench: Bench, works: Sequence[Work], trial: Trial, checkpoint: Path) -> list[Work]:
    """Weight change of a checkpoint from its files, if its base is in files too; the works that are left."""
    session = bench.session
    source, _ = model_source(session.storage, session.sweep.model(trial.model))
    if not Path(source).is_dir():
        return list(works)
    held = getattr(torch, held_dtype(trial.optimisation.dtype))
    for work in _of_stage(works, "weight_change"):
        bench.attempt(work, partial(weight_change_of_folders, Path(source), checkpoint, session.device, held))
    return [work for work in works if work.stage != "weight_change"]


def measure_base(bench: Bench, works: Sequence[Work], base: Base) -> None:
    """Benchmarks, likelihood vector and the properties of every dataset under a base model; overlaps of data alone."""
    _measure_plain(bench, works, base.restore(), base)
    overlaps = _Overlaps(bench.session, _of_stage(works, "contamination"))
    for work in overlaps.works:
        bench.attempt(work, partial(overlaps.of, work))
    data = DataMeasures(bench.session, base, works)
    for work in data.works:
        bench.attempt(work, partial(data.of, work), data.settled)


class _Overlaps:
    """Overlaps of training sets with benchmarks: each set passes by once for all benchmarks that are asked for."""

    def __init__(self, session: Session, works: Sequence[Work]) -> None:
        self._session = session
        self.works = works
        self._grams: dict[str, BenchmarkGrams] = {}
        self._known: dict[tuple[str | None, int | None], dict[str, pa.Table]] = {}

    def of(self, work: Work) -> pa.Table:
        """What of the benchmark stands in the training set."""
        dataset, size = work.subject.dataset or "", work.subject.size
        if (dataset, size) not in self._known:
            asked = [other for other in self.works if (other.subject.dataset, other.subject.size) == (dataset, size)]
            grams = {name: self._grams_of(name) for name in (other.about or "" for other in asked)}
            texts = map(example_text, self._session.examples(dataset, size))
            self._known[dataset, size] = contamination_tables(grams, texts)
        return self._known[dataset, size][work.about or ""]

    def _grams_of(self, benchmark: str) -> BenchmarkGrams:
        probe = self._session.sweep.probes.contamination
        assert probe is not None
        if benchmark not in self._grams:
            benchmarks = self._session.benchmarks
            items = [Item(*item) for item in benchmark_items(benchmarks, benchmark, benchmarks.limit)]
            self._grams[benchmark] = BenchmarkGrams(items, probe.ngram)
        return self._grams[benchmark]


def _measure_plain(bench: Bench, works: Sequence[Work], model: Any, base: Base) -> None:
    sweep = bench.session.sweep
    scored = _of_stage(works, "evaluate")
    with answering(model, sweep.evaluation.served_by) as one:
        bench.evaluate([work for work in scored if work.about not in JUDGED_TASKS], one, base.tokenizer)
        for work in scored:
            if work.about in JUDGED_TASKS:
                bench.attempt(work, partial(_judged, bench.session, work.about, one, base.tokenizer))
    for work in _of_stage(works, "log_likelihood"):
        assert sweep.probes.log_likelihood is not None
        length, pad = sweep.probes.log_likelihood.max_length, bench.session.pad_id(base)
        texts, budget = bench.session.likelihood_texts, sweep.training.token_budget
        bench.attempt(work, partial(log_likelihoods, model, base.tokenizer, texts, length, pad, budget))


def _judged(session: Session, task: str, model: Any, tokenizer: Any) -> pa.Table:
    """Scores of a model on a task whose answers are judged."""
    generate = generator(model, tokenizer, session.benchmarks)
    return evaluate_judged(task, session.sweep, session.judge, session.storage, tokenizer, generate)


def _of_stage(works: Sequence[Work], stage: str) -> list[Work]:
    return [work for work in works if work.stage == stage]
