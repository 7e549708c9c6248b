"""What can be known to be wrong before any worker starts: data rows, sizes, model folders, tasks, texts, storage."""

from __future__ import annotations

from transformers import AutoTokenizer

from raysft.corpus.example import Example
from raysft.corpus.prompt import render_examples, renderer
from raysft.corpus.skills import SKILLS
from raysft.corpus.sources import load_examples
from raysft.evaluation.harness import load_benchmarks
from raysft.evaluation.judge.judged import check_judging
from raysft.evaluation.vllm_checks import check_serving
from raysft.models.load import model_shape
from raysft.probes.log_likelihood import likelihood_texts
from raysft.spec.memory import refuse_what_never_fits
from raysft.spec.plan import Plan
from raysft.spec.sweep import ModelSpec, SpecError, Sweep
from raysft.spec.templates import Template, evaluation_template, training_template
from raysft.store.layout import Storage, StorageError, one_line


def check_sweep(plan: Plan, storage: Storage) -> None:
    """Raise SpecError or StorageError for the first thing that cannot work. Hub names are left to the workers."""
    storage.check_writable()
    if plan.newer:
        raise StorageError(plan.newer[0])
    refuse_what_never_fits(plan.sweep, plan.missing_trials())
    check_data(plan)
    for model in plan.sweep.models:
        if model.path is not None:
            model_shape(storage, model)
        _check_corpus(model)
        for template in (training_template(plan.sweep), evaluation_template(plan.sweep)):
            if template is not None and template.is_chat:
                _check_chat(template, model)
    if plan.sweep.probes.log_likelihood is not None:
        likelihood_texts(plan.sweep.probes.log_likelihood)
    if plan.sweep.evaluation.tasks:
        check_judging(plan.sweep)
        check_serving(plan.sweep)
        load_benchmarks(plan.sweep)


def _check_corpus(model: ModelSpec) -> None:
    for skill in model.micro.corpus if model.micro is not None else ():
        if skill not in SKILLS:
            raise SpecError(
                f"models.{model.name}.micro.corpus: no skill named {skill!r}; valid: {', '.join(sorted(SKILLS))}"
            )


def _check_chat(template: Template, model: ModelSpec) -> None:
    """Whether a base has the chat template that it is to be trained or asked with, and whether that can be rendered."""
    if model.micro is not None and template.file is None:
        raise SpecError(
            f"{template.where}: models.{model.name} is pretrained here and has no chat template; name a .jinja file "
            "under training.chat_template, or another template"
        )
    if model.path is None:
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        renderer(template, tokenizer).render(Example("question", "reply"))
    except (OSError, ValueError) as error:
        raise SpecError(f"models.{model.name}: {one_line(error)}") from error


def check_data(plan: Plan) -> None:
    """Read every local dataset at the largest size that the grid asks of it, and put its rows into a text template."""
    template = training_template(plan.sweep)
    sizes: dict[str, int | None] = {}
    for trial in plan.trials:
        known = sizes.get(trial.dataset, 0)
        sizes[trial.dataset] = None if trial.size is None or known is None else max(known, trial.size)
    for name, size in sizes.items():
        if not _is_remote(plan.sweep, name):
            examples = load_examples(plan.sweep, plan.sweep.dataset(name), size)
            if not template.is_chat:  # a chat template needs a base's tokenizer, which may be anywhere
                _check_rows(examples, template, name)


def _check_rows(examples: list[Example], template: Template, dataset: str) -> None:
    try:
        render_examples(examples, None, template)
    except ValueError as error:
        raise SpecError(f"datasets.{dataset}: {error}") from error


def _is_remote(sweep: Sweep, name: str) -> bool:
    dataset = sweep.dataset(name)
    if dataset.mixture is not None:
        return any(_is_remote(sweep, member) for member in dataset.mixture.members)
    return dataset.hub is not None
