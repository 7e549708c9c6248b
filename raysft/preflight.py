"""What can be known to be wrong before any worker starts: data rows, sizes, model folders, tasks, texts, storage."""

from __future__ import annotations

from raysft.corpus.skills import SKILLS
from raysft.corpus.sources import load_examples
from raysft.evaluation.harness import load_benchmarks
from raysft.models.load import model_shape
from raysft.probes.log_likelihood import likelihood_texts
from raysft.spec.plan import Plan
from raysft.spec.sweep import ModelSpec, SpecError, Sweep
from raysft.store.layout import Storage


def check_sweep(plan: Plan, storage: Storage) -> None:
    """Raise SpecError or StorageError for the first thing that cannot work. Hub names are left to the workers."""
    storage.check_writable()
    check_data(plan)
    for model in plan.sweep.models:
        if model.path is not None:
            model_shape(storage, model)
        _check_corpus(model)
    if plan.sweep.probes.log_likelihood is not None:
        likelihood_texts(plan.sweep.probes.log_likelihood)
    if plan.sweep.evaluation.tasks:
        load_benchmarks(plan.sweep)


def _check_corpus(model: ModelSpec) -> None:
    for skill in model.micro.corpus if model.micro is not None else ():
        if skill not in SKILLS:
            raise SpecError(
                f"models.{model.name}.micro.corpus: no skill named {skill!r}; valid: {', '.join(sorted(SKILLS))}"
            )


def check_data(plan: Plan) -> None:
    """Read every local dataset at the largest size that the grid asks of it."""
    sizes: dict[str, int | None] = {}
    for trial in plan.trials:
        known = sizes.get(trial.dataset, 0)
        sizes[trial.dataset] = None if trial.size is None or known is None else max(known, trial.size)
    for name, size in sizes.items():
        if not _is_remote(plan.sweep, name):
            load_examples(plan.sweep, plan.sweep.dataset(name), size)


def _is_remote(sweep: Sweep, name: str) -> bool:
    dataset = sweep.dataset(name)
    if dataset.mixture is not None:
        return any(_is_remote(sweep, member) for member in dataset.mixture.members)
    return dataset.hub is not None
