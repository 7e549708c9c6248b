"""States that a killed training goes on from, in the sweep's storage: weights, optimiser, position, finished epochs.

Protocol. The state after step n is the folder `checkpoints/<trial>/resume-<n>-<rank>of<count>`, one for each rank that
has an optimiser state of its own, each with a manifest. The first rank's also holds weights and history. A state counts
when the folders of all ranks are sound; once they are written, older ones are deleted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from raysft.models.methods import Tuned
from raysft.store.checkpoints import delete_folder, sound_folder, write_folder
from raysft.store.layout import Storage
from raysft.training.loop import EpochStats, Progress
from raysft.training.parallel import Engine, Ranks

_POSITION_FILE = "position.json"
_FOLDER = re.compile(r"resume-(\d+)-(\d+)of(\d+)")


@dataclass(frozen=True)
class State:
    """A kept state: the folders of the first rank and of this one, the finished epochs, and the position."""

    first: Path
    own: Path
    history: list[EpochStats]
    progress: Progress


class ResumeStates:
    """The kept states of one trial. `sharded`: each rank has an optimiser state of its own."""

    def __init__(self, storage: Storage, trial: str, ranks: Ranks, device: torch.device, sharded: bool) -> None:
        self._storage = storage
        self._trial = trial
        self._ranks = ranks
        self._device = device
        self._sharded = sharded

    def save(self, tuned: Tuned, engine: Engine, history: Sequence[EpochStats], progress: Progress) -> None:
        """Keep the state of this moment, and forget those before. Every rank must call this."""
        weights = engine.gathered_weights()

        def write(folder: Path) -> None:
            engine.save_optimizer(folder)
            if self._ranks.is_first:
                tuned.save(folder, weights)
                position = {**progress.as_json(), "history": [asdict(stats) for stats in history]}
                (folder / _POSITION_FILE).write_text(json.dumps(position))

        if self._sharded or self._ranks.is_first:
            facts = {"trial": self._trial, "steps": progress.steps}
            write_folder(self._storage, self._folder(progress.steps, self._ranks.rank), write, facts)
        self._ranks.wait()
        if self._ranks.is_first:
            self.forget(but=progress.steps)

    def newest(self, before: int) -> State | None:
        """The newest state with all epochs from `before` on still to be finished. Every rank must call this."""
        for steps in sorted(self._steps(), reverse=True):
            first = sound_folder(self._storage, self._folder(steps, 0))
            own = sound_folder(self._storage, self._folder(steps, self._ranks.rank if self._sharded else 0))
            whole = self._ranks.agree(first is not None and own is not None, self._device)
            if not whole or first is None or own is None:
                continue
            position = json.loads((first / _POSITION_FILE).read_text())
            history = [EpochStats(**stats) for stats in position.pop("history")]
            if len(history) < before:
                return State(first, own, history, Progress.from_json(position))
        return None

    def forget(self, but: int | None = None) -> None:
        """Delete all states but the one after step `but`."""
        for name in self._storage.names("checkpoints", self._trial):
            found = _FOLDER.fullmatch(name)
            if found and int(found[1]) != but:
                delete_folder(self._storage, f"checkpoints/{self._trial}/{name}")

    def _steps(self) -> set[int]:
        names = self._storage.names("checkpoints", self._trial)
        return {int(found[1]) for name in names if (found := _FOLDER.fullmatch(name))}

    def _folder(self, steps: int, rank: int) -> str:
        count = self._ranks.count if self._sharded else 1
        return f"checkpoints/{self._trial}/resume-{steps:08d}-{rank}of{count}"
