"""Where a training set and a base model come from, in words for a card. No path of any machine is among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raysft.export.markdown import Markdown, code
from raysft.spec.datasets import DatasetSpec
from raysft.spec.keys import canonical_json, text_digest
from raysft.spec.sweep import ModelSpec, Sweep

Identity = dict[str, Any]


def data_digest(identity: Identity) -> str:
    """16 hexadecimal digits of what a training set is: of its source, its revision or content, and what was taken."""
    return text_digest(canonical_json(identity))


def data_source(sweep: Sweep, name: str, identity: Identity) -> Markdown:
    """Where a dataset's rows come from; `identity` as in a trial's."""
    dataset = sweep.dataset(name)
    if dataset.mixture is not None:
        members = zip(dataset.mixture.members, identity["mixture"], strict=True)
        return Markdown(
            "as many rows of each of " + "; ".join(f"{code(own)}: {_plain(sweep, own, part)}" for own, part in members)
        )
    return Markdown(_plain(sweep, name, identity))


def hub_datasets(sweep: Sweep, name: str) -> list[str]:
    """Repositories of the hub that a dataset's rows are from."""
    dataset = sweep.dataset(name)
    names = (name,) if dataset.mixture is None else dataset.mixture.members
    return list(dict.fromkeys(hub for one in names if (hub := sweep.dataset(one).hub) is not None))


def base_source(model: ModelSpec) -> Markdown:
    """What a base model is."""
    if model.hub is not None:
        return Markdown(f"{code(model.hub)} of the hub, revision {code(model.revision)}")
    if model.micro is not None:
        recipe = model.micro
        return Markdown(
            f"a {recipe.family} of {recipe.layers} layers and width {recipe.width} that raysft pretrained itself: "
            f"{recipe.steps:,} steps of {recipe.batch_size} x {recipe.sequence_length} tokens, seed {recipe.seed}"
        )
    return Markdown("a local folder")


def _plain(sweep: Sweep, name: str, identity: Identity) -> str:
    dataset = sweep.dataset(name)
    if dataset.generated is not None:
        made = dataset.generated
        return f"generated rows of the skill {code(made.skill)}, {made.rows:,} of them, seed {made.seed}"
    if dataset.hub is not None:
        parts = [f"{code(dataset.hub)} of the hub, revision {code(dataset.revision)}", f"split {code(dataset.split)}"]
        if dataset.subset is not None:
            parts.insert(1, f"subset {code(dataset.subset)}")
    else:
        parts = [f"a local file, SHA-256 {code(identity['file'])}"]
    return ", ".join([*parts, *_taken(dataset)])


def _taken(dataset: DatasetSpec) -> Iterator[str]:
    for column, values in dataset.where.items():
        yield f"rows whose {code(column)} is {' or '.join(map(code, values))}"
    if dataset.turns == "all":
        yield "whole conversations"
    if dataset.incomplete_rows == "drop":
        yield "without incomplete rows"
