"""One unit of a sweep in this process, from data to committed results. Knows nothing of Ray.

A fine-tuning trains once through its epochs and is measured at the end of each epoch that the sweep asks for, while the
model is in memory. Checkpoints and results are committed as they come. A trial that was killed trains again from the
last epoch at which the optimiser's state was kept, which is done when `RESUME_EVERY_S` seconds have passed since the
last time: a short trial starts over, a long one loses that much and the epoch in flight.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import torch

from raysft.measure import Bench, Report, measure_base, measure_checkpoint
from raysft.models.load import Base, load_folder
from raysft.models.methods import Tuned, apply_method
from raysft.models.micro import pretrain
from raysft.session import Session
from raysft.spec.grid import Trial
from raysft.spec.plan import Unit, Work
from raysft.store.checkpoints import delete_folder, local_folder, sound_folder, write_folder
from raysft.store.layout import checkpoint_folder, model_folder
from raysft.store.results import result_path
from raysft.store.schema import PRETRAIN, TRAINING
from raysft.training.loop import EpochStats, Job, make_optimizer, train
from raysft.training.parallel import ALONE, Ranks
from raysft.training.state import load_state, save_state

RESUME_EVERY_S = 60.0
_HISTORY = "history.json"

Progress = Callable[[str], None]


def run_unit(
    session: Session,
    unit: Unit,
    works: Sequence[Work],
    ranks: Ranks = ALONE,
    progress: Progress = lambda _: None,
) -> Report:
    """Do the missing `works` of a unit. Failures are recorded in the storage and in the report, not raised."""
    report = Report()
    bench = Bench(session, report)
    try:
        if unit.kind == "pretrain":
            _pretrain(bench, unit, works, progress)
        elif unit.kind == "base":
            measure_base(bench, works, session.base(unit.model))
        else:
            assert unit.trial is not None
            _FineTuning(bench, unit.trial, works, ranks, progress).run()
    except Exception as error:  # whatever stopped it, it is recorded under what it was to make
        session.bases.drop()
        bench.fail(_first_missing(session, works), error)
        if ranks.count > 1:
            raise  # the other ranks wait in a collective: the group has to be torn down
    return report


def _first_missing(session: Session, works: Sequence[Work]) -> Work:
    """The first work that is not committed: what a unit that broke was about to make."""
    missing = (work for work in works if not session.storage.exists(result_path(work.stage, work.key)))
    return next(missing, works[0])


def _pretrain(bench: Bench, unit: Unit, works: Sequence[Work], progress: Progress) -> None:
    session = bench.session
    recipe = session.sweep.model(unit.model).micro
    assert recipe is not None
    started = time.perf_counter()
    made = []

    def save(folder: Path) -> None:
        def told(step: int, steps: int, loss: float) -> None:
            progress(f"step {step}/{steps}, loss {loss:.3f}")

        made.append(pretrain(recipe, folder, told))

    folder = model_folder(unit.key)
    there = sound_folder(session.storage, folder)
    if there is None:
        write_folder(session.storage, folder, save, {"recipe": recipe.model_dump(mode="json")})
    if not made:  # the folder is there but its result is not: a kill came between the two
        model, _ = load_folder(str(there or local_folder(session.storage, folder)), "float32")
        row = {"parameters": model.num_parameters(), "tokens": None, "loss": None}
    else:
        row = {"parameters": made[0].parameters, "tokens": made[0].tokens, "loss": made[0].loss}
    table = pa.Table.from_pylist([{"folder": folder, "family": recipe.family, **row}], schema=PRETRAIN)
    bench.commit(works[0], table, time.perf_counter() - started)


class _FineTuning:
    """One trial: what of it is in the storage decides where it starts and which epochs it measures."""

    def __init__(self, bench: Bench, trial: Trial, works: Sequence[Work], ranks: Ranks, progress: Progress) -> None:
        self.bench = bench
        self.session = bench.session
        self.storage = bench.session.storage
        self.trial = trial
        self.ranks = ranks
        self.progress = progress
        self.train_work = next((work for work in works if work.stage == "train"), None)
        self.measures: dict[int, list[Work]] = {}
        for work in works:
            if work.stage != "train":
                self.measures.setdefault(work.subject.epoch or 0, []).append(work)
        keep = self.session.sweep.checkpoints.keep
        # The last epoch's weights are needed after the trial too, by the streamed hidden states.
        self.kept = {*(trial.measured if keep == "measured" else ()), trial.epochs}
        self.history: list[EpochStats] = []
        self.train_s = 0.0
        self.saved_at = time.perf_counter()

    def run(self) -> None:
        base = self.session.base(self.trial.model)
        method = self.session.sweep.method(self.trial.method)
        tuned = apply_method(base, method, self.trial.seed)
        try:
            self._measure_stored(tuned)
            if self.train_work is not None or self.measures:
                tuned.detach()
                tuned = apply_method(base, method, self.trial.seed)
                self._train(tuned, base)
        finally:
            tuned.detach()

    def _measure_stored(self, tuned: Tuned) -> None:
        """Measure the epochs whose checkpoints are complete: nothing is trained for those."""
        for epoch in sorted(self.measures):
            folder = sound_folder(self.storage, checkpoint_folder(self.trial.key, epoch))
            if folder is not None:
                works = self.measures.pop(epoch)
                if self.ranks.is_first:
                    tuned.load(folder)
                    measure_checkpoint(self.bench, works, tuned)

    def _train(self, tuned: Tuned, base: Base) -> None:
        trial, sweep = self.trial, self.session.sweep
        job = Job(
            rows=self.session.rows(trial, base),
            settings=trial.optimisation,
            seed=trial.seed,
            epochs=trial.epochs,
            pad_id=self.session.pad_id(base),
            token_budget=sweep.training.token_budget,
            device=self.session.device,
        )
        named = tuned.trainable()
        optimizer = make_optimizer([parameter for _, parameter in named], trial.optimisation)
        done = self._resume(tuned, optimizer)
        started = time.perf_counter()

        def epoch_ended(stats: EpochStats) -> None:
            nonlocal started
            self.train_s += time.perf_counter() - started
            self.history.append(stats)
            self.progress(f"epoch {stats.at_epoch}/{trial.epochs}, loss {stats.loss:.3f}")
            if self.ranks.is_first:
                self._checkpoint(tuned, optimizer, stats.at_epoch)
            self.ranks.wait()
            started = time.perf_counter()

        train(tuned.model, optimizer, job, epoch_ended, self.ranks, done)
        if self.ranks.is_first:
            if self.train_work is not None:
                table = pa.Table.from_pylist([asdict(stats) for stats in self.history], schema=TRAINING)
                self.bench.commit(self.train_work, table, self.train_s)
            self._forget_resume_states(keep=None)

    def _checkpoint(self, tuned: Tuned, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """Keep the weights of an epoch if the sweep wants them, measure them, and keep a state to resume from."""
        if epoch in self.kept:
            started = time.perf_counter()
            facts = {"trial": self.trial.key, "epoch": epoch, "subject": str(self.trial.identity)}
            write_folder(self.storage, checkpoint_folder(self.trial.key, epoch), tuned.save, facts)
            self.bench.report.add_seconds("checkpoint", time.perf_counter() - started)
        works = self.measures.pop(epoch, [])
        if works:
            measure_checkpoint(self.bench, works, tuned)
        if time.perf_counter() - self.saved_at > RESUME_EVERY_S and epoch < self.trial.epochs:
            self._keep_resume_state(tuned, optimizer, epoch)

    def _keep_resume_state(self, tuned: Tuned, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        def save(folder: Path) -> None:
            tuned.save(folder)
            save_state(folder, optimizer, tuned.trainable(), epoch)
            (folder / _HISTORY).write_text(json.dumps([asdict(stats) for stats in self.history]))

        write_folder(self.storage, self._resume_folder(epoch), save, {"trial": self.trial.key, "epoch": epoch})
        self._forget_resume_states(keep=epoch)
        self.saved_at = time.perf_counter()

    def _resume(self, tuned: Tuned, optimizer: torch.optim.Optimizer) -> int:
        """Take over the newest state that leaves every missing epoch still to come; returns the epochs it has done."""
        first_missing = min(self.measures, default=self.trial.epochs + 1)
        for epoch in sorted(self._resume_epochs(), reverse=True):
            folder = sound_folder(self.storage, self._resume_folder(epoch)) if epoch < first_missing else None
            if folder is not None:
                tuned.load(folder)
                self.history = [EpochStats(**stats) for stats in json.loads((folder / _HISTORY).read_text())]
                return load_state(folder, optimizer, tuned.trainable())
        return 0

    def _resume_folder(self, epoch: int) -> str:
        return f"checkpoints/{self.trial.key}/resume-{epoch:04d}"

    def _resume_epochs(self) -> list[int]:
        names = self.storage.names("checkpoints", self.trial.key)
        return [int(name.removeprefix("resume-")) for name in names if name.startswith("resume-")]

    def _forget_resume_states(self, keep: int | None) -> None:
        for epoch in self._resume_epochs():
            if epoch != keep:
                delete_folder(self.storage, self._resume_folder(epoch))
