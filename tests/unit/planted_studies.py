"""Tables of small studies in which a claim of the paper is true, false, or cannot be told, drawn with a seed.

Only what a claim looks at is made, by the study's own statistics where these decide it.
"""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pyarrow as pa

from raysft.study.association import associate, within
from raysft.study.maps import subject_name
from raysft.study.schema import STUDY_TABLES
from raysft.study.statistics.bootstrap import resampled_coefficients, two_way_interval
from raysft.study.statistics.held_out import accuracy, hold_out
from raysft.study.statistics.mantel import mantel
from raysft.study.statistics.multiplicity import q_values
from raysft.study.statistics.paired import paired
from raysft.study.statistics.permutation import permutation_test
from raysft.study.tables import Reals, from_rows

Tables = dict[str, pa.Table]
Row = dict[str, Any]
RESAMPLES = 199


def names(kind: str, count: int) -> list[str]:
    return [f"{kind}{at:02d}" for at in range(count)]


def grid(models: int, datasets: int) -> list[tuple[str, str]]:
    return list(product(names("model", models), names("data", datasets)))


def effects(random: np.random.Generator, pairs: list[tuple[str, str]], size: float = 1.0) -> Reals:
    """One effect of every model plus one of every dataset, shape (pairs,)."""
    found = np.zeros(len(pairs))
    for side in (0, 1):
        levels = {name: random.normal() for name in sorted({pair[side] for pair in pairs})}
        found += size * np.array([levels[pair[side]] for pair in pairs])
    return found


def groups(pairs: list[tuple[str, str]]) -> list[list[str]]:
    return [[pair[side] for pair in pairs] for side in (0, 1)]


def gains(
    pairs: list[tuple[str, str]], by_task: dict[str, Reals], variant: str = "full", stderr: float | None = 0.005
) -> pa.Table:
    """Final gains of one trial a pair, on a scale of 1."""
    rows = []
    for task, values in by_task.items():
        for (model, dataset), gain in zip(pairs, values, strict=True):
            identity = {"trial": f"{model}/{dataset}/{variant}", "model": model, "dataset": dataset, "method": variant}
            scores = {"base": 0.3, "score": 0.3 + gain, "gain": gain, "scale": 1.0, "scaled_gain": gain}
            errors = {"base_stderr": stderr, "score_stderr": stderr}
            chosen = {"variant": variant, "final": True, "primary": True, "matching": False, "metric": "acc"}
            place = {"epoch": 10, "epochs": 10, "seed": 0, "size": 1000, "schedule": "cosine"}
            rows.append({**identity, **place, **chosen, "task": task, **scores, **errors})
    return from_rows(rows, STUDY_TABLES["gains"])


def correlations(pairs: list[tuple[str, str]], predictors: dict[str, Reals], y: Reals) -> pa.Table:
    """Rows over all tasks, their q over the predictors that are here."""
    rows = []
    for name, x in predictors.items():
        plain, fixed = associate(x, y), within(x, y, groups(pairs))
        wide = two_way_interval(x, y, groups(pairs), fixed=False, resamples=RESAMPLES)
        near = two_way_interval(x, y, groups(pairs), fixed=True, resamples=RESAMPLES)
        permuted = permutation_test(x, y, groups(pairs), fixed=False, permutations=RESAMPLES)
        rows.append(
            {
                "predictor": name,
                "variant": "full",
                "scope": "all",
                "n": plain.n,
                "models": len(set(groups(pairs)[0])),
                "datasets": len(set(groups(pairs)[1])),
                "pearson": plain.pearson,
                "within": fixed.r,
                "within_df": fixed.df,
                "within_p": fixed.p,
                "within_low": near.low,
                "within_high": near.high,
                "pearson_low": wide.low,
                "pearson_high": wide.high,
                "permutation_p": permuted.p[0],
                "permutation_q": permuted.p[0],
                "reason": plain.reason or fixed.reason,
                "tests_reason": wide.reason,
            }
        )
    for row, q in zip(rows, q_values(np.array([row["within_p"] for row in rows], dtype=float)), strict=True):
        row["within_q"] = float(q)
    return from_rows(rows, STUDY_TABLES["correlations"])


