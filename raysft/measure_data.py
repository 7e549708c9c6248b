"""Measuring datasets under a base model, and what of them no model enters, each text read once for all who ask.

A forward pass over a dataset's rows gives their perplexity and the centroids that similarities are taken of; a
benchmark's serves every dataset. What serves several results is done when the first of them asks, and its seconds are
shared out evenly among them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from raysft.corpus.example import Example
from raysft.corpus.tokenize import tokenise_texts
from raysft.evaluation.harness import benchmark_texts
from raysft.models.load import Base
from raysft.probes.data.contamination import example_text
from raysft.probes.data.perplexity import FittingRows, data_properties, example_table, fitting_rows
from raysft.probes.data.sentences import SentenceEncoder, load_encoder
from raysft.probes.data.similarity import layer_similarities, sentence_similarity
from raysft.probes.data.text_statistics import text_statistics
from raysft.probes.scoring import Reading, centroid_of, most_tokens, read_rows
from raysft.session import Session
from raysft.spec.plan import SHIPPED_TEXTS, Work
from raysft.spec.templates import training_template

STAGES = ("text_statistics", "perplexity", "similarity", "sentence_similarity")

Source = tuple[str, str]  # what texts are of, and its name: ("dataset", "alpaca")
Need = tuple[str, Source]  # how texts are read, and which: ("layers", ("dataset", "alpaca"))
Found = TypeVar("Found")


class SharedReadings:
    """What works need, each made once and held until the last of them is over. `users` says how many they are."""

    def __init__(self, users: Mapping[Need, int]) -> None:
        self._users = users
        self._left = Counter(users)
        self._made: dict[Need, tuple[Any, float]] = {}
        self._refused: dict[Need, ValueError] = {}
        self._beside = 0.0  # seconds: shares of what the work in hand has asked for, less what it made itself

    def get(self, how: str, source: Source, make: Callable[[], Found]) -> Found:
        """What was made of `source` in this way, now or before.

        A ValueError is of the texts and the model, and is raised again for the next who asks; another error, such as
        one of memory, may not come again, and the next one tries.
        """
        name = (how, source)
        if name in self._refused:
            raise copy(self._refused[name])
        if name not in self._made:
            started = time.perf_counter()
            try:
                found = make()
            except ValueError as error:
                self._refused[name] = copy(error)  # without the traceback, which holds tensors
                raise
            seconds = time.perf_counter() - started
            self._made[name] = found, seconds
            self._beside -= seconds
        found, seconds = self._made[name]
        self._beside += seconds / max(1, self._users.get(name, 1))
        return found

    def begin(self) -> None:
        """Another work asks from here on."""
        self._beside = 0.0

    def end(self, needs: Iterable[Need]) -> None:
        """The work that had these needs is over; what no other one has is dropped."""
        for name in needs:
            self._left[name] -= 1
            if self._left[name] <= 0:
                self._made.pop(name, None)
                self._refused.pop(name, None)

    def settled(self, elapsed: float) -> float:
        """Seconds of a work that took so many: of what it shares with others its share alone."""
        return elapsed + self._beside


class DataMeasures:
    """The works of one base unit that are about datasets, in the order in which they should be done."""

    def __init__(self, session: Session, base: Base, works: Sequence[Work]) -> None:
        self._session = session
        self._base = base
        self.works = [work for stage in STAGES for work in works if work.stage == stage]
        self._shared = SharedReadings(Counter(need for work in self.works for need in _needs(work)))
        self._scored = {work.subject.dataset for work in self.works if work.stage == "perplexity"}
        self._measures: dict[str, Callable[[Work], pa.Table]] = {
            "text_statistics": self._text_statistics,
            "perplexity": self._perplexity,
            "similarity": self._similarity,
            "sentence_similarity": self._sentence_similarity,
        }

    def of(self, work: Work) -> pa.Table:
        """Measure one of the works."""
        self._shared.begin()
        try:
            return self._measures[work.stage](work)
        finally:
            self._shared.end(_needs(work))

    def settled(self, elapsed: float) -> float:
        """Seconds that the work just measured is charged with, of which `elapsed` went by."""
        return self._shared.settled(elapsed)

    def _text_statistics(self, work: Work) -> pa.Table:
        return text_statistics(self._examples(work.subject.dataset or ""))

    def _perplexity(self, work: Work) -> pa.Table:
        rows, reading = self._read(work.subject.dataset or "")
        assert isinstance(reading, Reading)
        examples = example_table(rows, reading, self._base.tokenizer)
        return data_properties(examples, rows.left_out)

    def _similarity(self, work: Work) -> pa.Table:
        rows, reading = self._read(work.subject.dataset or "")
        centroid = reading.centroid if isinstance(reading, Reading) else reading
        benchmark, origin = (self._centroid(source) for source in (("benchmark", work.about or ""), _REFERENCE))
        return layer_similarities(centroid, benchmark, origin, work.about or "", len(rows.places), rows.left_out)

    def _sentence_similarity(self, work: Work) -> pa.Table:
        dataset, about = work.subject.dataset or "", work.about or ""
        sources = (("dataset", dataset), ("benchmark", about), _REFERENCE)
        data, benchmark, origin = (self._sentence_centroid(source) for source in sources)
        return sentence_similarity(data, benchmark, origin, about, len(self._examples(dataset)))

    def _read(self, dataset: str) -> tuple[FittingRows, Reading | np.ndarray]:
        """A dataset's rows and what a pass over them tells; without perplexities, if none are asked for, no logits."""
        session, base = self._session, self._base
        training = session.sweep.training

        def make() -> tuple[FittingRows, Reading | np.ndarray]:
            template = training_template(session.sweep)
            examples = self._examples(dataset)
            rows = fitting_rows(base.model, base.tokenizer, examples, template, training.max_length)
            read = read_rows if dataset in self._scored else centroid_of
            return rows, read(base.model, rows.tokens, session.pad_id(base), training.token_budget, rows.places)

        return self._shared.get("layers", ("dataset", dataset), make)

    def _centroid(self, source: Source) -> np.ndarray:
        """Centroids of a benchmark's or the reference's texts in each layer; longer texts are cut at the end."""
        session, base = self._session, self._base
        training = session.sweep.training

        def make() -> np.ndarray:
            length = most_tokens(base.model, training.max_length)
            rows = tokenise_texts(self._texts(source), base.tokenizer, length)
            return centroid_of(base.model, rows, session.pad_id(base), training.token_budget)

        return self._shared.get("layers", source, make)

    def _sentence_centroid(self, source: Source) -> np.ndarray:
        return self._shared.get("sentences", source, lambda: self._encoder.centroid(self._texts(source)))

    @cached_property
    def _encoder(self) -> SentenceEncoder:
        probe = self._session.sweep.probes.perplexity
        assert probe is not None
        assert probe.sentence_model is not None
        return load_encoder(probe.sentence_model, self._session.device)

    def _examples(self, dataset: str) -> Sequence[Example]:
        return self._session.examples(dataset, None)[: self._rows]

    def _texts(self, source: Source) -> list[str]:
        """Texts as they are, without a template; ValueError for a benchmark without any."""
        kind, name = source
        if source == _REFERENCE:
            return SHIPPED_TEXTS.read_text(encoding="utf-8").splitlines()
        if kind == "dataset":
            return [example_text(example) for example in self._examples(name)]
        texts = benchmark_texts(self._session.benchmarks, name, self._rows)
        if not texts:
            raise ValueError(f"{name}: the benchmark has no item whose text could be embedded")
        return texts

    @property
    def _rows(self) -> int:
        probe = self._session.sweep.probes.perplexity
        assert probe is not None
        return probe.rows


_REFERENCE: Source = ("reference", "")


def _needs(work: Work) -> Iterable[Need]:
    """What a work will ask `SharedReadings` for."""
    how = {"perplexity": "layers", "similarity": "layers", "sentence_similarity": "sentences"}.get(work.stage)
    if how is not None:
        yield how, ("dataset", work.subject.dataset or "")
        if work.about is not None:
            yield how, ("benchmark", work.about)
            yield how, _REFERENCE
