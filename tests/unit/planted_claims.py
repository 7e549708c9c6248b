"""For every claim studies in which it is true, false, and cannot be told; and studies in which nothing is planted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.unit.planted_studies import (
    Tables,
    agreement,
    components,
    correlations,
    curves,
    data,
    dimension,
    effects,
    gains,
    grid,
    languages,
    layers,
    methods,
    names,
    places,
    structures,
    synergies,
)

Planted = Callable[[int], Tables]

# claim -> studies in which it is true, false, and cannot be told
PLANTED: dict[str, tuple[Planted, Planted, Planted]] = {
    "perplexity": (lambda s: data(s, 1.0), lambda s: data(s, 0.0), lambda s: data(s, 0.4, 4, 4)),
    "perplexity unseen": (lambda s: data(s, 1.5), lambda s: data(s, 0.0), lambda s: data(s, 1.0, 4, 6)),
    "perplexity or similarity": (
        lambda s: data(s, 2.0),
        lambda s: data(s, 0.0, similarity=1.5),
        lambda s: data(s, 0.3, similarity=0.1),
    ),
    "perplexity or length": (lambda s: data(s, 2.5), lambda s: data(s, -2.5), lambda s: data(s, 0.5, 5, 5)),
    "middle layers": (lambda s: layers(s, 0.6), lambda s: layers(s, 0.0), lambda s: layers(s, None, 5, 5)),
    "dimension": (lambda s: dimension(s, 0.6), lambda s: dimension(s, None), lambda s: dimension(s, None, 0.5)),
    "synergies persist": (
        lambda s: synergies(s, 0.05, 0.005),
        lambda s: synergies(s, 0.0, 0.0),
        lambda s: synergies(s, 0.0, 0.1),
    ),
    "synergies differ": (
        lambda s: synergies(s, 0.0, 0.05),
        lambda s: synergies(s, 0.05, 0.0),
        lambda s: {"gains": synergies(s, 0.05, 0.0, models=2)["gains"]},
    ),
    "tasks or datasets": (
        lambda s: agreement(s, 0.7, 0.3),
        lambda s: agreement(s, 0.3, 0.3),
        lambda s: agreement(s, 0.4, 0.3, spread=0.6, models=4),
    ),
    "components": (
        lambda s: components(s, 3, 0.1),
        lambda s: components(s, 12, 1.0),
        lambda s: components(s, 3, 0.1, tasks=5),
    ),
    "base sets the place": (
        lambda s: places(s, 5, 1, 1),
        lambda s: places(s, 0, 5, 1),
        lambda s: places(s, 2, 1.5, 0, models=3),
    ),
    "one direction": (
        lambda s: places(s, 5, 0.5, 3),
        lambda s: places(s, 5, 1, 0),
        lambda s: places(s, 5, 1, 3, models=2),
    ),
    "LoRA gains as much": (
        lambda s: methods(s, {"a": 0.0, "b": 0.001}),
        lambda s: methods(s, {"a": 0.0, "b": 0.1}),
        lambda s: methods(s, {"a": 0.0, "b": 0.0}, noise=0.3),
    ),
    "LoRA same structure": (
        lambda s: structures(s, 0.9),
        lambda s: structures(s, 0.0),
        lambda s: structures(s, 0.0, 5),
    ),
    "full on mathematics": (
        lambda s: methods(s, {"gsm8k": 0.1, "math": 0.05}),
        lambda s: methods(s, {"gsm8k": 0.1, "math": -0.05}),
        lambda s: methods(s, {"gsm8k": 0.1, "math": 0.02}, noise=0.3),
    ),
    "few rows": (
        lambda s: curves(s, 0.0, 0.05),
        lambda s: curves(s, 0.1, 0.05),
        lambda s: curves(s, 0.02, 0.05, shared=0.2),
    ),
    "more epochs": (
        lambda s: curves(s, 0.0, 0.05),
        lambda s: curves(s, 0.0, 0.0),
        lambda s: curves(s, 0.0, 0.02, shared=0.1),
    ),
    "languages": (lambda s: languages(s, 1.0), lambda s: languages(s, -0.5), lambda s: languages(s, 0.2, 4, 4)),
}


def null_study(seed: int) -> Tables:
    """Gains with effects of models and datasets that nothing measured goes with, 12 models x 10 datasets x 8 tasks."""
    random, pairs = np.random.default_rng(seed), grid(12, 10)
    shared = effects(random, pairs)
    y = 0.05 * (shared + random.normal(size=len(pairs)))
    x, alike = (effects(random, pairs) + random.normal(size=len(pairs)) for _ in range(2))
    predictors = {"response_nll_per_token": x, "similarity": alike, "response_tokens": alike + effects(random, pairs)}
    noise = {task: 0.05 * random.normal(size=len(pairs)) for task in [*names("task", 5), "mmlu", "cmmlu", "jmmlu"]}
    found: Sequence[Tables] = (
        {**data(seed, 0.0), "correlations": correlations(pairs, predictors, y)},
        layers(seed, None),
        dimension(seed, None, 0.2),
        agreement(seed, 0.3, 0.3, 0.2),
        places(seed, 0.0, 0.0, 0.0),
        methods(seed, {"gsm8k": 0.0, "math": 0.0}, noise=0.3, shared=0.3),
        structures(seed, 0.0),
        curves(seed, 0.0, 0.0, 0.05, shared=0.05),
    )
    tables = {name: table for part in found for name, table in part.items()}
    return {**tables, "gains": gains(pairs, noise, stderr=0.05)}