def data(seed: int, slope: float, models: int = 12, datasets: int = 10, similarity: float = 0.0) -> Tables:
    """Gains that fall with perplexity by `slope` and rise with similarity; length is of datasets, without effect."""
    random, pairs = np.random.default_rng(seed), grid(models, datasets)
    of = {dataset: random.normal() for dataset in names("data", datasets)}
    x, alike = random.normal(size=(2, len(pairs)))
    length = np.array([of[dataset] for _, dataset in pairs]) + 0.01 * random.normal(size=len(pairs))
    own = 0.3 * effects(random, pairs) + random.normal(size=len(pairs))
    y = 0.05 * (own - slope * x + similarity * alike)
    predictors = {"response_nll_per_token": x, "similarity": alike, "response_tokens": length}
    found = accuracy(hold_out(x[:, None], y, *groups(pairs), form="added"))
    fields = ("n", "groups", "r2", "baseline_r2", "skill", "skill_low", "skill_high", "reason")
    row = {"variant": "full", "target": "all", "predictors": "response_nll_per_token", "form": "added"}
    prediction = {**row, "split": "leave_one_model_out", **{name: getattr(found, name) for name in fields}}
    return {
        "gains": gains(pairs, {"task": y}),
        "correlations": correlations(pairs, predictors, y),
        "prediction": from_rows([prediction], STUDY_TABLES["prediction"]),
    }


def layers(seed: int, at: float | None, models: int = 12, datasets: int = 10, slope: float = 1.5) -> Tables:
    """Weight change of eleven depths; gain follows that at depth `at`, or none."""
    random, pairs = np.random.default_rng(seed), grid(models, datasets)
    depths = np.linspace(0, 1, 11)
    change = random.normal(size=(11, len(pairs)))
    noise = random.normal(size=len(pairs)) + 0.3 * effects(random, pairs)
    y = 0.05 * (noise + (0 if at is None else slope * change[round(10 * at)]))
    rows = []
    for name, fixed in {"none": False, "fixed": True}.items():
        test = permutation_test(change, y, groups(pairs), fixed, permutations=RESAMPLES)
        drawn, reason = resampled_coefficients(change, y, groups(pairs), fixed, 99)
        best = np.bincount(np.abs(drawn).argmax(axis=1), minlength=11) / 99 if reason is None else None
        for place, depth in enumerate(depths):
            row = {"variant": "full", "scope": "all", "effects": name, "depth": float(depth), "n": len(pairs)}
            row |= {"layers": 11, "r": test.r[place], "p": test.p[place], "p_max": test.p_max[place]}
            rows.append({**row, "chosen": None if best is None else best[place], "reason": reason})
    return {"gains": gains(pairs, {"task": y}), "layer_tests": from_rows(rows, STUDY_TABLES["layer_tests"])}


def dimension(seed: int, parts_at: float | None, noise: float = 0.01, models: int = 6, datasets: int = 5) -> Tables:
    """Dimensions of eleven depths that rise by up to 30% of what they were from depth `parts_at` on."""
    random, pairs = np.random.default_rng(seed), grid(models, datasets)
    rows = []
    for (model, dataset), depth in product(pairs, np.linspace(0, 1, 11)):
        rise = 0.0 if parts_at is None or depth <= parts_at else 0.3 * (depth - parts_at) / (1 - parts_at)
        change = 10 * (rise + noise * random.normal())
        place = {"trial": f"{model}/{dataset}", "model": model, "dataset": dataset, "variant": "full", "final": True}
        rows.append({**place, "texts_of": dataset, "estimator": "twonn", "scale": 2, "layer": round(10 * depth)})
        rows[-1] |= {"depth": float(depth), "before": 10.0, "after": 10 + change, "change": change, "n": 400}
    table = from_rows(rows, STUDY_TABLES["intrinsic_dimension_by_depth"])
    return {"gains": gains(pairs, {"task": np.zeros(len(pairs))}), "intrinsic_dimension_by_depth": table}


