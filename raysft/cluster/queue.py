"""The order of a sweep's units, as a Tune search algorithm: the next unit that can start."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from ray.tune.search import Searcher

from raysft.spec.plan import Unit


class ReadyQueue(Searcher):
    """Hands out units in the order of the plan, so that trials of one base run next to each other.

    A unit whose base model is still being pretrained waits; if that failed, it is dropped and listed in `blocked`.
    """

    def __init__(self, units: Iterable[Unit]) -> None:
        super().__init__(metric="committed", mode="max")
        self._waiting = deque(units)
        self._running: dict[str, Unit] = {}
        self._unmade = {unit.model for unit in self._waiting if unit.kind == "pretrain"}
        self._failed: set[str] = set()
        self.blocked: list[Unit] = []

    def suggest(self, trial_id: str) -> dict[str, str] | str | None:
        """Configuration of the next unit; None while every waiting unit's base is in the making."""
        self._drop_blocked()
        if not self._waiting:
            return str(Searcher.FINISHED)
        for unit in self._waiting:
            if unit.kind == "pretrain" or unit.model not in self._unmade:
                self._waiting.remove(unit)
                self._running[trial_id] = unit
                return {"unit": unit.key}
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        unit = self._running.pop(trial_id, None)
        if unit is not None and unit.kind == "pretrain":
            self._unmade.discard(unit.model)
            if error or not result or result["failures"]:
                self._failed.add(unit.model)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: an interrupted sweep is planned anew from its storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""

    def _drop_blocked(self) -> None:
        if self._failed:
            self.blocked += [unit for unit in self._waiting if unit.model in self._failed]
            self._waiting = deque(unit for unit in self._waiting if unit.model not in self._failed)
