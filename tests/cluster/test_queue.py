"""The order in which units are handed out."""

from __future__ import annotations

from typing import Any

import pytest
from ray.tune.search import Searcher

from raysft.cluster.queue import ReadyQueue
from raysft.spec.plan import Unit, make_plan
from raysft.spec.sweep import parse_sweep

pytestmark = pytest.mark.unit


@pytest.fixture
def units(content: dict[str, Any]) -> list[Unit]:
    second = {"name": "second", "micro": {"family": "qwen3", "corpus": {"addition": 1.0}, "steps": 8}}
    content["models"].append(second)
    return list(make_plan(parse_sweep(content, "test")).units)


def _next(queue: ReadyQueue, trial: str, units: list[Unit]) -> Unit | None:
    suggested = queue.suggest(trial)
    return next(unit for unit in units if unit.key == suggested["unit"]) if isinstance(suggested, dict) else None


def test_a_unit_waits_for_its_base_and_no_longer(units: list[Unit]) -> None:
    queue = ReadyQueue(units)
    first, second = _next(queue, "1", units), _next(queue, "2", units)
    assert [unit.kind for unit in (first, second) if unit] == ["pretrain", "pretrain"]
    assert queue.suggest("3") is None
    queue.on_trial_complete("2", {"failures": []})
    third = _next(queue, "3", units)
    assert third is not None
    assert (third.model, third.kind) == ("second", "base")


def test_units_that_lost_their_base_are_dropped_and_named(units: list[Unit]) -> None:
    queue = ReadyQueue(units)
    queue.suggest("1")
    queue.suggest("2")
    queue.on_trial_complete("1", {"failures": [{"message": "broken"}]})
    queue.on_trial_complete("2", None, error=True)
    assert queue.suggest("3") == Searcher.FINISHED
    assert len(queue.blocked) == len(units) - 2


def test_everything_is_handed_out_once(units: list[Unit]) -> None:
    ready = [unit for unit in units if unit.kind != "pretrain"]
    queue = ReadyQueue(ready)
    handed = [_next(queue, str(index), units) for index in range(len(ready))]
    assert handed == ready
    assert queue.suggest("more") == Searcher.FINISHED