def synergies(seed: int, shared: float, own: float, noise: float = 0.002, models: int = 8, tasks: int = 6) -> Tables:
    """Gains with an effect of (dataset, task) that all models share, and one of each model's own."""
    random, pairs = np.random.default_rng(seed), grid(models, 5)
    by_task = {}
    for task in names("task", tasks):
        of = {dataset: shared * random.normal() for dataset in names("data", 5)}
        both = np.array([of[dataset] for _, dataset in pairs])
        by_task[task] = both + own * random.normal(size=len(pairs)) + noise * random.normal(size=len(pairs))
    return {"gains": gains(pairs, by_task)}


def agreement(seed: int, by_task: float, by_dataset: float, spread: float = 0.05, models: int = 8) -> Tables:
    """Correlations of models' similarity structures around two means."""
    random = np.random.default_rng(seed)
    rows = []
    for kind, mean in {"model_by_task": by_task, "model_by_dataset": by_dataset}.items():
        for a, b in combinations(names("model", models), 2):
            r = float(np.clip(mean + spread * random.normal(), -1, 1))
            rows += [{"kind": kind, "a": one, "b": other, "r": r, "n": 45} for one, other in ((a, b), (b, a))]
    return {"similarity": from_rows(rows, STUDY_TABLES["similarity"])}


def components(seed: int, count: int, noise: float, tasks: int = 12, models: int = 10, datasets: int = 10) -> Tables:
    """Gains of so many common factors, and noise."""
    random, pairs = np.random.default_rng(seed), grid(models, datasets)
    values = random.normal(size=(len(pairs), count)) @ random.normal(size=(count, tasks))
    values = 0.05 * (values + noise * random.normal(size=values.shape))
    return {"gains": gains(pairs, dict(zip(names("task", tasks), values.T, strict=True)))}


def places(
    seed: int, of_model: float, of_data: float, common: float, noise: float = 1.0, models: int = 8, datasets: int = 6
) -> Tables:
    """Likelihood vectors: base models apart by `of_model`; fine-tunings move by `common` one way, by data, and at "
    "random."""
    random, pairs = np.random.default_rng(seed), grid(models, datasets)
    texts = 60
    bases = {model: of_model * random.normal(size=texts) for model in names("model", models)}
    ways = {dataset: of_data * random.normal(size=texts) for dataset in names("data", datasets)}
    together = common * random.normal(size=texts)
    rows: list[Row] = [{"model": model, "epoch": 0} for model in bases]
    vectors = list(bases.values())
    for model, dataset in pairs:
        place = {"trial": f"{model}/{dataset}", "model": model, "dataset": dataset, "variant": "full", "seed": 0}
        rows.append({**place, "epoch": 10, "epochs": 10})
        vectors.append(bases[model] + ways[dataset] + together + noise * random.normal(size=texts))
    whole = [{"trial": None, "variant": None, **row} for row in rows]
    named = [subject_name(row) for row in whole]
    distances = [
        {"a": named[i], "b": named[j], "two_kl": float(((vectors[i] - vectors[j]) ** 2).sum() / texts)}
        for i, j in combinations(range(len(named)), 2)
    ]
    return {
        "gains": gains(pairs, {"task": np.zeros(len(pairs))}),
        "map": from_rows(whole, STUDY_TABLES["map"]),
        "map_distances": from_rows(distances, STUDY_TABLES["map_distances"]),
    }


