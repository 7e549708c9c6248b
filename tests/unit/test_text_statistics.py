"""Statistics of texts: known answers, and plain loops over windows."""

from __future__ import annotations

import lzma
import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as some

from raysft.corpus.example import Example
from raysft.probes.data.text_statistics import compressibility, moving_type_token_ratio, text_statistics

pytestmark = pytest.mark.unit


def _value(table: pa.Table, name: str, statistic: str | None = None) -> float | None:
    [row] = [row for row in table.to_pylist() if (row["property"], row["statistic"]) == (name, statistic)]
    value: float | None = row["value"]
    return value


@given(some.lists(some.sampled_from("abcd"), max_size=40), some.integers(1, 12))
def test_the_moving_ratio_is_the_mean_over_all_windows(tokens: list[str], window: int) -> None:
    starts = range(len(tokens) - window + 1)
    ratios = [len(set(tokens[start : start + window])) / window for start in starts]
    found = moving_type_token_ratio(tokens, window)
    assert found == (pytest.approx(sum(ratios) / len(ratios)) if ratios else None)


def test_the_moving_ratio_does_not_fall_with_the_number_of_words() -> None:
    draw = random.Random(0)
    vocabulary = [f"w{number}" for number in range(500)]
    short, long = draw.choices(vocabulary, k=1000), draw.choices(vocabulary, k=20_000)
    assert len(set(long)) / len(long) < 0.1 * len(set(short)) / len(short)
    assert moving_type_token_ratio(long) == pytest.approx(moving_type_token_ratio(short), rel=0.01)
    expected = 500 * (1 - (1 - 1 / 500) ** 100) / 100  # mean number of distinct values of 100 draws from 500
    assert moving_type_token_ratio(long) == pytest.approx(expected, rel=0.005)


def test_random_bytes_do_not_compress_and_repetitions_do() -> None:
    draw = random.Random(1)
    noise = "".join(chr(draw.randrange(32, 127)) for _ in range(50_000))
    entropy = 6.57 / 8  # log2(95) bits of information in a byte
    assert compressibility([noise]) == pytest.approx(entropy, rel=0.03)
    packed = compressibility(["the same line again"] * 1000)
    assert packed is not None
    assert packed < 0.01
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
    content = "\n".join(["one", "two"]).encode()
    assert compressibility(["one", "two"]) == len(lzma.compress(content, lzma.FORMAT_RAW, filters=filters)) / 7
    assert compressibility(["", ""]) is None


def test_lengths_and_ratios_of_known_rows() -> None:
    rows = [Example(f"Say it, {number} times!", " ".join(["yes"] * number)) for number in range(1, 101)]
    table = text_statistics(rows)
    assert set(table["n"].to_pylist()) == {100}
    assert _value(table, "response_words") == 50.5
    assert _value(table, "response_words", "q05") == pytest.approx(5.95)
    assert _value(table, "response_words", "q95") == pytest.approx(95.05)
    assert _value(table, "response_words", "q50") == 50.5
    assert _value(table, "prompt_words") == 4
    assert _value(table, "response_bytes") == pytest.approx(50.5 * 4 - 1)
    assert _value(table, "response_type_token_ratio") == pytest.approx(1 / 5050)
    assert _value(table, "response_mattr_100") == 0.01
    assert _value(table, "prompt_type_token_ratio") == pytest.approx(103 / 400)


def test_every_turn_and_the_system_text_count_and_characters_of_chinese_are_words() -> None:
    talk = Example("third", "fourth", (("first", "second"),), "be brief")
    chinese = Example("首都在哪里?", "北京")
    first, second = text_statistics([talk]), text_statistics([chinese])
    assert _value(first, "prompt_words") == 4
    assert _value(first, "response_words") == 2
    assert _value(first, "text_words") == 6
    assert _value(second, "prompt_words") == 5
    assert _value(second, "response_words") == 2
    assert _value(second, "response_bytes") == 6


def test_ratios_of_no_words_are_null_and_the_rest_is_there() -> None:
    table = text_statistics([Example("a question", ""), Example("another", " ")])
    assert _value(table, "response_type_token_ratio") is None
    assert _value(table, "response_mattr_100") is None
    assert _value(table, "response_lzma_ratio") is None
    assert _value(table, "response_words") == 0
    assert _value(table, "prompt_words") == 1.5
