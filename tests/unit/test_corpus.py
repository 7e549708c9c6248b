"""From rows to batches: layouts, refusals by row number, BOS and EOS, and who is in which step."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysft.corpus.batching import global_batch, length_groups, pad_rows, steps_per_epoch
from raysft.corpus.example import Example
from raysft.corpus.sources import all_examples, load_examples
from raysft.corpus.tokenize import TokenisedRow, tokenise_examples, tokenise_texts
from raysft.spec.datasets import DatasetSpec
from raysft.spec.sweep import SpecError, parse_sweep
from raysft.spec.templates import Template

pytestmark = pytest.mark.unit

PAPER = Template("paper")
ROWS = [{"instruction": f"ask {i}", "input": "", "output": f"answer {i}"} for i in range(5)]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def _examples(path: Path, **fields: Any) -> list[Example]:
    return all_examples(DatasetSpec(name="mine", path=path, **fields))


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.jsonl.gz", "d.parquet", "d.csv"])
def test_every_format_gives_the_same_examples(tmp_path: Path, name: str) -> None:
    _write(tmp_path / name, ROWS)
    assert _examples(tmp_path / name) == [Example(f"ask {i}", f"answer {i}") for i in range(5)]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "response": "a"},
        {"question": "q", "answer": "a"},
        {"prompt": "q", "completion": "a"},
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a"},
            ]
        },
        {"conversations": ["q", "a", "more"]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"data": ["q", "a"]},
        {"instruction": "q", "instances": [{"input": "", "output": "a"}]},
    ],
)
def test_known_layouts_are_recognised(tmp_path: Path, row: dict[str, Any]) -> None:
    _write(tmp_path / "d.json", [row])
    assert _examples(tmp_path / "d.json") == [Example("q", "a")]


def test_columns_can_be_named_and_rows_chosen(tmp_path: Path) -> None:
    rows = [{"ask": "q", "more": "context", "reply": "a", "kind": kind} for kind in ("x", "y")]
    _write(tmp_path / "d.json", rows)
    columns = {"instruction": "ask", "input": "more", "response": "reply"}
    assert _examples(tmp_path / "d.json", columns=columns, where={"kind": ["y"]}) == [Example("q\ncontext", "a")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS[:2], {"instruction": "q", "output": "  "}], r"datasets\.mine: d\.json, row 3: no response"),
        ([{"instruction": "", "output": "a"}], r"row 1: no instruction"),
        ([], r"datasets\.mine: d\.json: no rows"),
        ([{"text": "x"}], r"columns text are no known layout"),
    ],
)
def test_bad_rows_are_refused_by_number(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    _write(tmp_path / "d.json", rows)
    with pytest.raises(SpecError, match=message):
        _examples(tmp_path / "d.json")


def test_incomplete_rows_are_left_out_if_the_spec_says_so(tmp_path: Path) -> None:
    _write(tmp_path / "d.json", [{"instruction": "q", "output": ""}, *ROWS])
    assert len(_examples(tmp_path / "d.json", incomplete_rows="drop")) == 5
    _write(tmp_path / "d.json", [{"instruction": "q", "output": ""}])
    with pytest.raises(SpecError, match="none of 1 rows"):
        _examples(tmp_path / "d.json", incomplete_rows="drop")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.json", "{", "cannot be read"),
        ("d.json", '"text"', "list of objects"),
        ("d.jsonl", '{"a": 1}\nnot json\n', "line 2: not JSON"),
        ("d.parquet", "PAR1 but not really", "cannot be read"),
        ("d.txt", "x", "known endings"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SpecError, match=rf"datasets\.mine: .*{message}"):
        _examples(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"datasets\.mine: no file"):
        _examples(tmp_path / "none.json")


def test_a_smaller_sample_is_the_beginning_of_a_larger_one(content: dict[str, Any], tmp_path: Path) -> None:
    _write(tmp_path / "d.json", ROWS)
    content["datasets"] = [{"name": "mine", "path": str(tmp_path / "d.json")}]
    content["grid"][0]["sizes"] = ["all"]
    sweep = parse_sweep(content, "test")
    everything = load_examples(sweep, sweep.dataset("mine"), None)
    assert load_examples(sweep, sweep.dataset("mine"), 3) == everything[:3]
    assert sorted(example.instruction for example in everything) == [f"ask {i}" for i in range(5)]
    with pytest.raises(SpecError, match=r"datasets\.mine: 6 rows asked, it has 5"):
        load_examples(sweep, sweep.dataset("mine"), 6)


def test_a_mixture_takes_size_rows_of_every_member(content: dict[str, Any]) -> None:
    content["datasets"].append({"name": "both", "mixture": {"of": ["capitals", "addition"]}})
    sweep = parse_sweep(content, "test")
    mixed = load_examples(sweep, sweep.dataset("both"), 10)
    members = [load_examples(sweep, sweep.dataset(name), 10) for name in ("capitals", "addition")]
    assert sorted(mixed, key=str) == sorted(members[0] + members[1], key=str)
    beginning = mixed[:8]  # what probes look at: it must not be one member alone
    assert set(beginning) & set(members[0])
    assert set(beginning) & set(members[1])


class CharacterTokenizer:
    """One token a character; BOS 1 and EOS 2, with BOS added to texts or not."""

    eos_token_id: int | None = 2

    def __init__(self, bos: int | None, adds_bos: bool) -> None:
        self.bos_token_id = bos
        self.adds_bos = adds_bos

    def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> dict[str, Any]:
        start = [self.bos_token_id] if add_special_tokens and self.adds_bos else []
        if isinstance(text, str):
            return {"input_ids": start + [ord(letter) for letter in text]}
        return {"input_ids": [start + [ord(letter) for letter in one] for one in text]}


def test_a_response_has_the_tokens_that_it_has_in_the_text() -> None:
    """A SentencePiece tokenizer puts a space mark before every text it is given: 9 here, for each call."""

    class Marking(CharacterTokenizer):
        def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> dict[str, Any]:
            ids = super().__call__(text, add_special_tokens=False)["input_ids"]
            return {"input_ids": [[9, *one] for one in ids] if isinstance(text, list) else [9, *ids]}

    [row] = tokenise_examples([Example("q", "a")], Marking(None, False), PAPER, 100)
    assert list(row.ids).count(9) == 1
    [(start, stop)] = row.spans
    assert list(row.ids[start:stop]) == [ord(" "), ord("a"), 2]


@pytest.mark.parametrize(("bos", "adds_bos", "start"), [(1, True, [1]), (1, False, []), (None, False, [])])
def test_one_bos_where_the_tokenizer_has_one_and_a_supervised_eos(
    bos: int | None, adds_bos: bool, start: list[int]
) -> None:
    [row] = tokenise_examples([Example("q", "a")], CharacterTokenizer(bos, adds_bos), PAPER, 100)
    text = "###Question: q\n###Answer: a"
    assert list(row.ids) == start + [ord(letter) for letter in text] + [2]
    assert row.supervised == len(" a") + 1


def test_a_row_without_room_for_a_response_is_refused_by_number() -> None:
    examples = [Example("q", "a"), Example("q" * 50, "a")]
    with pytest.raises(ValueError, match=r"row 2: its prompt has 75 tokens, so max_length 40"):
        tokenise_examples(examples, CharacterTokenizer(1, True), PAPER, 40)


def test_a_row_without_room_for_a_response_is_dropped_and_counted_if_the_spec_says_so() -> None:
    examples = [Example("q" * 50, "a"), Example("q", "a"), Example("q" * 50, "a")]
    rows = tokenise_examples(examples, CharacterTokenizer(1, True), PAPER, 40, "drop")
    assert (len(rows), list(rows.kept), rows.dropped) == (1, [1], 2)


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = CharacterTokenizer(1, True)
    tokenizer.eos_token_id = None
    with pytest.raises(ValueError, match="no EOS"):
        tokenise_examples([Example("q", "a")], tokenizer, PAPER, 40)


def test_texts_are_scored_from_the_first_token_after_bos() -> None:
    [row] = tokenise_texts(["abc"], CharacterTokenizer(1, True), 100)
    assert (len(row.ids), row.supervised) == (4, 3)


def test_templates() -> None:
    assert Template("Q {instruction} A {response}!").parts == ("Q {instruction} A", " {response}!")
    with pytest.raises(SpecError, match=r"training\.template: found 'plain'; valid: paper, alpaca, chat, or a text"):
        _ = Template("plain").parts


def test_an_epoch_takes_every_row_once_in_an_order_of_its_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        steps = range(steps_per_epoch(10, 4))
        return [index for step in steps for index in global_batch(10, 4, seed, epoch, step)]

    assert sorted(order(0, 1)) == list(range(10))
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (1, 2)}) == 4


@pytest.mark.parametrize("budget", [1, 8, 20, 1000])
def test_micro_batches_hold_every_row_once_under_the_budget(budget: int) -> None:
    rows = [TokenisedRow.from_token(range(10, 10 + length), 1) for length in (3, 9, 4, 7, 7, 2)]
    batches = [pad_rows([rows[index] for index in part], pad_id=0) for part in length_groups(rows, budget)]
    seen = [tuple(ids[mask.bool()].tolist()) for b in batches for ids, mask in zip(b.input_ids, b.tokens, strict=True)]
    assert sorted(seen) == sorted(tuple(row.ids) for row in rows)
    assert all(batch.input_ids.numel() <= budget or len(batch.input_ids) == 1 for batch in batches)
    assert sum(int(batch.supervised.sum()) for batch in batches) == sum(row.supervised for row in rows)
