"""How often each test of the study finds something at a nominal 5%: where nothing is, and where an effect is planted.

    python benchmarks/false_positives.py benchmarks/results/false_positives.json
    python benchmarks/false_positives.py OUT --cases clustered layers --grids 200

Gains of 12 models x 10 datasets have an effect of the model, an effect of the dataset and noise, each of variance 1; so
has the predictor, drawn by itself. `effect` is then what one unit of the predictor's own part (what model and dataset
leave of it) adds to the gain. Peers are the plain tests of scipy, which take every trial as independent. Cases:

clustered         as above
missing           the same, a tenth of the trials failed at random
unclustered       neither has effects of model or dataset: nothing for plain tests to go wrong about
small             4 models x 5 datasets
between_datasets  the predictor is a property of the dataset alone, such as its length; `effect` of one unit of it
nearly_between    the same, and hardly differs between models, as counts of tokens do
half_missing      as clustered, half of the trials failed at random
layers            24 correlated layers, of which one has the effect; is the strongest one significant?
predictors        10 unrelated predictors, of which one has the effect; is any significant?
pairs             full minus LoRA on the same models and datasets; `effect` is the mean difference
matrices          distances of 12 models in two planes; `effect` is the share of their places that both have in common
held_out          does leave-one-model-out prediction beat the mean of the others (lower end of the interval above 0)?

Every share has its 95% Wilson interval. A run adds its cases to the file, or replaces them.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import circumstances
from scipy import stats
from scipy.spatial.distance import pdist, squareform

from raysft.study.association import within
from raysft.study.statistics.bootstrap import two_way_interval
from raysft.study.statistics.held_out import accuracy, hold_out
from raysft.study.statistics.mantel import mantel
from raysft.study.statistics.mixed import mixed_effects
from raysft.study.statistics.multiplicity import q_values
from raysft.study.statistics.paired import paired
from raysft.study.statistics.permutation import permutation_test

NOMINAL = 0.05
MODELS, DATASETS = 12, 10
LAYERS, NEIGHBOURS = 24, 0.9  # correlation of what neighbouring layers have of their own

Found = dict[str, bool]
Random = np.random.Generator


@dataclass(frozen=True)
class Effort:
    """How much each resampling test is given."""

    permutations: int
    resamples: int


def places(models: int = MODELS, datasets: int = DATASETS) -> list[np.ndarray]:
    """Labels of model and dataset of every cell."""
    return [np.repeat(np.arange(models), datasets), np.tile(np.arange(datasets), models)]


def shared(random: Random, groups: list[np.ndarray]) -> np.ndarray:
    """An effect of variance 1 of each model and of each dataset, for every cell."""
    return sum(random.normal(size=group.max() + 1)[group] for group in groups)


def tests_of(x: np.ndarray, y: np.ndarray, groups: list[np.ndarray], effort: Effort) -> Found:
    """Every test of one predictor and one outcome."""
    known = np.isfinite(x) & np.isfinite(y)
    found = {
        "scipy pearson": stats.pearsonr(x[known], y[known]).pvalue < NOMINAL,
        "scipy spearman": stats.spearmanr(x[known], y[known]).pvalue < NOMINAL,
        "mixed effects": mixed_effects(x, y, groups).p < NOMINAL,
    }
    for name, fixed in (("plain", False), ("fixed", True)):
        found[f"permutation, {name}"] = permutation_test(x, y, groups, fixed, effort.permutations).p[0] < NOMINAL
        interval = two_way_interval(x, y, groups, fixed, resamples=effort.resamples)
        found[f"two-way bootstrap, {name}"] = interval.low > 0 or interval.high < 0
    return {**found, "fixed effects": within(x, y, groups).p < NOMINAL}


def clustered(random: Random, effect: float, effort: Effort) -> Found:
    groups = places()
    own = random.normal(size=len(groups[0]))
    y = shared(random, groups) + random.normal(size=len(own)) + effect * own
    return tests_of(shared(random, groups) + own, y, groups, effort)


def missing(random: Random, effect: float, effort: Effort, share: float = 0.1) -> Found:
    groups = places()
    own = random.normal(size=len(groups[0]))
    y = shared(random, groups) + random.normal(size=len(own)) + effect * own
    failed = random.random(len(own)) < share
    return tests_of(shared(random, groups) + own, np.where(failed, np.nan, y), groups, effort)


def unclustered(random: Random, effect: float, effort: Effort) -> Found:
    groups = places()
    x = random.normal(size=len(groups[0]))
    return tests_of(x, random.normal(size=len(x)) + effect * x, groups, effort)


def small(random: Random, effect: float, effort: Effort) -> Found:
    groups = places(4, 5)
    own = random.normal(size=len(groups[0]))
    y = shared(random, groups) + random.normal(size=len(own)) + effect * own
    return tests_of(shared(random, groups) + own, y, groups, effort)


def between_datasets(random: Random, effect: float, effort: Effort) -> Found:
    groups = places()
    x = random.normal(size=DATASETS)[groups[1]]
    y = shared(random, groups) + random.normal(size=len(x)) + effect * x
    found = tests_of(x, y, groups, effort)
    return {name: value for name, value in found.items() if "fixed" not in name}  # the dataset's effect takes all of x


def nearly_between(random: Random, effect: float, effort: Effort) -> Found:
    groups = places()
    x = random.normal(size=DATASETS)[groups[1]] + 0.02 * random.normal(size=len(groups[0]))
    y = shared(random, groups) + random.normal(size=len(x)) + effect * x
    return tests_of(x, y, groups, effort)


def half_missing(random: Random, effect: float, effort: Effort) -> Found:
    return missing(random, effect, effort, 0.5)


def layers(random: Random, effect: float, effort: Effort) -> Found:
    groups = places()
    own = random.normal(size=(LAYERS, len(groups[0])))
    for layer in range(1, LAYERS):
        own[layer] = NEIGHBOURS * own[layer - 1] + np.sqrt(1 - NEIGHBOURS**2) * own[layer]
    x = own + shared(random, groups)
    y = shared(random, groups) + random.normal(size=own.shape[1]) + effect * own[14]
    fixed, plain = (permutation_test(x, y, groups, kind, effort.permutations) for kind in (True, False))
    return {
        "scipy pearson, strongest": min(stats.pearsonr(layer, y).pvalue for layer in x) < NOMINAL,
        "fixed effects, strongest": min(within(layer, y, groups).p for layer in x) < NOMINAL,
        "max-statistic, plain": plain.p_max.min() < NOMINAL,
        "max-statistic, fixed": fixed.p_max.min() < NOMINAL,
    }


def predictors(random: Random, effect: float, effort: Effort) -> Found:
    groups = places()
    own = random.normal(size=(10, len(groups[0])))
    y = shared(random, groups) + random.normal(size=own.shape[1]) + effect * own[0]
    x = [shared(random, groups) + column for column in own]
    p = np.array([within(column, y, groups).p for column in x])
    return {
        "scipy pearson, any p": min(stats.pearsonr(column, y).pvalue for column in x) < NOMINAL,
        "fixed effects, any p": p.min() < NOMINAL,
        "fixed effects, any q": q_values(p).min() < NOMINAL,
    }


def pairs(random: Random, effect: float, effort: Effort) -> Found:
    groups = places()
    common = shared(random, groups)
    second = common + random.normal(size=len(common))
    first = common + random.normal(size=len(common)) + 0.7 * shared(random, groups) + effect
    found = paired(first, second, groups)
    return {
        "paired t": found.t_p < NOMINAL,
        "wilcoxon": found.wilcoxon_p < NOMINAL,
        "clustered by model and dataset": found.p < NOMINAL,
    }


def matrices(random: Random, effect: float, effort: Effort) -> Found:
    common = random.normal(size=(MODELS, 2))
    places = [np.sqrt(1 - effect) * random.normal(size=(MODELS, 2)) + np.sqrt(effect) * common for _ in range(2)]
    a, b = (squareform(pdist(place)) for place in places)
    below = np.tril_indices(MODELS, -1)
    return {
        "scipy pearson": stats.pearsonr(a[below], b[below]).pvalue < NOMINAL,
        "mantel": mantel(a, b, permutations=effort.permutations).p < NOMINAL,
    }


def held_out(random: Random, effect: float, effort: Effort) -> Found:
    groups = places()
    own = random.normal(size=(4, len(groups[0])))
    y = shared(random, groups) + random.normal(size=own.shape[1]) + effect * own[0]
    x = np.array([shared(random, groups) + column for column in own]).T
    return {
        f"{form}, beats the mean of the others": accuracy(hold_out(x, y, *groups, form)).skill_low > 0
        for form in ("alone", "added")
    }


CASES: dict[str, tuple[Callable[[Random, float, Effort], Found], float]] = {
    "clustered": (clustered, 0.4),
    "missing": (missing, 0.4),
    "unclustered": (unclustered, 0.4),
    "small": (small, 0.8),
    "between_datasets": (between_datasets, 1.5),
    "nearly_between": (nearly_between, 1.5),
    "half_missing": (half_missing, 0.4),
    "layers": (layers, 0.4),
    "predictors": (predictors, 0.4),
    "pairs": (pairs, 1.0),
    "matrices": (matrices, 0.7),
    "held_out": (held_out, 1.5),
}
"""Each case and the effect that is planted in it."""


def shares(name: str, effect: float, grids: int, effort: Effort) -> dict[str, Any]:
    """How often each test of a case finds something in `grids` simulated ones."""
    case = CASES[name][0]
    counts: dict[str, int] = {}
    for seed in range(grids):
        found = case(np.random.default_rng([seed, *name.encode()]), effect, effort)
        for test, positive in found.items():
            counts[test] = counts.get(test, 0) + bool(positive)
    return {test: _share(count, grids) for test, count in counts.items()}


def _share(count: int, grids: int) -> dict[str, Any]:
    interval = stats.binomtest(count, grids).proportion_ci(method="wilson")
    return {"share": round(count / grids, 4), "low": round(interval.low, 4), "high": round(interval.high, 4)}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One case without and with its effect."""
    effort = Effort(options.permutations, options.resamples)
    planted = CASES[name][1]
    started = time.process_time()
    null, power = (shares(name, effect, options.grids, effort) for effect in (0.0, planted))
    return {
        "grids": options.grids,
        "permutations": options.permutations,
        "resamples": options.resamples,
        "cpu_seconds": round(time.process_time() - started, 1),
        "false_positives": null,
        "effect": planted,
        "power": power,
    }


def main(options: argparse.Namespace) -> None:
    """Simulate the cases asked for and add them to the file."""
    before = json.loads(options.out.read_text())["cases"] if options.out.exists() else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        found = {name: measure(name, options) for name in options.cases}
    cases = {name: found.get(name, before.get(name)) for name in CASES if name in found or name in before}
    about = circumstances("scipy", "statsmodels")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**about, "nominal": NOMINAL, "cases": cases}, indent=1) + "\n")
    for name, case in found.items():
        for test, null in case["false_positives"].items():
            print(
                f"{name:17} {test:40} {null['share']:.3f}  effect {case['effect']}: {case['power'][test]['share']:.3f}"
            )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--grids", type=int, default=1000, help="simulated grids of a case, without and with effect")
    parser.add_argument("--permutations", type=int, default=999)
    parser.add_argument("--resamples", type=int, default=499)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
