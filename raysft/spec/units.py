"""From trials to units of work: every result that a sweep asks for, each with the key under which it is committed.

A `Work` is one result to commit. Works that need the same model in memory are one `Unit`, which is one Ray Tune trial:
`pretrain` makes a tiny base model, `base` measures a base model, `fine_tune` trains and measures. A trial whose workers
cannot measure in place (`Held.measures_in_place`) only trains, and each of its measured epochs is a unit of kind
`checkpoint` with resources of its own. Works on hidden states are not in units: Ray Data streams them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raysft.spec.benchmarks import task_identity
from raysft.spec.data_works import Asked, of_texts_alone, overlaps, under_a_base
from raysft.spec.grid import Trial
from raysft.spec.keys import (
    GENERATED_TEXT_VERSION,
    Identity,
    Part,
    file_digest,
    key_of,
    model_identity,
)
from raysft.spec.probes import IntrinsicDimensionProbe
from raysft.spec.resources import Shape
from raysft.spec.sweep import ModelSpec, SpecError, Sweep
from raysft.spec.templates import evaluation_template

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
        return dict(vars(self))  # flat, and asked for at every turn: asdict copies deeply

    def __str__(self) -> str:
        parts = [self.model, self.dataset, self.method]
        text = " x ".join(part for part in parts if part)
        if self.trial is not None:
            text += f" (size {self.size or 'all'}, {self.schedule}, {self.epochs} epochs, seed {self.seed})"
        return text


@dataclass(frozen=True)
class Work:
    """One result to commit. `about` is the task, for stages that are done per benchmark task, or the dataset whose
    texts are embedded; `source` is the key of the embeddings that it is made from, `as_in` the trial whose template and
    maximum length those texts have, and `before` the key of the base's neighbours of the same texts."""

    stage: str
    key: str
    subject: Subject
    about: str | None = None
    source: str | None = None
    as_in: str | None = None
    before: str | None = None


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


def sweep_units(sweep: Sweep, trials: Sequence[Trial]) -> tuple[list[Unit], list[Work]]:
    """(units in the order they should run, works on hidden states) of all trials and their base models."""
    models = [model for model in sweep.models if any(trial.model == model.name for trial in trials)]
    _check_likelihood_epochs(sweep, trials)
    shared = _Shared(sweep)
    units = [unit for model in models if (unit := _pretrain_unit(sweep, model)) is not None]
    for model in models:
        own = [trial for trial in trials if trial.model == model.name]
        unit = _base_unit(shared, model, own)
        if model is models[0]:  # what is asked of the data alone is done once, beside the first base
            unit = replace(unit, works=(*unit.works, *_works_of_data_alone(shared, unit.model, trials)))
        units.append(unit)
        units.extend(unit for trial in own for unit in _fine_tune_units(shared, trial))
    return units, list(_geometry(sweep, models, trials))


def _check_likelihood_epochs(sweep: Sweep, trials: Sequence[Trial]) -> None:
    """SpecError for an epoch whose likelihood vector is asked for and that no trial is measured at."""
    probe = sweep.probes.log_likelihood
    if probe is None or isinstance(probe.epochs, str):
        return
    measured = {epoch for trial in trials for epoch in trial.measured}
    never = [epoch for epoch in probe.epochs if epoch not in measured]
    if never:
        valid = f"last, all, or some of {', '.join(map(str, sorted(measured)))}"
        raise SpecError(f"probes.log_likelihood.epochs: no trial is measured at epoch {never[0]}; valid: {valid}")


