"""The plan: every result a sweep asks for, minus what the storage holds.

A `Work` is one result to commit. Works that need the same model in memory are one `Unit`, which is one Ray Tune trial:
`pretrain` makes a tiny base model, `base` measures a base model, `fine_tune` trains and measures. A trial whose workers
cannot measure in place (`Held.measures_in_place`) only trains, and each of its measured epochs is a unit of kind
`checkpoint` with resources of its own. Works on hidden states are not in units: Ray Data streams them
(`Plan.geometry`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from raysft.spec.benchmarks import task_identity
from raysft.spec.grid import BlockCount, Trial, expand
from raysft.spec.keys import (
    GENERATED_TEXT_VERSION,
    Identity,
    dataset_identity,
    file_digest,
    key_of,
    model_identity,
)
from raysft.spec.resources import Shape
from raysft.spec.sweep import ModelSpec, Sweep, resolved_yaml
from raysft.spec.templates import evaluation_template, training_template
from raysft.store.checkpoints import is_complete
from raysft.store.layout import (
    REPORT_FILE,
    REPORT_SPEC_FILE,
    Storage,
    checkpoint_folder,
    embeddings_folder,
    model_folder,
)
from raysft.store.results import read_result, scan_results
from raysft.store.schema import RESULTS

# Texts that ship with the package: the default of the likelihood probe, and the origin of similarities.
SHIPPED_TEXTS = Path(__file__).parent.parent / "probes" / "texts.txt"

UnitKind = Literal["pretrain", "base", "fine_tune", "checkpoint"]


@dataclass(frozen=True)
class Subject:
    """Identity columns of a result (see `raysft.store.schema.IDENTITY`); null where they do not apply."""

    model: str
    trial: str | None = None
    dataset: str | None = None
    method: str | None = None
    size: int | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    epochs: int | None = None
    seed: int | None = None
    epoch: int | None = None
    template: str | None = None

    def as_row(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        parts = [self.model, self.dataset, self.method]
        text = " x ".join(part for part in parts if part)
        if self.trial is not None:
            text += f" (size {self.size or 'all'}, {self.schedule}, {self.epochs} epochs, seed {self.seed})"
        return text


@dataclass(frozen=True)
class Work:
    """One result to commit. `about` is the task, for stages that are done per benchmark task, or the dataset whose
    texts are embedded; `source` is the key of the embeddings that an intrinsic dimension is estimated from, and
    `as_in` the trial whose template and maximum length those texts have."""

    stage: str
    key: str
    subject: Subject
    about: str | None = None
    source: str | None = None
    as_in: str | None = None


@dataclass(frozen=True)
class Unit:
    """Works done in one go, with the model loaded once, by processes of this shape. `epoch`: of a checkpoint."""

    key: str
    kind: UnitKind
    model: str
    works: tuple[Work, ...]
    shape: Shape
    trial: Trial | None = None
    epoch: int | None = None

    @property
    def subject(self) -> Subject:
        return trial_subject(self.trial, self.epoch) if self.trial is not None else Subject(self.model)

    @property
    def weights(self) -> tuple[str, int]:
        """(key of the trial, epoch) of the checkpoint that a unit of kind `checkpoint` measures."""
        assert self.trial is not None
        assert self.epoch is not None
        return self.trial.key, self.epoch

    def __str__(self) -> str:
        what = "pretrain " if self.kind == "pretrain" else "" if self.kind == "fine_tune" else "measure "
        return f"{what}{self.subject}" + (f", epoch {self.epoch}" if self.epoch is not None else "")


@dataclass(frozen=True)
class Plan:
    """All units of a sweep in the order they should run, and which of their works are committed already.

    `diverged` maps trials whose training came to a loss that is not finite to the epoch in which it did: what was to be
    measured from there on cannot be had, and is neither missing nor done.

    `lost` are trials that were trained and whose checkpoints are not all in the storage although something is still to
    be measured of them by another process than the one that trains: they are trained again, which commits nothing new
    but the checkpoints.
    """

    sweep: Sweep
    trials: tuple[Trial, ...]
    blocks: tuple[BlockCount, ...]
    units: tuple[Unit, ...]
    geometry: tuple[Work, ...]
    committed: frozenset[tuple[str, str]] = frozenset()
    damaged: tuple[str, ...] = ()
    lost: frozenset[str] = frozenset()
    diverged: Mapping[str, int] = field(default_factory=dict)

    def is_done(self, work: Work) -> bool:
        return (work.stage, work.key) in self.committed

    def missing_works(self, unit: Unit) -> list[Work]:
        """Works of a unit that are to be done."""
        return [work for work in unit.works if self._is_missing(work)]

    def _is_missing(self, work: Work) -> bool:
        if work.stage == "train" and work.subject.trial in self.lost:
            return True
        return not self.is_done(work) and self.can_be_had(work)

    def can_be_had(self, work: Work) -> bool:
        """Whether there can be such a result: not after the epoch in which its trial diverged."""
        ended = self.diverged.get(work.subject.trial or "")
        return ended is None or work.subject.epoch is None or work.subject.epoch < ended

    def missing_units(self) -> list[Unit]:
        """Units with work to do, in order; a base model that is only needed by finished work is not pretrained."""
        needed = {unit.model for unit in self.units if unit.kind != "pretrain" and self.missing_works(unit)}
        needed |= {work.subject.model for work in self.missing_geometry()}
        return [
            unit
            for unit in self.units
            if self.missing_works(unit) and (unit.kind != "pretrain" or unit.model in needed)
        ]

    def missing_trials(self) -> list[Trial]:
        """Trials that are still to be trained or measured in place, in order."""
        return [unit.trial for unit in self.missing_units() if unit.trial is not None and unit.kind == "fine_tune"]

    def works_apart(self) -> dict[str, dict[int, list[Work]]]:
        """Trial -> epoch -> works that other units are still to do on the checkpoint of that epoch."""
        found: dict[str, dict[int, list[Work]]] = {}
        for unit in self.units:
            if unit.kind == "checkpoint" and (works := self.missing_works(unit)):
                trial, epoch = unit.weights
                found.setdefault(trial, {})[epoch] = works
        return found

    def missing_geometry(self) -> list[Work]:
        """Intrinsic dimensions to estimate; embeddings are only a step on the way, and are not kept by default."""
        return [work for work in self.geometry if work.stage == "intrinsic_dimension" and self._is_missing(work)]

    def works(self) -> Iterator[Work]:
        """Every work that can be had."""
        every = [*(work for unit in self.units for work in unit.works), *self.geometry]
        return (work for work in every if self.can_be_had(work))

    def count_by_stage(self) -> dict[str, tuple[int, int]]:
        """Stage -> (done, planned)."""
        planned = Counter(work.stage for work in self.works())
        done = Counter(work.stage for work in self.works() if self.is_done(work))
        return {stage: (done[stage], planned[stage]) for stage in RESULTS if planned[stage]}


def make_plan(sweep: Sweep, storage: Storage | None = None) -> Plan:
    """Plan a sweep; what `storage` holds is marked as committed. Reads local files and the storage, no network."""
    trials, blocks = expand(sweep)
    models = [model for model in sweep.models if any(trial.model == model.name for trial in trials)]
    units = [unit for model in models if (unit := _pretrain_unit(sweep, model)) is not None]
    for model in models:
        own = [trial for trial in trials if trial.model == model.name]
        units.append(_base_unit(sweep, model, own))
        units.extend(unit for trial in own for unit in _fine_tune_units(sweep, trial))
    committed: set[tuple[str, str]] = set()
    damaged: list[str] = []
    for stage in RESULTS if storage is not None else ():
        assert storage is not None
        scan = scan_results(storage, stage)
        committed.update((stage, key) for key in scan.committed)
        damaged.extend(scan.damaged)
    geometry = tuple(_geometry(sweep, models, trials))
    lost: frozenset[str] = frozenset()
    diverged: dict[str, int] = {}
    if storage is not None:
        diverged = _diverged(trials, committed, storage)
        committed -= {
            ("pretrain", unit.key) for unit in units if unit.kind == "pretrain" and not _is_made(unit, storage)
        }
        lost = frozenset(_lost_trials(units, geometry, committed, storage)) - diverged.keys()
    return Plan(
        sweep,
        tuple(trials),
        tuple(blocks),
        tuple(units),
        geometry,
        frozenset(committed),
        tuple(damaged),
        lost,
        diverged,
    )


def divergence_work(trial: Trial) -> Work:
    """The record that a trajectory ends in a loss that is not finite; it says nothing of how long it was to be."""
    return Work("divergence", key_of("divergence", trial.identity), trial_subject(trial))


def _diverged(trials: Iterable[Trial], committed: set[tuple[str, str]], storage: Storage) -> dict[str, int]:
    """Trial -> epoch of its divergence; one that was to end before is no concern of this sweep's."""
    found = {}
    for trial in trials:
        work = divergence_work(trial)
        if (work.stage, work.key) in committed:
            epoch = read_result(storage, work.stage, work.key).column("in_epoch")[0].as_py()
            if epoch <= trial.epochs:
                found[trial.key] = epoch
    return found


