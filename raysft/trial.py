"""One unit of a sweep in this process, from data to committed results. Knows nothing of Ray.

A fine-tuning trains once through its epochs and is measured at the end of each epoch that the sweep asks for.
Checkpoints and results are committed as they come. A trial that was killed goes on from the last step at which its
state was kept, which is done when `RESUME_EVERY_S` seconds have passed since the last time: a short trial starts over,
a long one loses that much.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from raysft.measure import Bench, Report, measure_base, measure_checkpoint, measure_folder
from raysft.models.load import load_folder
from raysft.models.methods import Tuned, apply_method, packs, prepare
from raysft.models.micro import pretrain
from raysft.session import Session
from raysft.spec.grid import Trial
from raysft.spec.plan import Unit, Work, divergence_work
from raysft.spec.size import kept_epochs
from raysft.store.checkpoints import delete_folder, local_folder, sound_folder, write_folder
from raysft.store.layout import StorageAccessError, StorageError, checkpoint_folder, model_folder
from raysft.store.results import result_path
from raysft.store.schema import DIVERGENCE, PRETRAIN, TRAINING
from raysft.training.loop import DivergenceError, EpochStats, Hooks, Job, Progress, train
from raysft.training.parallel import ALONE, DataParallel, Engine, Ranks
from raysft.training.resume import ResumeStates
from raysft.training.zero import ZeroEngine

RESUME_EVERY_S = 60.0

Told = Callable[[str], None]


class InterruptedTrainingError(Exception):
    """A training kept its state and stopped, because its process has to go; another process goes on with it."""


def run_unit(
    session: Session,
    unit: Unit,
    works: Sequence[Work],
    epochs_apart: Collection[int] = (),
    ranks: Ranks = ALONE,
    progress: Told = lambda _: None,
    has_to_go: Callable[[], bool] = lambda: False,
) -> Report:
    """Do the missing `works` of a unit. Failures are recorded in the storage and in the report, not raised; only those
    of the storage are (StorageAccessError), and all of them in one of several `ranks`.

    `epochs_apart`: those at whose end a training leaves a checkpoint, which is not there, for another unit to measure.
    `has_to_go` is asked before each step; if it says yes, InterruptedTrainingError ends the unit, to be resumed.
    """
    report = Report()
    bench = Bench(session, report, unit.shape.size[0])
    try:
        if unit.kind == "pretrain":
            _pretrain(bench, unit, works, progress)
        elif unit.kind == "base":
            measure_base(bench, works, session.base(unit.model))
        elif unit.kind == "checkpoint":
            _measure_checkpoint(bench, unit, works)
        else:
            assert unit.trial is not None
            _FineTuning(bench, unit.trial, works, epochs_apart, ranks, progress, has_to_go).run()
    except (InterruptedTrainingError, StorageAccessError):
        session.bases.drop()
        raise  # nothing of the unit's own: it is tried again
    except Exception as error:  # whatever stopped it, it is recorded under what it was to make
        session.bases.drop()
        if ranks.count > 1:
            raise  # the group has to be torn down, for others wait in a collective; who started it records what it was
        bench.fail(first_missing(session, works), error)
    return report


def first_missing(session: Session, works: Sequence[Work]) -> Work:
    """The first work that is not committed: what a unit that broke was about to make."""
    missing = (work for work in works if not session.storage.exists(result_path(work.stage, work.key)))
    return next(missing, works[0])


def _pretrain(bench: Bench, unit: Unit, works: Sequence[Work], progress: Told) -> None:
    session = bench.session
    recipe = session.sweep.model(unit.model).micro
    assert recipe is not None
    started = time.perf_counter()
    made = []

    def save(folder: Path) -> None:
        def told(step: int, steps: int, loss: float) -> None:
            if step % max(1, steps // 10) == 0:
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


def _measure_checkpoint(bench: Bench, unit: Unit, works: Sequence[Work]) -> None:
    """Measure a checkpoint that other processes trained, and delete it if it was written only for that."""
    assert unit.trial is not None
    session, name = bench.session, checkpoint_folder(*unit.weights)
    folder = sound_folder(session.storage, name)
    if folder is None:
        raise StorageError(f"{name}: damaged or not there; run again to train it again")
    _measure_stored(bench, works, unit.trial, folder)
    is_kept = unit.epoch in kept_epochs(unit.trial, session.sweep.checkpoints.keep)
    if not is_kept and all(session.storage.exists(result_path(work.stage, work.key)) for work in works):
        delete_folder(session.storage, name)


def _measure_stored(bench: Bench, works: Sequence[Work], trial: Trial, folder: Path) -> None:
    """Measure a checkpoint's folder; no model is loaded if its weights are all that is asked for."""
    session = bench.session
    works = measure_folder(bench, works, trial, folder)
    if not works:
        return
    base = session.base(trial.model, trial.optimisation.dtype)
    tuned = apply_method(base, session.sweep.method(trial.method), trial.seed)
    try:
        tuned.load(folder)
        measure_checkpoint(bench, works, tuned)
    finally:
        tuned.detach()


