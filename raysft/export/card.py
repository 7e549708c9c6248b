"""Model cards, made from the sweep and its tables: a front matter as the hub reads it, then Markdown.

Equal inputs give equal text. What a user named is escaped, and no path or host of a machine is in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from raysft.export import sections
from raysft.export.markdown import Markdown, code, table, text, with_error
from raysft.export.records import Score
from raysft.export.sections import CardOf
from raysft.export.sources import base_source, data_digest, data_source, hub_datasets
from raysft.spec.mistakes import shown
from raysft.spec.sweep import Sweep

LICENCE_TODO = "# TODO license: one that the base model and the data allow, such as apache-2.0"


def checkpoint_card(of: CardOf) -> str:
    """The README.md of an exported checkpoint."""
    trial, row = of.checkpoint.trial, of.records.trial(of.checkpoint.trial.key)
    scores = of.records.scores(trial.key, of.checkpoint.epoch)
    body = render(
        "model_card.md",
        name=of.checkpoint.name,
        sweep=of.sweep,
        trial=trial,
        epoch=of.checkpoint.epoch,
        base_source=base_source(of.sweep.model(trial.model)),
        holds=sections.holds(of),
        diverged=row.get("diverged_in_epoch"),
        use=sections.use(of),
        dora=of.is_adapter and of.method.dora,
        beside=sections.beside_note(of.base.reference) if of.is_adapter and of.base.is_beside else None,
        license=of.license,
        data_source=data_source(of.sweep, trial.dataset, trial.identity["dataset"]),
        rows="not recorded" if row.get("rows") is None else f"{row['rows']:,}",
        data_digest=data_digest(trial.identity["dataset"]),
        template=sections.template_words(of),
        settings=sections.settings(of),
        training=sections.training(of),
        scores=sections.score_table(scores),
        lint=sections.lint(of),
        contamination=sections.contamination(of),
        versions=sections.versions(of),
    )
    return _checkpoint_matter(of, scores) + "\n" + body


def base_card(sweep: Sweep, name: str, model: str, scores: list[Score], license: str | None) -> str:
    """The README.md of an exported base model."""
    header = ("task", "metric", "score", "n")
    rows = [(code(one.task), code(one.metric), with_error(one.value, one.stderr), one.n) for one in scores]
    body = render(
        "base_card.md",
        name=name,
        model=model,
        sweep=sweep,
        source=base_source(sweep.model(model)),
        license=license,
        scores=table(header, rows) if rows else None,
    )
    tags = ["raysft"]
    data = ModelCardData(license=license, library_name="transformers", pipeline_tag="text-generation", tags=tags)
    return front_matter(data.to_yaml(), license) + "\n" + body


def front_matter(yaml: str, license: str | None) -> str:
    """The front matter of a card; where no licence is named, a comment in it says so."""
    return "\n".join(["---", yaml.strip(), *([] if license else [LICENCE_TODO]), "---", ""])


def render(file: str, **values: object) -> str:
    """A template file of this folder, in which every value that is not `Markdown` is escaped."""
    return _environment().get_template(file).render(**values)


def _checkpoint_matter(of: CardOf, scores: list[Score]) -> str:
    kind = ["lora", *(["dora"] if of.method.dora else [])] if of.is_adapter else ["full-fine-tuning"]
    results = _results(scores)
    relation = "adapter" if of.is_adapter else "finetune"
    data = ModelCardData(
        base_model=of.base.repository,
        base_model_relation=relation if of.base.repository is not None else None,
        datasets=hub_datasets(of.sweep, of.checkpoint.trial.dataset) or None,
        license=of.license,
        library_name="peft" if of.is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["raysft", "sft", *kind],
        model_name=of.checkpoint.name if results else None,
        eval_results=results or None,
    )
    return front_matter(data.to_yaml(), of.license)


def _results(scores: Iterable[Score]) -> list[EvalResult]:
    """Scores as the hub's model-index has them; what is no number is not among them."""
    return [_result(score, score.value) for score in scores if score.value is not None and math.isfinite(score.value)]


def _result(score: Score, value: float) -> EvalResult:
    known = {"stderr": score.stderr, "n": score.n}
    facts = {name: fact for name, fact in known.items() if fact is not None and math.isfinite(fact)}
    task, metric = shown(score.task, 200), shown(score.metric, 200)
    return EvalResult(
        task_type="text-generation",
        dataset_type=task,
        dataset_name=task,
        metric_type=metric.partition(",")[0],
        metric_name=metric,
        metric_value=value,
        metric_args=facts or None,
    )


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # of HTML; `finalize` escapes Markdown
        finalize=lambda value: value if isinstance(value, Markdown) else text(value),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = code
    return environment
