"""A small generated world: facts and skills that tiny base models pretrain on and are then fine-tuned to answer.

The world is the same for every base model: which city is the capital of which country, which colour its flag has, what
two numbers add up to, which number of a list is the largest. Pretraining reads all of it as plain statements.
Instruction rows ask about one part of it, and test items ask about the rest, so that a fine-tuned model can only answer
a test item about a country from what its base has read. Capitals, reversal and flags hold out the same countries, so no
instruction dataset gives away an answer that another skill's test asks for.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement
from typing import ClassVar

from raysft.corpus.example import Example

# When any text that comes out of here changes, raise GENERATED_TEXT_VERSION in raysft/spec/keys.py.
WORLD_SEED = 2506
TEST_ITEMS = 112
CHOICES = 4

_COUNTRIES = 192
_LISTS = 2048
_LARGEST_ADDEND = 15
_LARGEST_LISTED = 39
_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
# A fact of rank r is read with frequency proportional to (r + offset)^-exponent, as in real text: frequent facts teach
# a base how to look a fact up before it has read the rare ones often enough.
_FREQUENCY_EXPONENT = 0.7
_FREQUENCY_OFFSET = 8
_COLOURS = ("red", "blue", "green", "white", "black", "gold", "pink", "grey", "brown", "purple")


@dataclass(frozen=True, slots=True)
class TestItem:
    """A held-out question, its answer, and four choices that hold the answer once."""

    __test__: ClassVar[bool] = False  # pytest would otherwise try to collect it

    question: str
    answer: str
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Fact:
    """What fills the blanks of a skill's sentences, the answer among them, and the wrong answers that look alike."""

    blanks: Mapping[str, str]
    answer: str
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Split:
    """All facts of a skill: those that instruction rows may ask for, and those held out for the test."""

    train: tuple[_Fact, ...]
    test: tuple[_Fact, ...]


@dataclass(frozen=True, slots=True)
class _Skill:
    """Sentences with blanks; `{answer}` is the one that a question leaves open.

    No statement begins with a blank: a byte-level tokenizer would give the name another token there. The last one is a
    question with its answer: a base model that has never read one stays at chance under the question prompt, whatever
    it knows.
    """

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    split: Callable[[], _Split]


def _random(*salt: object) -> random.Random:
    """A generator of its own for each purpose; a string seed is hashed by value, so it is the same in every process."""
    return random.Random("/".join(map(str, (WORLD_SEED, *salt))))


@cache
def _names(kind: str, ending: str) -> tuple[str, ...]:
    """Distinct made-up names of two open syllables and one of the letters of `ending`, if any."""
    syllables = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]
    names = [first + second for first in syllables for second in syllables if first != second]
    rng = _random(kind)
    return tuple(name + (rng.choice(ending) if ending else "") for name in rng.sample(names, _COUNTRIES))


def _countries() -> tuple[str, ...]:
    return _names("country", "nrs")


def _by_country(answers: tuple[str, ...], blanks: Callable[[int], dict[str, str]]) -> _Split:
    """Facts about country i with answers[i]; the first countries are the held-out ones in every skill."""
    pool = tuple(dict.fromkeys(answers))
    facts = tuple(
        _Fact(blanks(i), answer, tuple(other for other in pool if other != answer)) for i, answer in enumerate(answers)
    )
    return _Split(train=facts[TEST_ITEMS:], test=facts[:TEST_ITEMS])


@cache
def _capitals() -> _Split:
    return _by_country(_names("city", ""), lambda i: {"country": _countries()[i]})


@cache
def _reversal() -> _Split:
    cities = _names("city", "")
    return _by_country(_countries(), lambda i: {"city": cities[i]})


@cache
def _flags() -> _Split:
    rng = _random("flags")
    colours = tuple(rng.choice(_COLOURS) for _ in range(_COUNTRIES))
    return _by_country(colours, lambda i: {"country": _countries()[i]})


@cache
def _addition() -> _Split:
    """Sums of two numbers; a pair and its mirror image are on the same side of the split."""
    pairs = list(combinations_with_replacement(range(_LARGEST_ADDEND + 1), 2))
    _random("addition").shuffle(pairs)
    facts = [_sum_fact(*ordered) for pair in pairs for ordered in dict.fromkeys([pair, pair[::-1]])]
    # One more or less where the cut would part a pair from its mirror image.
    cut = TEST_ITEMS
    while sorted(facts[cut].blanks.values()) == sorted(facts[cut - 1].blanks.values()):
        cut += 1
    return _Split(train=tuple(facts[cut:]), test=tuple(facts[:cut]))


def _sum_fact(a: int, b: int) -> _Fact:
    near = [total for total in range(a + b - 4, a + b + 5) if total >= 0 and total != a + b]
    return _Fact({"a": str(a), "b": str(b)}, str(a + b), tuple(map(str, near)))


@cache
def _largest() -> _Split:
    rng = _random("largest")
    lists = {tuple(rng.sample(range(_LARGEST_LISTED + 1), CHOICES)): None for _ in range(_LISTS)}
    facts = tuple(_list_fact(numbers) for numbers in lists)
    return _Split(train=facts[TEST_ITEMS:], test=facts[:TEST_ITEMS])


def _list_fact(numbers: tuple[int, ...]) -> _Fact:
    *head, last = map(str, numbers)
    wrong = tuple(str(number) for number in numbers if number != max(numbers))
    return _Fact({"numbers": f"{', '.join(head)} and {last}"}, str(max(numbers)), wrong)