def _is_made(unit: Unit, storage: Storage) -> bool:
    """Whether a pretrained base is really there: a result alone does not load."""
    return is_complete(storage, model_folder(unit.key))


def _lost_trials(
    units: Iterable[Unit], geometry: Iterable[Work], committed: set[tuple[str, str]], storage: Storage
) -> Iterator[str]:
    works = (work for unit in units for work in unit.works if work.stage == "train")
    trained = {work.subject.trial for work in works if (work.stage, work.key) in committed}
    for trial, epoch in _waiting_for_weights(units, geometry, committed, storage):
        if trial in trained and not is_complete(storage, checkpoint_folder(trial, epoch)):
            yield trial


def _waiting_for_weights(
    units: Iterable[Unit], geometry: Iterable[Work], committed: set[tuple[str, str]], storage: Storage
) -> Iterator[tuple[str, int]]:
    """(trial, epoch) of the checkpoints that another process than the one that trains is still to read."""
    for unit in units:
        if unit.kind == "checkpoint" and any((work.stage, work.key) not in committed for work in unit.works):
            yield unit.weights
    for work in geometry:
        trial, epoch = work.subject.trial, work.subject.epoch
        if work.stage != "intrinsic_dimension" or (work.stage, work.key) in committed or trial is None or epoch is None:
            continue
        if not is_complete(storage, embeddings_folder(work.source or "")):
            yield trial, epoch


