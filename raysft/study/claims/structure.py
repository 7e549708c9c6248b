"""Claims about structure: which gains all models share, what models agree on, how few dimensions gains have."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations

import numpy as np
from scipy import stats

from raysft.study.association import constant
from raysft.study.claims.evidence import Evidence
from raysft.study.claims.verdict import (
    CANNOT_TELL,
    FEWEST_MODELS,
    LEVEL,
    MATTERS_GAIN,
    NOT_SUPPORTED,
    SUPPORTED,
    Number,
    Outcome,
    cannot,
    counted,
    interval_text,
    jackknife,
    larger_than_zero,
    p_text,
)
from raysft.study.components import cumulative_variance, scaled
from raysft.study.statistics.multiplicity import q_values
from raysft.study.tables import Reals

_MATTERS_AGREEMENT = 0.1  # of a correlation
COMPONENTS, EXPLAINED, _NEARLY = 5, 0.9, 0.85
_RESAMPLES, _SHUFFLES = 499, 99


def synergies_persist(study: Evidence) -> Outcome:
    """Some datasets raise (or lower) some task for every model alike."""
    by_place = _by_place(study)
    usable = {place: gains for place, gains in by_place.items() if len(gains) >= FEWEST_MODELS}
    if not usable:
        most = max(map(len, by_place.values()), default=0)
        return cannot(f"{counted(most, 'model')} with the same dataset and task, {FEWEST_MODELS} needed")
    places = list(usable)
    varied = [np.array(usable[place]) for place in places]
    p = np.array([np.nan if constant(gains) else stats.ttest_1samp(gains, 0).pvalue for gains in varied])
    q = q_values(p)
    same = np.array([bool((gains > 0).all() or (gains < 0).all()) for gains in varied])
    found = (q <= LEVEL) & same
    tested = int(np.isfinite(p).sum())
    if not tested:
        return cannot("the gains of all models are equal in every cell, so no test can be made")
    plain = int(((p <= LEVEL) & same).sum())
    up = sum(float(gains.mean()) > 0 for gains, there in zip(varied, found, strict=True) if there)
    said = (
        f"Of {counted(tested, 'pair')} of dataset and task, {int(found.sum())} change in the same direction for every "
        f"model at q of at most {LEVEL:g} ({up} up, {int(found.sum()) - up} down), over "
        f"{counted(len(study.models), 'model')} ({study.variant}). Without correction for the number of tests it would "
        f"have been {plain}."
    )
    numbers: dict[str, Number] = {
        "pairs": tested,
        "persistent": int(found.sum()),
        "up": up,
        "uncorrected": plain,
        "models": len(study.models),
    }
    if found.any():
        return Outcome(SUPPORTED, said, numbers)
    # Not one of them is as large as would matter: every interval's end is below it, at 5% over all of them.
    ends = [_largest(gains, LEVEL / tested) for gains in varied]
    if max(ends) < MATTERS_GAIN:
        return Outcome(NOT_SUPPORTED, said, numbers)
    return Outcome(
        CANNOT_TELL,
        said,
        numbers,
        f"an effect on every model of {min(1, max(ends)):.2g} of the scale is not excluded somewhere",
    )


def synergies_differ(study: Evidence) -> Outcome:
    """Other gains differ between models by more than errors of scores explain."""
    cells: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for cell in _with_errors(study):
        cells[cell[0]].append(cell[1:])
    usable = [np.array(values) for values in cells.values() if len(values) >= FEWEST_MODELS]
    if not usable:
        return cannot(f"fewer than {FEWEST_MODELS} models with standard errors for the same dataset and task")
    p = []
    for values in usable:
        gain, weight = values[:, 0], 1 / values[:, 1] ** 2
        around = gain - (weight @ gain) / weight.sum()
        p.append(float(stats.chi2.sf(weight @ around**2, len(gain) - 1)))
    q = q_values(np.array(p))
    found = int((q <= LEVEL).sum())
    seeds = len({row["seed"] for row in study.gains.select(["seed"]).to_pylist()})
    runs = "" if seeds > 1 else " With one seed a run's own luck counts as the model's."
    said = (
        f"Gains of {found} of {counted(len(p), 'pair')} of dataset and task differ between models beyond the errors of "
        f"their scores at q of at most {LEVEL:g} (Cochran's Q), over {counted(len(study.models), 'model')} "
        f"({study.variant}).{runs}"
    )
    numbers: dict[str, Number] = {"pairs": len(p), "differ": found, "models": len(study.models), "seeds": seeds}
    if found:
        return Outcome(SUPPORTED, said, numbers)
    between = max(_largest_spread(values[:, 0]) for values in usable)
    if between < MATTERS_GAIN:
        return Outcome(NOT_SUPPORTED, said, numbers)
    why = f"gains that spread by {between:.2g} of the scale between models are not excluded somewhere"
    return Outcome(CANNOT_TELL, said, numbers, why)


def models_agree_on_tasks(study: Evidence) -> Outcome:
    """Models agree on which tasks go together more than on which datasets do."""
    kinds = ("model_by_task", "model_by_dataset")
    of = {kind: _similarities(study, kind) for kind in kinds}
    shared = sorted(set(of[kinds[0]]) & set(of[kinds[1]]))
    models = sorted({name for pair in shared for name in pair})
    if len(models) < FEWEST_MODELS:
        return cannot(f"{counted(len(models), 'model')} in similarities by task and by dataset, {FEWEST_MODELS} needed")
    differences = {pair: of[kinds[0]][pair] - of[kinds[1]][pair] for pair in shared}
    whole = float(np.mean(list(differences.values())))
    without = [[d for pair, d in differences.items() if model not in pair] for model in models]
    if not all(without):
        return cannot("too few pairs of models to leave one out")
    found = jackknife(whole, np.array([float(np.mean(values)) for values in without]))
    verdict, why = larger_than_zero(found, _MATTERS_AGREEMENT)
    means = [float(np.mean([of[kind][pair] for pair in shared])) for kind in kinds]
    plain = float(stats.ttest_1samp(list(differences.values()), 0).pvalue) if len(shared) > 1 else np.nan
    said = (
        f"Models' similarities of tasks correlate at {means[0]:.2f} on average, those of datasets at {means[1]:.2f}: "
        f"difference {whole:.2f}{interval_text(found.low, found.high)}, {p_text(found.p)}, over "
        f"{counted(len(shared), 'pair')} of {counted(len(models), 'model')}, each model left out in turn. "
        f"With pairs taken as independent, {p_text(plain)}."
    )
    numbers: dict[str, Number] = {
        **found.numbers("difference"),
        "by_task": means[0],
        "by_dataset": means[1],
        "models": len(models),
        "plain_p": plain,
    }
    return Outcome(verdict, said, numbers, why)


def few_components(study: Evidence) -> Outcome:
    """Five principal components hold nine tenths of the variance of the gains, scaled as published."""
    if not study.gains.num_rows:
        return cannot("the study has no gains")
    pairs, gains = study.complete_trials()
    varied = [at for at in range(gains.shape[1]) if len(gains) and not constant(gains[:, at])]
    if min(len(gains), len(varied)) <= COMPONENTS:
        return cannot(
            f"{counted(len(gains), 'complete fine-tuning')} and {counted(len(varied), 'task')} that vary: "
            f"{COMPONENTS + 1} of each are needed, or {COMPONENTS} components hold everything"
        )
    gains = gains[:, varied]
    share = _explained(gains)
    chance = _by_chance(gains)
    drawn = _resampled_shares(gains, pairs)
    # Resamples repeat rows, which makes fewer components suffice: the basic interval mirrors that bias away.
    low, high = (min(1.0, 2 * share - float(end)) for end in np.quantile(drawn, [0.975, 0.025]))
    shares = float(cumulative_variance(gains)[COMPONENTS - 1])
    said = (
        f"{COMPONENTS} of {len(varied)} components hold {100 * share:.0f}% of the variance of gains scaled to -1 to 1 "
        f"(resampled 95% interval {100 * low:.0f} to {100 * high:.0f}%), {100 * shares:.0f}% of gains as shares of "
        f"each task's scale; tasks that had nothing in common would give {100 * chance:.0f}%. "
        f"{counted(len(gains), 'fine-tuning')}."
    )
    numbers: dict[str, Number] = {
        "explained": share,
        "low": low,
        "high": high,
        "of_shares": shares,
        "by_chance": chance,
        "tasks": len(varied),
        "n": len(gains),
    }
    if chance >= EXPLAINED:
        return Outcome(CANNOT_TELL, said, numbers, "so few tasks or fine-tunings would give that by chance")
    if (high < EXPLAINED) != (shares < EXPLAINED):
        why = "it depends on whether every task counts the same: tasks that vary most have most of the variance"
        return Outcome(CANNOT_TELL, said, numbers, why)
    if share >= EXPLAINED and low >= _NEARLY:
        return Outcome(SUPPORTED, said, numbers)
    if high < EXPLAINED:
        return Outcome(NOT_SUPPORTED, said, numbers)
    return Outcome(CANNOT_TELL, said, numbers, f"the interval holds shares on both sides of {EXPLAINED:.0%}")


def _by_place(study: Evidence) -> dict[tuple[str, str], list[float]]:
    """(dataset, task) -> the gains of its models, main variant."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for cell in study.main:
        found[cell.dataset, cell.task].append(cell.gain)
    return dict(sorted(found.items()))


