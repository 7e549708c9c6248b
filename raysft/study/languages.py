"""Benchmarks that exist in several languages, found by their names alone.

A sweep knows its tasks by name. A word of a name that is a language (`ja`, `zho`, `german`) or one of the prefixes by
which translations of MMLU are called says the language; what is left says the benchmark. A task without such a word is
taken for English where the same benchmark is there in another language, and for nothing at all elsewhere.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

ENGLISH = "English"

# Languages by ISO 639-1 and 639-3 code and by name. Codes that are English words (as, is, it, no, or) are left out.
_NAMES = {
    "Arabic": "ar ara arb arabic",
    "Bengali": "bn ben bengali",
    "Chinese": "zh zho zhs cn cmn chinese",
    "Czech": "cs ces czech",
    "Dutch": "nl nld dutch",
    ENGLISH: "en eng english",
    "Finnish": "fi fin finnish",
    "French": "fr fra french",
    "German": "de deu german",
    "Greek": "el ell greek",
    "Hebrew": "heb hebrew",
    "Hindi": "hi hin hindi",
    "Indonesian": "ind indonesian",
    "Italian": "ita italian",
    "Japanese": "ja jp jpn japanese",
    "Korean": "ko kor kr korean",
    "Persian": "fa fas pes persian",
    "Polish": "pl pol polish",
    "Portuguese": "pt por portuguese",
    "Russian": "ru rus russian",
    "Spanish": "es spa spanish",
    "Swahili": "sw swa swh swahili",
    "Swedish": "sv swe swedish",
    "Telugu": "te tel telugu",
    "Thai": "th tha thai",
    "Turkish": "tr tur turkish",
    "Ukrainian": "uk ukr ukrainian",
    "Vietnamese": "vi vie vietnamese",
    "Yoruba": "yo yor yoruba",
}
_LANGUAGES = {word: language for language, words in _NAMES.items() for word in words.split()}
# MMLU's translations that go by a name of their own.
_MMLU = {"cmmlu": "Chinese", "jmmlu": "Japanese", "kmmlu": "Korean", "tmmlu": "Chinese", "tmmluplus": "Chinese"}
# Words of which translation or script it is, not of which benchmark.
_EDITIONS = frozenset({"global", "full", "latn", "hans", "hant", "jpan", "cyrl", "arab", "deva", "native", "direct"})


def language_families(tasks: Iterable[str]) -> dict[str, dict[str, str]]:
    """Benchmark -> language -> task, for every benchmark in English and at least one other language.

    Where two tasks share a benchmark and a language (other shots, say), the first by name is taken.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    plain: dict[str, str] = {}
    for task in sorted(set(tasks)):
        benchmark, language = _read(task)
        if language is None:
            plain.setdefault(benchmark, task)
        else:
            found[benchmark].setdefault(language, task)
    for benchmark, task in plain.items():
        if benchmark in found:
            found[benchmark].setdefault(ENGLISH, task)
    return {name: of for name, of in sorted(found.items()) if ENGLISH in of and len(of) > 1}


def _read(task: str) -> tuple[str, str | None]:
    words = [word for word in re.split(r"[^0-9a-z]+", task.lower()) if word]
    languages = [_LANGUAGES.get(word) for word in words]
    if words and words[0] in _MMLU:
        return " ".join(["mmlu", *words[1:]]), _MMLU[words[0]]
    known = [at for at, language in enumerate(languages) if language]
    # A name that is nothing but a language, or holds two, is no translation of something.
    if len(known) != 1 or len(words) == 1:
        return " ".join(words), None
    rest = [word for at, word in enumerate(words) if at != known[0] and word not in _EDITIONS]
    return " ".join(rest), languages[known[0]]