def is_up_to_date(plan: Plan, storage: Storage) -> bool:
    """Whether nothing of the plan is missing and the storage's report is of this very sweep."""
    if plan.missing_units() or plan.missing_geometry() or plan.damaged:
        return False
    if not (storage.exists(REPORT_SPEC_FILE) and storage.exists(REPORT_FILE)):
        return False
    return storage.read_bytes(REPORT_SPEC_FILE).decode() == resolved_yaml(plan.sweep)


def nothing_missing(plan: Plan) -> str:
    """A line for people that says that a sweep is done."""
    total = sum(planned for _, planned in plan.count_by_stage().values())
    return f"Nothing is missing: all {total} results of {len(plan.trials)} trials are in {plan.sweep.storage}"


def model_key(model: ModelSpec) -> str:
    """Key of a base model, under which a pretrained one is stored."""
    return key_of("pretrain", model_identity(model))


def trial_subject(trial: Trial, epoch: int | None = None) -> Subject:
    """Identity columns of a trial, or of its checkpoint at the end of `epoch`."""
    return Subject(
        model=trial.model,
        trial=trial.key,
        dataset=trial.dataset,
        method=trial.method,
        size=trial.size,
        learning_rate=trial.optimisation.learning_rate,
        schedule=trial.optimisation.schedule,
        epochs=trial.epochs,
        seed=trial.seed,
        epoch=epoch,
        template=trial.identity["optimisation"]["template"],
    )


def likelihood_identity(sweep: Sweep) -> Identity:
    """What the fixed text set of the log-likelihood probe is."""
    probe = sweep.probes.log_likelihood
    assert probe is not None
    if probe.texts == "skills":
        texts = f"skills {GENERATED_TEXT_VERSION}"
    else:
        path = SHIPPED_TEXTS if probe.texts == "shipped" else Path(probe.texts)
        texts = file_digest(path, "probes.log_likelihood.texts")
    return {"texts": texts, "max_length": probe.max_length}


def text_count(sweep: Sweep, dataset: str, size: int | None) -> int:
    """Training texts whose geometry is measured, at most: the probe's number, or all that the trial saw."""
    probe = sweep.probes.intrinsic_dimension
    assert probe is not None
    mixture = sweep.dataset(dataset).mixture
    members = 1 if mixture is None else len(mixture.members)
    return probe.texts if size is None else min(probe.texts, size * members)


def _pretrain_unit(sweep: Sweep, model: ModelSpec) -> Unit | None:
    if model.micro is None:
        return None
    key = model_key(model)
    works = (Work("pretrain", key, Subject(model.name)),)
    return Unit(key, "pretrain", model.name, works, sweep.resources.measuring_shape)