class _FineTuning:
    """One trial: what of it is in the storage decides where it starts and which epochs it measures."""

    def __init__(
        self,
        bench: Bench,
        trial: Trial,
        works: Sequence[Work],
        epochs_apart: Collection[int],
        ranks: Ranks,
        progress: Told,
        has_to_go: Callable[[], bool],
    ) -> None:
        self.has_to_go = has_to_go
        self.bench = bench
        self.session = bench.session
        self.storage = bench.session.storage
        self.trial = trial
        self.ranks = ranks
        self.progress = progress
        self.resources = self.session.sweep.resources_of(trial.model, trial.method)
        self.train_work = next((work for work in works if work.stage == "train"), None)
        self.measures: dict[int, list[Work]] = {}
        for work in works:
            if work.stage != "train":
                self.measures.setdefault(work.subject.epoch or 0, []).append(work)
        self.kept = kept_epochs(trial, self.session.sweep.checkpoints.keep) | set(epochs_apart)
        self.first_needed = min([*self.measures, *epochs_apart], default=trial.epochs + 1)
        self.resume = ResumeStates(
            self.storage, trial.key, ranks, self.session.device, sharded=self.resources.strategy != "ddp"
        )

    def run(self) -> None:
        for epoch in sorted(self.measures):  # nothing is trained for those whose checkpoints are complete
            folder = sound_folder(self.storage, checkpoint_folder(self.trial.key, epoch))
            if folder is not None:
                _measure_stored(self.bench, self.measures.pop(epoch), self.trial, folder)
        if self.train_work is None and not self.measures:
            return
        base = self.session.base(self.trial.model, self.trial.optimisation.dtype)
        tuned = apply_method(base, self.session.sweep.method(self.trial.method), self.trial.seed)
        try:
            self._train(tuned)
        finally:
            if self.resources.strategy == "ddp":
                tuned.detach()
            else:
                self.session.bases.drop()  # DeepSpeed took its weights apart

    def _train(self, tuned: Tuned) -> None:
        """Train from the newest state that serves, and commit what came of it: an end or a divergence."""
        state = self.resume.newest(before=self.first_needed)
        if state is not None:
            tuned.load(state.first)
        engine = self._engine(tuned)
        if state is not None:
            engine.load_optimizer(state.own)
        progress = state.progress if state is not None else Progress()
        run = _Run(self, tuned, engine, state.history if state is not None else [], progress.running)
        diverged = False
        try:
            if not train(engine, self._job(tuned), run.hooks(), progress):
                raise InterruptedTrainingError("its process has to go; the state of its training is kept")
        except DivergenceError as error:
            if error.last_good is not None:
                self.resume.save(tuned, engine, run.history, error.last_good)
            self._commit_divergence(error)
            diverged = True
        finally:
            engine.close()
        if self.ranks.is_first:
            if self.train_work is not None:
                dropped = {"dropped_rows": self.session.rows(self.trial, tuned.base).dropped}
                table = pa.Table.from_pylist([{**asdict(stats), **dropped} for stats in run.history], schema=TRAINING)
                self.bench.commit(self.train_work, table, run.train_s)
            if not diverged:
                self.resume.forget()

    def _engine(self, tuned: Tuned) -> Engine:
        training, named = self.session.sweep.training, tuned.trainable()
        prepare(tuned, training.activation_checkpointing, training.compile, self._packed(tuned))
        if self.resources.strategy == "ddp":
            return DataParallel(tuned.model, named, self.trial.optimisation, self.ranks)
        stage = int(self.resources.strategy.removeprefix("zero"))
        return ZeroEngine(tuned.model, named, self.trial.optimisation, stage, self.resources.offload, self.ranks)

    def _job(self, tuned: Tuned) -> Job:
        return Job(
            rows=self.session.rows(self.trial, tuned.base),
            settings=self.trial.optimisation,
            seed=self.trial.seed,
            epochs=self.trial.epochs,
            pad_id=self.session.pad_id(tuned.base),
            token_budget=self.session.sweep.training.token_budget,
            device=self.session.device,
            noise=tuned.noise,
            packed=self._packed(tuned),
        )

    def _packed(self, tuned: Tuned) -> bool:
        training = self.session.sweep.training
        dtype, device = self.trial.optimisation.dtype, self.session.device
        return packs(tuned.base, training.packing, dtype, device, training.compile)

    def _commit_divergence(self, error: DivergenceError) -> None:
        """Record it as a result, so that it is known for good: the same trajectory would end there again."""
        self.measures = {epoch: works for epoch, works in self.measures.items() if epoch < error.epoch}
        if self.ranks.is_first:
            work = divergence_work(self.trial)
            row = {"in_epoch": error.epoch, "at_step": error.step, "loss": error.loss, "grad_norm": error.grad_norm}
            self.bench.commit(work, pa.Table.from_pylist([row], schema=DIVERGENCE), 0.0)
            self.bench.fail(work, error)