def _with_errors(study: Evidence) -> list[tuple[tuple[str, str], float, float]]:
    """((dataset, task), gain, standard error) of every model in the main variant, seeds averaged."""
    grouped: dict[tuple[str, str, str], list[tuple[float, float, float]]] = defaultdict(list)
    for row in study.gains.to_pylist():
        errors = row["base_stderr"], row["score_stderr"]
        if row["variant"] == study.variant and None not in errors and row["scaled_gain"] is not None:
            scale = row["scale"]
            place = row["dataset"], row["task"], row["model"]
            grouped[place].append((row["scaled_gain"], *(error / scale for error in errors)))
    found = []
    for (dataset, task, _), seeds in sorted(grouped.items()):
        gain, base, own = np.array(seeds).T
        error = float(np.sqrt(np.mean(base**2) + np.mean(own**2) / len(gain)))
        if error > 0:
            found.append(((dataset, task), float(gain.mean()), error))
    return found


def _largest(gains: Reals, level: float) -> float:
    """How large the mean over models may be, either way, at this level."""
    if constant(gains):
        return abs(float(gains.mean()))
    error = float(gains.std(ddof=1) / np.sqrt(len(gains)))
    return abs(float(gains.mean())) + float(stats.t.ppf(1 - level, len(gains) - 1)) * error