class _Shared:
    """What the works of many trials have in common, made once."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.held = functools.cache(sweep.resources_of)
        self.measuring = sweep.resources.measuring_shape
        self.benchmarks = {task: Part(task_identity(sweep, task)) for task in sweep.evaluation.tasks}
        template = evaluation_template(sweep)
        served_by = sweep.evaluation.served_by
        self.around: Identity = {} if template is None else {"template": template.digest}
        if served_by is not None:
            self.around["vllm"] = served_by.identity
        self.reference = file_digest(SHIPPED_TEXTS, "reference texts")
        self.likelihood = None if sweep.probes.log_likelihood is None else likelihood_identity(sweep)


def _pretrain_unit(sweep: Sweep, model: ModelSpec) -> Unit | None:
    if model.micro is None:
        return None
    key = model_key(model)
    works = (Work("pretrain", key, Subject(model.name)),)
    return Unit(key, "pretrain", model.name, works, sweep.resources.measuring_shape)


def _base_unit(shared: _Shared, model: ModelSpec, trials: list[Trial]) -> Unit:
    identity = model_identity(model)
    works = list(_checkpoint_works(shared, {"model": identity}, Subject(model.name, epoch=0)))
    datasets = dict.fromkeys(trial.dataset for trial in trials)
    asked = under_a_base(shared.sweep, identity, datasets, shared.benchmarks, shared.reference)
    works += _data_works(model.name, asked)
    return Unit(key_of("evaluate", {"unit": identity}), "base", model.name, tuple(works), shared.measuring)


def _works_of_data_alone(shared: _Shared, model: str, trials: Sequence[Trial]) -> Iterator[Work]:
    """What no base enters; `model` only says beside which it is done."""
    sets = dict.fromkeys((trial.dataset, trial.size) for trial in trials)
    datasets = dict.fromkeys(trial.dataset for trial in trials)
    yield from _data_works(model, overlaps(shared.sweep, sets, shared.benchmarks))
    yield from _data_works(model, of_texts_alone(shared.sweep, datasets, shared.benchmarks, shared.reference))


def _data_works(model: str, asked: Iterable[Asked]) -> Iterator[Work]:
    for one in asked:
        yield Work(one.stage, one.key, Subject(model, dataset=one.dataset, size=one.size), about=one.about)


def _fine_tune_units(shared: _Shared, trial: Trial) -> Iterator[Unit]:
    """One unit that trains and measures, or one that trains and one for each epoch that is measured."""
    held = shared.held(trial.model, trial.method)
    works = [Work("train", key_of("train", trial.train_identity), trial_subject(trial))]
    apart = []
    for epoch in trial.measured:
        identity = Part(trial=trial.identity, epoch=epoch)
        subject = trial_subject(trial, epoch)
        own = list(_checkpoint_works(shared, identity, subject))
        if shared.sweep.probes.weight_change is not None:
            own.append(Work("weight_change", key_of("weight_change", identity), subject))
        if held.measures_in_place:
            works += own
        elif own:
            key = f"{trial.key}-{epoch}"
            apart.append(Unit(key, "checkpoint", trial.model, tuple(own), shared.measuring, trial, epoch))
    yield Unit(trial.key, "fine_tune", trial.model, tuple(works), held.shape, trial)
    yield from apart


def _checkpoint_works(shared: _Shared, identity: Identity, subject: Subject) -> Iterable[Work]:
    """What is measured of a checkpoint with its model in memory; the likelihood vector at the epochs it is asked of."""
    for task, benchmark in shared.benchmarks.items():
        key = key_of("evaluate", {"checkpoint": identity, "benchmark": benchmark, **shared.around})
        yield Work("evaluate", key, subject, about=task)
    probe = shared.sweep.probes.log_likelihood
    if shared.likelihood is not None and probe is not None and probe.is_taken_of(subject.epoch, subject.epochs):
        key = key_of("log_likelihood", {"checkpoint": identity, **shared.likelihood})
        yield Work("log_likelihood", key, subject)


def _check_texts(sweep: Sweep, probe: IntrinsicDimensionProbe, trials: Sequence[Trial]) -> None:
    """SpecError if no trial has texts enough; where some have, the others are recorded as failures, and these go on."""
    found = {(trial.dataset, trial.size): text_count(sweep, trial.dataset, trial.size) for trial in trials}
    if found and max(found.values()) < probe.neighbours + 2:
        (dataset, size), most = max(found.items(), key=lambda entry: entry[1])
        raise SpecError(
            f"probes.intrinsic_dimension.neighbours: {probe.neighbours} neighbours take {probe.neighbours + 2} texts, "
            f"and no trial has as many: datasets.{dataset} at size {size} has {most}; ask for fewer neighbours"
        )


def _geometry(sweep: Sweep, models: Sequence[ModelSpec], trials: Sequence[Trial]) -> Iterable[Work]:
    """Intrinsic dimension of each trial's training texts, in its base and at its last epoch, and the neighbours that
    they have in the base."""
    probe = sweep.probes.intrinsic_dimension
    if probe is None:
        return
    _check_texts(sweep, probe, trials)
    order = {model.name: index for index, model in enumerate(models)}
    seen = set()
    for trial in sorted(trials, key=lambda trial: order[trial.model]):
        texts = {
            "dataset": trial.identity["dataset"],
            "texts": text_count(sweep, trial.dataset, trial.size),
            "template": trial.identity["optimisation"]["template"],
            "max_length": trial.optimisation.max_length,
        }
        if sweep.dataset(trial.dataset).mixture is not None:
            texts["size"] = trial.size  # another size is another order, that begins with other texts
        if probe.pooling != "mean":
            texts["pooling"] = probe.pooling
        model = {"model": trial.identity["model"]}
        before = key_of("neighbours", {"checkpoint": model, **texts, "neighbours": probe.overlap_k})
        base = Subject(trial.model, dataset=trial.dataset, size=trial.size, epoch=0)
        last = trial_subject(trial, trial.epochs)
        for subject, identity in (
            (base, model),
            (last, Part(trial=trial.identity, epoch=trial.epochs)),
        ):
            embedded = {"checkpoint": identity, **texts}
            source = key_of("embed", embedded)
            if source not in seen:
                seen.add(source)
                options = probe.estimates_identity
                if subject is last:
                    options["overlap_neighbours"] = probe.overlap_k
                key = key_of("intrinsic_dimension", {**embedded, **options})
                about = {"about": trial.dataset, "as_in": trial.key}
                yield Work("embed", source, subject, **about)
                yield Work("intrinsic_dimension", key, subject, source=source, before=before, **about)
                if subject is base:
                    yield Work("neighbours", before, subject, source=source, before=before, **about)


def divergence_work(trial: Trial) -> Work:
    """The record that a trajectory ends in a loss that is not finite; it says nothing of how long it was to be."""
    return Work("divergence", key_of("divergence", trial.identity), trial_subject(trial))