class _Run:
    """What happens between the epochs and steps of one training: checkpoints, measurements, states to resume from.

    `earlier` is what another process did of the epoch in flight.
    """

    def __init__(
        self,
        trial: _FineTuning,
        tuned: Tuned,
        engine: Engine,
        history: list[EpochStats],
        earlier: EpochStats | None,
    ) -> None:
        self.owner = trial
        self.tuned = tuned
        self.engine = engine
        self.history = history
        self.earlier = earlier
        self.train_s = 0.0
        self.started = self.saved_at = time.perf_counter()

    def hooks(self) -> Hooks:
        return Hooks(self._epoch_ended, self.owner.has_to_go, self._should_save, self._save)

    def _epoch_ended(self, stats: EpochStats) -> None:
        owner, epoch = self.owner, stats.at_epoch
        seconds = time.perf_counter() - self.started
        self.train_s += seconds
        owner.bench.report.add_training(stats, self.earlier, seconds)
        self.earlier = None
        self.history.append(stats)
        owner.progress(f"epoch {epoch}/{owner.trial.epochs}, loss {stats.loss:.3f}")
        if epoch in owner.kept:
            self._write_checkpoint(epoch)
        works = owner.measures.pop(epoch, [])
        if works:
            measure_checkpoint(owner.bench, works, self.tuned)
        owner.ranks.wait()
        self.started = time.perf_counter()

    def _write_checkpoint(self, epoch: int) -> None:
        owner, started = self.owner, time.perf_counter()
        weights = self.engine.gathered_weights()
        if owner.ranks.is_first:
            facts = {"trial": owner.trial.key, "epoch": epoch, "subject": str(owner.trial.identity)}
            folder = checkpoint_folder(owner.trial.key, epoch)
            write_folder(owner.storage, folder, lambda path: self.tuned.save(path, weights), facts)
        owner.bench.report.add_seconds("checkpoint", time.perf_counter() - started)

    def _should_save(self) -> bool:
        return self.owner.has_to_go() or time.perf_counter() - self.saved_at > RESUME_EVERY_S

    def _save(self, progress: Progress) -> None:
        started = time.perf_counter()
        self.owner.resume.save(self.tuned, self.engine, self.history, progress)
        self.saved_at = time.perf_counter()
        self.owner.bench.report.add_seconds("checkpoint", self.saved_at - started)
        self.started += self.saved_at - started