_SKILLS: dict[str, _Skill] = {
    "capitals": _Skill(
        statements=(
            "the capital of {country} is {answer}.",
            "in {country} the capital is {answer}.",
            "capital of {country}: {answer}.",
            "Question: what is the capital of {country}?\nAnswer: {answer}.",
        ),
        questions=(
            "what is the capital of {country}?",
            "which city is the capital of {country}?",
            "name the capital of {country}.",
        ),
        split=_capitals,
    ),
    "reversal": _Skill(
        statements=(
            "the city {city} is the capital of {answer}.",
            "the capital {city} lies in {answer}.",
            "country of {city}: {answer}.",
            "Question: which country has the capital {city}?\nAnswer: {answer}.",
        ),
        questions=(
            "which country has the capital {city}?",
            "what country has the capital {city}?",
            "name the country with the capital {city}.",
        ),
        split=_reversal,
    ),
    "flags": _Skill(
        statements=(
            "the flag of {country} is {answer}.",
            "in {country} the flag is {answer}.",
            "flag of {country}: {answer}.",
            "Question: what colour is the flag of {country}?\nAnswer: {answer}.",
        ),
        questions=(
            "what colour is the flag of {country}?",
            "which colour has the flag of {country}?",
            "name the colour of the flag of {country}.",
        ),
        split=_flags,
    ),
    "addition": _Skill(
        statements=(
            "if you add {a} and {b} you get {answer}.",
            "the sum of {a} and {b} is {answer}.",
            "sum of {a} and {b}: {answer}.",
            "Question: what is {a} plus {b}?\nAnswer: {answer}.",
        ),
        questions=("what is {a} plus {b}?", "what is the sum of {a} and {b}?", "add {a} and {b}."),
        split=_addition,
    ),
    "largest": _Skill(
        statements=(
            "the largest of {numbers} is {answer}.",
            "among {numbers} the largest is {answer}.",
            "largest of {numbers}: {answer}.",
            "Question: what is the largest of {numbers}?\nAnswer: {answer}.",
        ),
        questions=(
            "what is the largest of {numbers}?",
            "which number is the largest of {numbers}?",
            "name the largest of {numbers}.",
        ),
        split=_largest,
    ),
}

SKILLS: tuple[str, ...] = tuple(_SKILLS)


def statements(shares: Mapping[str, float], count: int, seed: int) -> list[str]:
    """Draw `count` plain pretraining sentences, each from a skill with probability proportional to its share.

    All facts of a skill are read, held out or not, some more often than others. Raises ValueError for an unknown skill.
    """
    rng = _random("statements", seed)
    names = sorted(shares)
    counts = Counter(rng.choices(names, weights=[shares[name] for name in names], k=count))
    sentences = [sentence for name in names for sentence in _sentences(name, counts[name], rng)]
    rng.shuffle(sentences)
    return sentences


def _sentences(name: str, count: int, rng: random.Random) -> list[str]:
    """Statements of one skill, its facts drawn by their frequency and in any of its wordings."""
    facts = _all_facts(name)
    frequencies = [(rank + _FREQUENCY_OFFSET) ** -_FREQUENCY_EXPONENT for rank in range(len(facts))]
    drawn = rng.choices(facts, weights=frequencies, k=count)
    return [_fill(rng.choice(_skill(name).statements), fact) for fact in drawn]


def instruction_rows(skill: str, rows: int, seed: int) -> list[Example]:
    """Draw `rows` distinct training rows; a fact is asked for again, in other words, only after all have been.

    Raises ValueError for an unknown skill, and when fewer distinct rows exist.
    """
    found = _skill(skill)
    facts = list(found.split().train)
    available = len(facts) * len(found.questions)
    if not 1 <= rows <= available:
        raise ValueError(f"skill {skill} has {available} distinct instruction rows, found a request for {rows}")
    rng = _random("instruction", skill, seed)
    rng.shuffle(facts)
    asked = [Example(_fill(question, fact), fact.answer) for question in found.questions for fact in facts][:rows]
    rng.shuffle(asked)
    return asked


def test_items(skill: str) -> list[TestItem]:
    """The held-out items of a skill, always the same; raises ValueError for an unknown skill."""
    found = _skill(skill)
    rng = _random("choices", skill)
    return [_test_item(found.questions[0], fact, rng) for fact in found.split().test]


def _test_item(question: str, fact: _Fact, rng: random.Random) -> TestItem:
    choices = [fact.answer, *rng.sample(fact.wrong, CHOICES - 1)]
    rng.shuffle(choices)
    return TestItem(_fill(question, fact), fact.answer, tuple(choices))


def _skill(name: str) -> _Skill:
    if name not in _SKILLS:
        raise ValueError(f"unknown skill {name!r}, valid are {', '.join(SKILLS)}")
    return _SKILLS[name]


@cache
def _all_facts(name: str) -> tuple[_Fact, ...]:
    """All facts from the most frequent one to the rarest; held-out facts are neither rarer nor more frequent."""
    split = _skill(name).split()
    facts = split.train + split.test
    return tuple(_random("frequency", name).sample(facts, len(facts)))


def _fill(sentence: str, fact: _Fact) -> str:
    return sentence.format(**fact.blanks, answer=fact.answer)
