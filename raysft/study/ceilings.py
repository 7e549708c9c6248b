"""How much of the gains is noise, by the errors of scores and by seeds, and what that leaves to explain."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raysft.study.cells import Slice, gain_cells, slices
from raysft.study.gains import final_gains
from raysft.study.statistics.noise import Ceiling, noise_ceiling, seed_variance
from raysft.study.statistics.schema import NOISE_CEILINGS
from raysft.study.tables import from_rows

Row = dict[str, Any]


@dataclass(frozen=True)
class _Pair:
    """One (model, dataset): its gain, the error variances of base scores and of its own, and each seed's gain.

    All are means over the slice's tasks; `seeds` are those that have every one of them.
    """

    model: str
    dataset: str
    gain: float
    base: float
    own: float
    seeds: tuple[float, ...]


def noise_ceiling_table(gains: pa.Table) -> pa.Table:
    """A row for each variant, choice of tasks and kind of correlation, of schema `NOISE_CEILINGS`.

    The error of a base model's score is common to its gains, so a model's fixed effect takes it out.
    """
    cells = gain_cells(gains)
    final: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in final_gains(gains).to_pylist():
        final[tuple(row[name] or "" for name in ("variant", "model", "dataset", "task"))].append(row)
    rows: list[Row] = []
    for part in slices(cells):
        pairs = _pairs(part, final)
        rows += [_row(part, pairs, effects) for effects in ("none", "fixed")]
    return from_rows(rows, NOISE_CEILINGS)


def _pairs(part: Slice, final: dict[tuple[Any, ...], list[Row]]) -> list[_Pair]:
    grouped: dict[tuple[str, str], list[list[Row]]] = defaultdict(list)
    for cell in part.cells:
        grouped[cell.model, cell.dataset].append(final[cell.variant, cell.model, cell.dataset, cell.task])
    return [_pair(place, tasks) for place, tasks in sorted(grouped.items())]


def _pair(place: tuple[str, str], tasks: list[list[Row]]) -> _Pair:
    by_seed: dict[Any, list[float]] = defaultdict(list)
    for row in (row for seeds in tasks for row in seeds):
        by_seed[row["seed"]].append(float(row["scaled_gain"]))
    return _Pair(
        *place,
        float(np.mean([np.mean([row["scaled_gain"] for row in seeds]) for seeds in tasks])),
        sum(_variance(seeds, "base_stderr") for seeds in tasks) / len(tasks) ** 2,
        sum(_variance(seeds, "score_stderr") / len(seeds) for seeds in tasks) / len(tasks) ** 2,
        tuple(float(np.mean(found)) for found in by_seed.values() if len(found) == len(tasks)),
    )


def _variance(seeds: list[Row], name: str) -> float:
    errors = [np.nan if row[name] is None else row[name] / row["scale"] for row in seeds]
    return float(np.mean(np.square(errors)))


def _row(part: Slice, pairs: list[_Pair], effects: str) -> Row:
    fixed = effects == "fixed"
    groups = [[pair.model for pair in pairs], [pair.dataset for pair in pairs]] if fixed else []
    gains = np.array([pair.gain for pair in pairs])
    items = np.array([pair.own + (0 if fixed else pair.base) for pair in pairs])
    # A seed moves all tasks of a checkpoint together, so it is the seeds' means over tasks that vary.
    each, df = seed_variance(
        np.array([gain for pair in pairs for gain in pair.seeds]),
        [at for at, pair in enumerate(pairs) for _ in pair.seeds],
    )
    seeds = np.array([each / max(len(pair.seeds), 1) for pair in pairs])
    ceiling = _lower(noise_ceiling(gains, items, groups), noise_ceiling(gains, seeds, groups))
    known = np.isfinite(items)
    return {
        "variant": part.variant,
        "scope": part.scope,
        "task": part.task,
        "effects": effects,
        "n": ceiling.n,
        "variance": ceiling.variance,
        "item_noise": float(items[known].mean()) if known.any() else np.nan,
        "seed_noise": float(seeds.mean()) if len(seeds) else np.nan,
        "seed_df": df,
        "reliability": ceiling.reliability,
        "ceiling": ceiling.r,
        "reason": ceiling.reason,
    }


def _lower(items: Ceiling, seeds: Ceiling) -> Ceiling:
    """The ceiling by the larger noise; by errors over items where there is one seed."""
    return seeds if np.nan_to_num(seeds.noise, nan=-1.0) > np.nan_to_num(items.noise, nan=-1.0) else items