def methods(
    seed: int, differences: dict[str, float], noise: float = 0.01, shared: float = 0.0, models: int = 10
) -> Tables:
    """Pairs of full and LoRA by task, whose gains differ by what is given; `shared` is of models and datasets."""
    random, pairs = np.random.default_rng(seed), grid(models, 8)
    rows: list[Row] = []
    for task, mean in differences.items():
        lora = random.normal(size=len(pairs))
        full = lora + mean + noise * random.normal(size=len(pairs)) + shared * effects(random, pairs)
        test = paired(full, lora, groups(pairs))
        ends = {"stderr": test.stderr, "df": test.df, "low": test.low, "high": test.high, "p": test.p, "t_p": test.t_p}
        rows.append(
            {"task": task, "first": "full", "second": "lora", "n": test.n, "mean_difference": test.mean, **ends}
        )
    for row, q in zip(rows, q_values(np.array([row["p"] for row in rows])), strict=True):
        row["q"] = float(q)
    return {
        "pairs": from_rows(rows, STUDY_TABLES["pairs"]),
        "gains": gains(pairs, dict.fromkeys(differences, np.zeros(len(pairs)))),
    }


def structures(seed: int, alike: float, tasks: int = 12) -> Tables:
    """Mantel's test of two similarity matrices of tasks, the second `alike` the first."""
    random = np.random.default_rng(seed)
    first, other = random.normal(size=(2, tasks, tasks))
    first, other = first + first.T, other + other.T
    found = mantel(first, alike * first + (1 - alike) * other, permutations=RESAMPLES)
    row = {"kind": "task", "a": "task: full", "b": "task: lora", "n": found.n, "r": found.r, "p": found.p}
    return {
        "matrix_comparisons": from_rows(
            [{**row, "q": found.p, "reason": found.reason}], STUDY_TABLES["matrix_comparisons"]
        )
    }


def curves(
    seed: int, lead_of_many: float, growth: float, noise: float = 0.005, models: int = 4, shared: float = 0.0
) -> Tables:
    """Gains over three epochs at 1,000 and 20,000 rows, of tasks of three scales, and of tasks that are not studied.

    Those, and a model that is not studied, gain a third of the scale less of many rows and of more epochs.
    """
    random = np.random.default_rng(seed)
    rows = []
    scales = dict(zip(names("task", 8), (1, 10, 100, 1, 10, 100, 100, 100), strict=True))
    for model in (*names("model", models), "unstudied"):
        luck = dict(zip((1000, 20_000), shared * random.normal(size=2), strict=True))
        own = shared * random.normal()
        for task, size, epoch in product((*scales, "unstudied"), (1000, 20_000), (1, 5, 10)):
            lead, more = (-0.3, -0.3) if "unstudied" in (model, task) else (lead_of_many + luck[size], growth + own)
            gain = 0.1 + (lead if size > 1000 else 0) + more * (epoch - 1) / 9 + noise * random.normal()
            place = {"model": model, "method": "full", "size": size, "schedule": "constant", "epoch": epoch}
            values = {"gain": gain * scales.get(task, 100), "scaled_gain": gain, "same_datasets": True}
            rows.append({**place, "task": task, **values})
    studied = grid(models, 2)
    return {
        "gains": gains(studied, {task: np.zeros(len(studied)) for task in scales}),
        "epoch_gains": from_rows(rows, STUDY_TABLES["epoch_gains"]),
    }


def languages(seed: int, alike: float, models: int = 12, datasets: int = 10) -> Tables:
    """Gains on MMLU in English, Chinese and Japanese, the latter two `alike` the first in what data do and in noise."""
    random, pairs = np.random.default_rng(seed), grid(models, datasets)
    here = random.normal(size=len(pairs)) + effects(random, pairs)
    by_task = {"mmlu-0shot": here}
    for task in ("cmmlu-0shot", "jmmlu-0shot"):
        by_task[task] = alike * here + random.normal(size=len(pairs)) + 0.3 * effects(random, pairs)
    return {"gains": gains(pairs, {task: 0.05 * values for task, values in by_task.items()})}


def other_variant(tables: Tables, variant: str, models: int) -> Tables:
    """The same gains under a second variant that fewer models have."""
    few = set(names("model", models))
    rows = [
        {**row, "variant": variant, "method": variant, "trial": f"{row['trial']}/{variant}"}
        for row in tables["gains"].to_pylist()
        if row["model"] in few
    ]
    return {**tables, "gains": pa.concat_tables([tables["gains"], from_rows(rows, STUDY_TABLES["gains"])])}
