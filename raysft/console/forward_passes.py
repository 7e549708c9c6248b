"""Forward passes of a model that is not in a sweep over the sweep's datasets: what a recommendation is made from.

Nothing is trained and nothing is committed. Texts, template and options are the sweep's own, so that the numbers
compare with those that its base models have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from raysft.measure_data import DataMeasures
from raysft.probes.log_likelihood import log_likelihoods
from raysft.session import Session, pick_device
from raysft.spec.plan import Subject, Work
from raysft.spec.sweep import ModelSpec, SpecError, Sweep
from raysft.store.schema import DIVERGED, TABLES


@dataclass(frozen=True)
class ForwardPasses:
    """Rows of one base model for the sweep's tables `data_properties` and `log_likelihood`."""

    data_properties: pa.Table
    log_likelihood: pa.Table


def in_sweep(sweep: Sweep, model: str) -> Sweep:
    """The sweep with `model`, a name of its YAML or a local folder, among its models.

    Raises:
        SpecError: neither.
    """
    if any(entry.name == model for entry in sweep.models):
        return sweep
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        names = ", ".join(entry.name for entry in sweep.models)
        raise SpecError(f"model {model}: neither a model of the sweep ({names}) nor a folder with a config.json")
    entry = ModelSpec.model_construct(name=model, path=folder.resolve())  # named as the user did, with its slashes
    return sweep.model_copy(update={"models": (*sweep.models, entry)})


def measure(
    sweep: Sweep, model: str, datasets: Sequence[str], tasks: Sequence[str], tell: Callable[[str], object]
) -> ForwardPasses:
    """Perplexities and lengths of `datasets`, their similarities to `tasks`, and the likelihood vector of a base model.

    `tell` is told what is measured next.

    Raises:
        SpecError: a model or dataset that the sweep does not have, or one that measures no perplexities.
    """
    if sweep.probes.perplexity is None:
        raise SpecError("probes.perplexity: the sweep does not measure it, so there is nothing to compare with")
    session = Session(in_sweep(sweep, model), pick_device())
    for name in datasets:
        sweep.dataset(name)
    subjects = [Subject(model, dataset=name) for name in datasets]
    works = [Work("perplexity", "", subject) for subject in subjects]
    works += [Work("similarity", "", subject, task) for subject in subjects for task in tasks]
    base = session.base(model)
    measures = DataMeasures(session, base, works)
    found = []
    for work in measures.works:
        if work.stage == "perplexity":
            tell(f"Forward passes of {model} over {work.subject.dataset}")
        found.append(_identified("data_properties", work.subject, measures.of(work)))
    return ForwardPasses(pa.concat_tables(found), _likelihood(session, model, tell))


def _likelihood(session: Session, model: str, tell: Callable[[str], object]) -> pa.Table:
    probe = session.sweep.probes.log_likelihood
    if probe is None:
        return TABLES["log_likelihood"].empty_table()
    tell(f"Forward passes of {model} over the texts of the likelihood vector")
    held = session.base(model)
    found = log_likelihoods(
        held.model,
        held.tokenizer,
        session.likelihood_texts,
        probe.max_length,
        session.pad_id(held),
        session.sweep.training.token_budget,
    )
    return _identified("log_likelihood", Subject(model, epoch=0), found)


def _identified(name: str, subject: Subject, part: pa.Table) -> pa.Table:
    """The rows in the table's schema, with whose they are in front."""
    schema = TABLES[name]
    columns = [field for field in part.column_names if field in schema.names]
    rows = [{**subject.as_row(), DIVERGED.name: False, **row} for row in part.select(columns).to_pylist()]
    return pa.Table.from_pylist(rows, schema=schema)
