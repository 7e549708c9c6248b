"""Kept rows: what is mapped is what was tokenised, under a key of all that decides it, and nothing is done twice."""

from __future__ import annotations

import copy
import json
import mmap
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysft.corpus.kept_rows import kept_rows, rows_identity, tokenizer_digest
from raysft.corpus.sources import load_examples
from raysft.corpus.tokenize import TokenisedRow, TokenisedRows, tokenise_examples
from raysft.models.load import Base
from raysft.session import Session
from raysft.spec.grid import Trial, expand
from raysft.spec.keys import STAGE_VERSIONS
from raysft.spec.sweep import SpecError, Sweep, parse_sweep
from raysft.spec.templates import Template
from raysft.store.checkpoints import MANIFEST
from raysft.store.layout import open_storage
from tests.s3_server import BUCKET, environment, s3_service
from tests.unit.tokenizers_in_miniature import KINDS, Slow

pytestmark = pytest.mark.unit

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = ["hello", "What is it?", "Name it.", "It is a question: yes, é.", "and 17 plus 4?", "21"]
Harm = Callable[[Path], object]
ROWS = TokenisedRows.of([TokenisedRow.from_token([1, 5, 2], 1), TokenisedRow.from_token([1, 9], 1)], [0, 2], 1)


@pytest.fixture
def talks(content: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A sweep on a file of conversations of one to three exchanges, with two models and several methods and seeds."""
    rows = [{"data": [*TALK[: 2 * (n % 3 + 1)], f"number {n}?", "word " * n]} for n in range(1, 33)]
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    first = content["models"][0]
    content["models"] = [first, {**copy.deepcopy(first), "name": "other", "micro": {**first["micro"], "steps": 9}}]
    content["datasets"] = [{"name": "talks", "path": str(path), "turns": "all"}]
    content["training"] = {"template": "chat"}
    content["grid"] = [{"sizes": [24], "epochs": [1, 2], "learning_rates": [1e-3, 2e-3], "seeds": [0, 1]}]
    return content


def _sweep(content: dict[str, Any]) -> Sweep:
    return parse_sweep(content, "test")


def _base(kind: str = "byte-level", key: str = "base") -> Base:
    tokenizer = KINDS[kind]()
    tokenizer.chat_template = CHATML
    return Base(key, None, tokenizer, {})


def _rows(content: dict[str, Any], base: Base) -> TokenisedRows:
    """What a new process gets for the first trial."""
    sweep = _sweep(content)
    return Session(sweep, torch.device("cpu")).rows(expand(sweep)[0][0], base)


def _folders(content: dict[str, Any]) -> list[str]:
    return open_storage(content["storage"]).names("tokens")


def _is_mapped(array: np.ndarray) -> bool:
    owner: Any = array
    while isinstance(owner, (np.ndarray, memoryview)):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return isinstance(owner, mmap.mmap)


@pytest.mark.parametrize("max_length", [2048, 60])
@pytest.mark.parametrize(("turns", "template"), [("all", "chat"), ("first", "chat"), ("first", "paper")])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_opened_is_what_was_tokenised(
    talks: dict[str, Any], kind: str, turns: str, template: str, max_length: int
) -> None:
    talks["datasets"][0]["turns"] = turns
    talks["training"] = {"template": template, "max_length": max_length, "overlong_rows": "drop"}
    sweep, base = _sweep(talks), _base(kind)
    examples = load_examples(sweep, sweep.datasets[0], 24)
    expected = tokenise_examples(examples, base.tokenizer, Template(template), max_length, "drop")
    for _ in ("made", "opened"):
        rows = _rows(talks, base)
        assert list(rows) == list(expected)
        assert (list(rows.kept), rows.dropped) == (list(expected.kept), expected.dropped)
        assert [row.supervised for row in rows] == [row.supervised for row in expected]
    assert len(_folders(talks)) == 1


def test_rows_are_mapped_and_not_read(talks: dict[str, Any]) -> None:
    rows = _rows(talks, _base())
    assert all(_is_mapped(array) for array in (rows.ids, rows.offsets, rows.spans, rows.span_offsets, rows.kept))
    assert _is_mapped(rows[3].ids)
    assert rows[3].ids.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        rows[3].ids[0] = 7


def test_rows_are_a_sequence() -> None:
    first, last = list(ROWS)
    assert (first.ids.tolist(), first.spans, last.ids.tolist()) == ([1, 5, 2], ((1, 3),), [1, 9])
    assert (ROWS[-1], ROWS[0:2], ROWS[2:]) == (last, (first, last), ())
    with pytest.raises(IndexError):
        ROWS[2]


def test_a_second_process_reads_no_examples_and_tokenises_nothing(
    talks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    base = _base()
    call = type(base.tokenizer).__call__

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return call(self, *arguments, **options)

    monkeypatch.setattr(type(base.tokenizer), "__call__", counted)
    first = _rows(talks, base)
    assert calls
    calls.clear()
    monkeypatch.setattr("raysft.session.load_examples", lambda *_: pytest.fail("examples were read"))
    assert list(_rows(talks, _base())) == list(first)
    assert calls == []


def _keys(content: dict[str, Any], tokenizer: Any) -> set[str]:
    """Identities of the rows of all trials, as texts."""
    digest = tokenizer_digest(tokenizer)
    trials = expand(_sweep(content))[0]
    return {json.dumps(rows_identity(trial, tokenizer, digest), sort_keys=True) for trial in trials}


def test_trials_that_differ_in_other_things_share_rows(talks: dict[str, Any]) -> None:
    """The sweep has two models, two methods, two rates, two seeds and two lengths."""
    tokenizer = _base().tokenizer
    assert len(expand(_sweep(talks))[0]) >= 16
    [key] = _keys(talks, tokenizer)
    talks["datasets"][0]["name"] = "renamed"
    talks["training"].update(token_budget=512, batch_size=4, weight_decay=0.1)
    assert _keys(talks, tokenizer) == {key}


@pytest.mark.parametrize(
    "changed",
    ["rows", "turns", "size", "template", "max_length", "overlong_rows", "chat_template", "train version", "version"],
)
def test_what_decides_the_rows_is_in_their_key(
    talks: dict[str, Any], changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _rows(talks, _base())
    path, data, training = Path(talks["datasets"][0]["path"]), talks["datasets"][0], talks["training"]
    base = _base()
    {
        "rows": lambda: path.write_text(path.read_text().replace("hello", "Hello")),
        "turns": lambda: data.update(turns="first"),
        "size": lambda: talks["grid"][0].update(sizes=[23]),
        "template": lambda: (training.update(template="paper"), data.update(turns="first")),
        "max_length": lambda: training.update(max_length=900),
        "overlong_rows": lambda: training.update(overlong_rows="drop"),
        "chat_template": lambda: setattr(base.tokenizer, "chat_template", CHATML.replace("<|im_end|>", "<|end|>")),
        "train version": lambda: monkeypatch.setitem(STAGE_VERSIONS, "train", 99),
        "version": lambda: monkeypatch.setitem(STAGE_VERSIONS, "tokenise", 99),
    }[changed]()
    _rows(talks, base)
    assert len(_folders(talks)) == 2


def test_a_chat_template_in_a_file_is_in_the_key_and_the_tokenizers_own_is_then_not(
    talks: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(CHATML)
    talks["training"]["chat_template"] = str(file)
    tokenizer = _base().tokenizer
    keys = _keys(talks, tokenizer)
    tokenizer.chat_template = None
    assert _keys(talks, tokenizer) == keys
    file.write_text(CHATML.replace("<|im_end|>", "<|end|>"))
    assert _keys(talks, tokenizer) != keys


def test_tokenizers_are_told_apart_by_what_they_do(talks: dict[str, Any]) -> None:
    assert len({tokenizer_digest(make()) for make in KINDS.values()}) == len(KINDS)
    tokenizer = _base().tokenizer
    keys = _keys(talks, tokenizer)
    tokenizer.eos_token = "<|im_end|>"
    assert _keys(talks, tokenizer) != keys


def test_what_evaluation_does_to_a_tokenizer_changes_no_key(talks: dict[str, Any]) -> None:
    tokenizer = _base().tokenizer
    keys = _keys(talks, tokenizer)
    tokenizer.pad_token = "<unk>"
    tokenizer(["a", "a longer one"], padding=True, truncation=True, max_length=3)
    assert _keys(talks, tokenizer) == keys


def test_models_share_rows_if_their_tokenizers_can_be_compared(talks: dict[str, Any]) -> None:
    sweep = _sweep(talks)
    trials = {trial.model: trial for trial in expand(sweep)[0]}
    fast = [_base(key=name) for name in trials]
    session = Session(sweep, torch.device("cpu"))
    first, second = (list(session.rows(trial, base)) for trial, base in zip(trials.values(), fast, strict=True))
    assert first == second
    assert len(_folders(talks)) == 1
    slow = [replace(base, key=f"slow {base.key}", tokenizer=Slow(base.tokenizer)) for base in fast]
    for trial, base in zip(trials.values(), slow, strict=True):
        assert len(session.rows(trial, base)) == len(first)
    assert len(_folders(talks)) == 3


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / "spans.npy").unlink(),
        lambda folder: (folder / "ids.npy").write_bytes((folder / "ids.npy").read_bytes()[:-4]),
        lambda folder: (folder / "ids.npy").write_bytes((folder / "ids.npy").read_bytes()[:-1] + b"\x01"),
    ],
    ids=["no manifest", "no file", "short file", "changed bytes"],
)
def test_damaged_rows_are_made_again(talks: dict[str, Any], harm: Harm) -> None:
    expected = [(row.ids.tolist(), row.spans) for row in _rows(talks, _base())]
    [name] = _folders(talks)
    folder = Path(talks["storage"]) / "tokens" / name
    harm(folder)
    assert [(row.ids.tolist(), row.spans) for row in _rows(talks, _base())] == expected
    assert len(list(folder.parent.glob(".damaged-*"))) == 1
    assert _folders(talks) == [name]


def test_refused_rows_are_not_kept(talks: dict[str, Any]) -> None:
    talks["training"]["max_length"] = 8
    for overlong, message in (("refuse", r"row \d+: its prompt has"), ("drop", r"max_length 8 leaves none of 24 rows")):
        talks["training"]["overlong_rows"] = overlong
        with pytest.raises(SpecError, match=rf"datasets\.talks: {message}.*models\.tiny"):
            _rows(talks, _base())
    assert _folders(talks) == []


def test_the_one_who_comes_second_opens_what_is_there(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))

    def overtaken() -> TokenisedRows:
        kept_rows(storage, {"data": 1}, lambda: ROWS)
        return ROWS

    rows = kept_rows(storage, {"data": 1}, overtaken)
    assert (list(rows), rows.dropped) == (list(ROWS), 1)
    assert _is_mapped(rows.ids)
    assert len(list((tmp_path / "tokens").iterdir())) == 1


def test_a_storage_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("in the way")
    with pytest.raises(OSError, match="tokens"):
        kept_rows(open_storage(str(tmp_path)), {}, lambda: ROWS)


def test_rows_of_a_remote_storage_are_mapped_from_a_local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with s3_service() as service:
        for name, value in environment(service.url).items():
            monkeypatch.setenv(name, value)
        storage = open_storage(f"s3://{BUCKET}/sweep")
        kept_rows(storage, {}, lambda: ROWS)
        for _ in ("sound", "cleaned"):
            rows = kept_rows(storage, {}, lambda: pytest.fail("tokenised again"))
            assert (list(rows), _is_mapped(rows.ids)) == (list(ROWS), True)
            next(scratch.glob("raysft/*/ids.npy")).unlink()


def test_a_trial_that_asks_again_maps_nothing_again(talks: dict[str, Any]) -> None:
    sweep, base = _sweep(talks), _base()
    session = Session(sweep, torch.device("cpu"))
    trials: list[Trial] = [trial for trial in expand(sweep)[0] if trial.model == "tiny"]
    assert len({id(session.rows(trial, base)) for trial in trials}) == 1
