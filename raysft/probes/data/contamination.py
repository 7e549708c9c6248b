"""How much of a benchmark stands in a training set: n-grams of words that both have.

After Brown et al. 2020, appendix C: texts in lower case and without punctuation, n the length in words that 95% of a
benchmark's items reach, but at least 8 and at most 13 or what the sweep says. A character of Chinese or Japanese, which
put no spaces between words, counts as a word. N-grams are told apart by 64-bit hashes. Those of the benchmarks are held
in memory, the training set passes by once.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysft.corpus.example import Example
from raysft.spec.keys import text_digest
from raysft.store.probe_schemas import CONTAMINATION

SHORTEST = 8  # words of an n-gram, unless the sweep asks for fewer
_REACHED_BY = 0.95  # of a benchmark's items
_CHUNK = 1 << 20  # words of the training set at a time
_WORD = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿]|[^\W぀-ヿ㐀-䶿一-鿿豈-﫿]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a hash is lost

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Item:
    """An item of a benchmark: the leaf task it belongs to, its index there, and its prompt with the gold answer."""

    task: str
    doc: int
    text: str


def words(text: str) -> list[str]:
    """The words of a text, normalised: compatible characters made one (NFKC), lower case, no punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def example_text(example: Example) -> str:
    """Everything that a training row says, without a template."""
    return "\n".join([example.system, *itertools.chain.from_iterable(example.turns)])


def contamination_tables(benchmarks: Mapping[str, BenchmarkGrams], training: Iterable[str]) -> dict[str, pa.Table]:
    """For each benchmark what of it is in the training texts, as a table of `schema.CONTAMINATION`.

    A row for each leaf task and, of a benchmark of several, one for all of them.
    """
    found = _found(benchmarks, training)
    return {name: grams.table(name, found[name]) for name, grams in benchmarks.items()}


class BenchmarkGrams:
    """The n-grams of a benchmark's items: `of[i]` are places in `all`, its distinct n-grams, sorted.

    `ngram` is the largest n, in words; `n` the one that was taken.
    """

    def __init__(self, items: Sequence[Item], ngram: int) -> None:
        self.items = items
        hashed = [_word_hashes(words(item.text)) for item in items]
        self.n = _length(sorted(len(own) for own in hashed), ngram)
        grams = [_ngrams(own, self.n) for own in hashed]
        self.all: Hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *grams]))
        self.of = [np.searchsorted(self.all, own) for own in grams]

    def table(self, name: str, found: npt.NDArray[np.bool_]) -> pa.Table:
        """What was found, `found[i]` for the n-gram `all[i]`."""
        by_task: dict[str, list[int]] = defaultdict(list)
        for place, item in enumerate(self.items):
            by_task[item.task].append(place)
        if name not in by_task:
            by_task[name] = list(range(len(self.items)))
        rows = [self._row(task, places, found) for task, places in by_task.items()]
        return pa.Table.from_pylist(rows, schema=CONTAMINATION)

    def _row(self, task: str, places: Sequence[int], found: npt.NDArray[np.bool_]) -> dict[str, object]:
        hits = {place: found[self.of[place]] for place in places}
        in_both = [place for place in places if hits[place].any()]
        grams = sum(len(hits[place]) for place in places)
        longest = max((_longest_run(hits[place]) for place in in_both), default=0)
        return {
            "task": task,
            "ngram": self.n,
            "items": len(places),
            "too_short": sum(not len(hits[place]) for place in places),
            "overlap": len(in_both) / len(places) if places else None,
            "ngram_overlap": float(sum(hits[place].sum() for place in places)) / grams if grams else None,
            "longest_match": longest + self.n - 1 if longest else 0,
            "matched": [
                {
                    "task": self.items[place].task,
                    "doc": self.items[place].doc,
                    "text_hash": text_digest(self.items[place].text),
                    "ngram_overlap": float(hits[place].mean()),
                }
                for place in in_both
            ],
        }


def _length(lengths: Sequence[int], most: int) -> int:
    """Words that the given share of items reach, within the bounds."""
    reached = lengths[int(len(lengths) * (1 - _REACHED_BY))] if lengths else most
    return max(min(SHORTEST, most), min(most, reached))


def _found(benchmarks: Mapping[str, BenchmarkGrams], training: Iterable[str]) -> dict[str, npt.NDArray[np.bool_]]:
    """Which n-grams of each benchmark stand in the training texts."""
    found = {name: np.zeros(len(own.all), dtype=np.bool_) for name, own in benchmarks.items()}
    for hashes, ends in _chunks(training):
        for n in sorted({own.n for own in benchmarks.values()}):
            grams = _ngrams_within(hashes, ends, n)
            for name, own in benchmarks.items():
                if own.n == n and len(own.all):
                    places = np.searchsorted(own.all, grams).clip(max=len(own.all) - 1)
                    found[name][places[own.all[places] == grams]] = True
    return found


def _ngrams_within(hashes: Hashes, ends: npt.NDArray[np.int64], n: int) -> Hashes:
    """The distinct n-grams of texts that follow each other, without those that begin in one and end in another."""
    grams = _ngrams(hashes, n)
    first = np.arange(len(grams))
    within = np.searchsorted(ends, first, "right") == np.searchsorted(ends, first + n - 1, "right")
    return np.unique(grams[within])


def _chunks(texts: Iterable[str]) -> Iterator[tuple[Hashes, npt.NDArray[np.int64]]]:
    """Hashed words of many texts together, and the place behind each text's last word."""
    hashes: list[Hashes] = []
    count = 0
    for text in texts:
        hashes.append(_word_hashes(words(text)))
        count += len(hashes[-1])
        if count >= _CHUNK:
            yield np.concatenate(hashes), np.cumsum([len(own) for own in hashes])
            hashes, count = [], 0
    if hashes:
        yield np.concatenate(hashes), np.cumsum([len(own) for own in hashes])


def _ngrams(hashes: Hashes, n: int) -> Hashes:
    """Hashes of all n-grams of hashed words, (words - n + 1,): a polynomial in an odd base, modulo 2^64."""
    count = len(hashes) - n + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    grams = np.zeros(count, dtype=np.uint64)
    for place in range(n):
        grams = grams * _BASE + hashes[place : place + count]
    return grams


def _word_hashes(found: Sequence[str]) -> Hashes:
    return np.fromiter((_word_hash(word) for word in found), dtype=np.uint64, count=len(found))


@functools.lru_cache(maxsize=1 << 20)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _longest_run(hits: npt.NDArray[np.bool_]) -> int:
    """The most n-grams in a row that were found."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], hits, [False]])))
    return int((edges[1::2] - edges[::2]).max(initial=0))
