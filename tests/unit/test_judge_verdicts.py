"""Verdicts are asked for once, whatever happens to the process, and never made up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from raysft.evaluation.judge.asks import Ask, Exchange, both_orders, compare, grade, preference
from raysft.evaluation.judge.client import Conversation, EndpointJudge, Heard, JudgeError, Reply
from raysft.evaluation.judge.spending import Spending
from raysft.evaluation.judge.verdicts import verdict_key, verdicts
from raysft.spec.judge import JudgeSpec
from raysft.store.layout import DamagedError, Storage, open_storage
from tests.judge_server import judge_service, shown_answers

pytestmark = pytest.mark.unit

SPEC = JudgeSpec(endpoint="http://127.0.0.1:9/v1", model="m", version="1", api_key_env=None, max_parallel=1)


@dataclass
class Scripted:
    """A judge that says what it is told to, in turn; `heard` are the conversations."""

    said: list[str]
    spec: JudgeSpec = SPEC
    heard: list[Conversation] = field(default_factory=list)

    def ask(self, conversations: Sequence[Conversation], spending: Spending, heard: Heard) -> None:
        for index, conversation in enumerate(conversations):
            self.heard.append(conversation)
            heard(index, Reply(self.said.pop(0), 10, 1))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "storage"))


def _asks(count: int) -> list[Ask]:
    return [grade(Exchange((f"question {number}",), ("answer",))) for number in range(count)]


def _hear(asks: Sequence[Ask], judge: Scripted, storage: Storage) -> list[float | None]:
    with Spending(storage, judge.spec) as spending:
        return verdicts(asks, judge, storage, spending)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Fine. [[7]]", 7.0),
        ("[[ 7.5 ]]", 7.5),
        ("It is no [[3]], rather\n[[8]]", 8.0),
        ("[[10]]", 10.0),
        ("[[0]]", None),
        ("[[11]]", None),
        ("7/10", None),
        ("[[A]]", None),
        ("", None),
    ],
)
def test_a_grade_is_the_last_number_in_double_brackets(reply: str, verdict: float | None) -> None:
    assert _asks(1)[0].read(reply) == verdict


@pytest.mark.parametrize(
    ("reply", "verdict"), [("[[A]]", 1.0), ("B is [[B]]", 0.0), ("[[C]]", 0.5), ("[[7]]", None), ("A", None)]
)
def test_a_decision_is_a_letter_in_double_brackets(reply: str, verdict: float | None) -> None:
    exchange = Exchange(("question",), ("answer",))
    assert compare(exchange, exchange).read(reply) == verdict


def test_only_a_preference_that_outlasts_the_order_is_one() -> None:
    assert [preference(1, 0), preference(0, 1), preference(0.5, 0.5)] == [1, 0, 0.5]
    assert [preference(1, 1), preference(0, 0), preference(1, 0.5)] == [0.5, 0.5, 0.5]
    assert [preference(None, 0), preference(1, None)] == [None, None]


def test_both_orders_show_both_answers_once_first() -> None:
    ours, theirs = Exchange(("q",), ("ours",)), Exchange(("q",), ("theirs",))
    shown = [shown_answers([dict(message) for message in ask.messages]) for ask in both_orders(ours, theirs)]
    assert shown == [("ours", "theirs"), ("theirs", "ours")]


def test_an_answer_is_shown_as_it_is_whatever_it_holds() -> None:
    answer = "{question} {answer} {0} {{}} \\1"
    text = grade(Exchange(("the {answer}?",), (answer,)), reference="{question}").messages[1]["content"]
    assert f"<answer>\n{answer}\n</answer>" in text
    assert "<question>\nthe {answer}?\n</question>" in text
    assert "<correct_answer>\n{question}\n</correct_answer>" in text


def test_the_second_turn_is_judged_with_the_first_before_it() -> None:
    text = grade(Exchange(("q one", "q two"), ("a one", "a two"))).messages[1]["content"]
    places = [text.index(part) for part in ("q one", "a one", "q two", "a two")]
    assert places == sorted(places)
    assert text.index("<second_answer>\na two") > 0


def test_equal_asks_are_one_and_nothing_is_asked_twice(storage: Storage) -> None:
    judge = Scripted(["[[3]]", "[[4]]"])
    first, second = _asks(2)
    assert _hear([first, second, first], judge, storage) == [3, 4, 3]
    assert _hear([second, first], Scripted([]), storage) == [4, 3]


def test_another_judge_version_or_answer_is_another_verdict() -> None:
    ask, other = _asks(2)
    known = verdict_key(ask, SPEC)
    changes = [{"model": "n"}, {"version": "2"}, {"temperature": 0.5}, {"max_tokens": 99}, {"asks": 1}]
    keys = {verdict_key(ask, SPEC.model_copy(update=change)) for change in changes}
    assert len(keys | {known, verdict_key(other, SPEC)}) == 7
    how = {"endpoint": "http://127.0.0.1:8/v1", "max_parallel": 9, "retries": 1, "timeout_s": 3.0, "spending_cap": 1.0}
    assert verdict_key(ask, SPEC.model_copy(update=how)) == known


def test_a_reply_without_a_verdict_is_asked_for_again_in_the_same_conversation(storage: Storage) -> None:
    judge = Scripted(["It is good.", "[[6]]"])
    assert _hear(_asks(1), judge, storage) == [6]
    assert [message["role"] for message in judge.heard[1]] == ["system", "user", "assistant", "user"]
    assert judge.heard[1][2]["content"] == "It is good."
    assert "[[5]]" in judge.heard[1][3]["content"]


def test_a_judge_that_never_gives_a_verdict_is_kept_as_unreadable(storage: Storage) -> None:
    judge = Scripted(["no"] * 3)
    assert _hear(_asks(1), judge, storage) == [None]
    assert len(judge.heard) == SPEC.asks == 3
    assert _hear(_asks(1), Scripted([]), storage) == [None]
    (path,) = storage.local_path("verdicts").glob("*/*.json")
    record = json.loads(path.read_text())
    assert (record["verdict"], record["asked"], record["input_tokens"], record["output_tokens"]) == (None, 3, 30, 3)


def test_of_two_processes_that_asked_the_same_the_first_counts(storage: Storage) -> None:
    class Slower(Scripted):
        def ask(self, conversations: Sequence[Conversation], spending: Spending, heard: Heard) -> None:
            assert _hear(_asks(1), Scripted(["[[9]]"]), storage) == [9]
            super().ask(conversations, spending, heard)

    assert _hear(_asks(1), Slower(["[[2]]"]), storage) == [9]


def test_a_damaged_verdict_is_named(storage: Storage) -> None:
    key = verdict_key(_asks(1)[0], SPEC)
    storage.write_bytes(b"{", "verdicts", key[:2], f"{key}.json")
    with pytest.raises(DamagedError, match=rf"verdicts/{key[:2]}/{key}\.json: not a verdict"):
        _hear(_asks(1), Scripted([]), storage)


def test_what_was_judged_before_a_failure_is_not_asked_again(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with judge_service() as server:
        spec = SPEC.model_copy(update={"endpoint": server.url, "max_parallel": 2})
        server.fault("refuse", times=99, after=7)
        judge, asks = EndpointJudge(spec, sleep=lambda _: None), _asks(20)
        with Spending(storage, spec) as spending:
            with pytest.raises(JudgeError):
                verdicts(asks, judge, storage, spending)
            server.mend()
            refused = len(server.requests) - 7
            assert verdicts(asks, judge, storage, spending) == [7.0] * 20
        assert len(server.requests) == 20 + refused