def _base_unit(sweep: Sweep, model: ModelSpec, trials: list[Trial]) -> Unit:
    identity = model_identity(model)
    base = Subject(model.name, epoch=0)
    works = list(_checkpoint_works(sweep, {"model": identity}, base))
    probe = sweep.probes.perplexity
    for name in dict.fromkeys(trial.dataset for trial in trials) if probe is not None else ():
        assert probe is not None
        subject = Subject(model.name, dataset=name)
        data = dataset_identity(sweep, sweep.dataset(name))
        options = {"model": identity, "dataset": data, "rows": probe.rows, "template": training_template(sweep).digest}
        options["max_length"] = sweep.training.max_length
        reference = file_digest(SHIPPED_TEXTS, "reference texts")
        works.append(Work("perplexity", key_of("perplexity", options), subject))
        for task in sweep.evaluation.tasks:
            key = key_of("similarity", {**options, "benchmark": task_identity(sweep, task), "reference": reference})
            works.append(Work("similarity", key, subject, about=task))
    key = key_of("evaluate", {"unit": identity})
    return Unit(key, "base", model.name, tuple(works), sweep.resources.measuring_shape)


def _fine_tune_units(sweep: Sweep, trial: Trial) -> Iterator[Unit]:
    """One unit that trains and measures, or one that trains and one for each epoch that is measured."""
    held = sweep.resources_of(trial.model, trial.method)
    works = [Work("train", key_of("train", trial.train_identity), trial_subject(trial))]
    apart = []
    for epoch in trial.measured:
        identity = {"trial": trial.identity, "epoch": epoch}
        subject = trial_subject(trial, epoch)
        own = list(_checkpoint_works(sweep, identity, subject))
        if sweep.probes.weight_change is not None:
            own.append(Work("weight_change", key_of("weight_change", identity), subject))
        if held.measures_in_place:
            works += own
        elif own:
            key, shape = f"{trial.key}-{epoch}", sweep.resources.measuring_shape
            apart.append(Unit(key, "checkpoint", trial.model, tuple(own), shape, trial, epoch))
    yield Unit(trial.key, "fine_tune", trial.model, tuple(works), held.shape, trial)
    yield from apart


def _checkpoint_works(sweep: Sweep, identity: Identity, subject: Subject) -> Iterable[Work]:
    """What is measured of a checkpoint with its model in memory; the likelihood vector of base and last epoch only."""
    template = evaluation_template(sweep)
    around: Identity = {} if template is None else {"template": template.digest}
    for task in sweep.evaluation.tasks:
        key = key_of("evaluate", {"checkpoint": identity, "benchmark": task_identity(sweep, task), **around})
        yield Work("evaluate", key, subject, about=task)
    if sweep.probes.log_likelihood is not None and subject.epoch in (0, subject.epochs):
        key = key_of("log_likelihood", {"checkpoint": identity, **likelihood_identity(sweep)})
        yield Work("log_likelihood", key, subject)


def _geometry(sweep: Sweep, models: list[ModelSpec], trials: list[Trial]) -> Iterable[Work]:
    """Intrinsic dimension of each trial's training texts, in its base and at its last epoch."""
    probe = sweep.probes.intrinsic_dimension
    if probe is None:
        return
    order = {model.name: index for index, model in enumerate(models)}
    seen = set()
    for trial in sorted(trials, key=lambda trial: order[trial.model]):
        texts = {
            "dataset": trial.identity["dataset"],
            "texts": text_count(sweep, trial.dataset, trial.size),
            "template": trial.identity["optimisation"]["template"],
            "max_length": trial.optimisation.max_length,
        }
        base = Subject(trial.model, dataset=trial.dataset, size=trial.size, epoch=0)
        last = trial_subject(trial, trial.epochs)
        for subject, identity in (
            (base, {"model": trial.identity["model"]}),
            (last, {"trial": trial.identity, "epoch": trial.epochs}),
        ):
            embedded = {"checkpoint": identity, **texts}
            source = key_of("embed", embedded)
            if source not in seen:
                seen.add(source)
                key = key_of("intrinsic_dimension", {**embedded, "neighbours": probe.neighbours})
                about = {"about": trial.dataset, "as_in": trial.key}
                yield Work("embed", source, subject, **about)
                yield Work("intrinsic_dimension", key, subject, source=source, **about)