def _largest_spread(gains: Reals) -> float:
    """How large the standard deviation between models may be, at 5% one-sided: chi-square on their spread.

    The errors of scores are in that spread, so what is said of models is rather too much than too little.
    """
    df = len(gains) - 1
    return float(gains.std(ddof=1) * np.sqrt(df / stats.chi2.ppf(LEVEL, df)))


def _similarities(study: Evidence, kind: str) -> dict[tuple[str, str], float]:
    rows = {(row["a"], row["b"]): row["r"] for row in study.rows("similarity", kind=kind) if row["r"] is not None}
    names = sorted({name for pair in rows for name in pair})
    return {pair: rows[pair] for pair in combinations(names, 2) if pair in rows}


def _explained(gains: Reals) -> float:
    return float(cumulative_variance(scaled(gains, "minmax"))[COMPONENTS - 1])


def _by_chance(gains: Reals, seed: int = 0) -> float:
    """The 95% quantile of the share when every task's gains are shuffled by themselves (Horn 1965)."""
    random = np.random.default_rng(seed)
    return float(np.quantile([_explained(random.permuted(gains, axis=0)) for _ in range(_SHUFFLES)], 0.95))


def _resampled_shares(gains: Reals, pairs: list[tuple[str, str]], seed: int = 0) -> Reals:
    """The share in two-way resamples of models and datasets (Owen 2007)."""
    levels = [np.unique(names, return_inverse=True) for names in zip(*pairs, strict=True)]
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(_RESAMPLES):
        weight = np.ones(len(gains), dtype=np.int64)
        for names, level in levels:
            weight *= random.multinomial(len(names), np.full(len(names), 1 / len(names)))[level]
        rows = gains[np.repeat(np.arange(len(gains)), weight)]
        if len(rows) > COMPONENTS and np.ptp(rows, axis=0).any():
            drawn.append(_explained(rows))
    return np.array(drawn or [np.nan])
