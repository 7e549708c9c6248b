"""Claims about the log-likelihood map: base models set the places, fine-tunings move one way.

`map_distances` holds squared distances of centred log-likelihood vectors, so sums of squares and inner products of
displacements follow from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysft.study.claims.evidence import Evidence
from raysft.study.claims.verdict import (
    CANNOT_TELL,
    LEVEL,
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
from raysft.study.maps import subject_name
from raysft.study.schema import STUDY_TABLES
from raysft.study.tables import Reals, reals

_FEWEST_MODELS = 3
_MATTERS_SHARE = 0.1  # of the squared distances
ALIKE = 0.3  # cosine of two fine-tunings' ways that counts as one direction
_PERMUTATIONS = 199


@dataclass(frozen=True)
class _Places:
    """Final checkpoints on the map: `squared` has shape (checkpoints, checkpoints), labels one entry for each.

    `from_base` (checkpoints, bases) are squared distances to every base model, in the order of `bases`, and
    `of_bases` (bases, bases) those between them.
    """

    models: np.ndarray
    datasets: np.ndarray
    squared: Reals
    bases: tuple[str, ...]
    from_base: Reals
    of_bases: Reals


def base_sets_the_place(study: Evidence) -> Outcome:
    """Where a fine-tuned model lies is a matter of its base model more than of its data."""
    places = _places(study)
    if isinstance(places, str):
        return cannot(places)
    by_model, by_dataset = _shares(places.squared, places.models, places.datasets)
    p = _permuted_p(places)
    names = np.unique(places.models)
    without = []
    for name in names:
        kept = places.models != name
        ours, theirs = _shares(places.squared[np.ix_(kept, kept)], places.models[kept], places.datasets[kept])
        without.append(ours - theirs)
    found = jackknife(by_model - by_dataset, np.array(without))
    verdict, why = larger_than_zero(found, _MATTERS_SHARE)
    if verdict == SUPPORTED and p > LEVEL:
        verdict, why = CANNOT_TELL, f"models do not differ beyond chance ({p_text(p)} by permutation)"
    said = (
        f"Beyond chance, base models account for {100 * by_model:.0f}% of the squared distances between fine-tuned "
        f"models' log-likelihood vectors ({p_text(p)} by permutation), datasets for {100 * by_dataset:.0f}%: "
        "difference "
        f"{100 * found.value:.0f}%{interval_text(100 * found.low, 100 * found.high)}, over "
        f"{counted(len(names), 'model')} "
        f"x {counted(len(np.unique(places.datasets)), 'dataset')}, {counted(len(places.squared), 'checkpoint')}."
    )
    numbers: dict[str, Number] = {
        "by_model": by_model,
        "by_dataset": by_dataset,
        "permutation_p": p,
        **{name: value for name, value in found.numbers("difference").items() if name != "p"},
        "models": len(names),
        "n": len(places.squared),
    }
    return Outcome(verdict, said, numbers, why)


def one_direction(study: Evidence) -> Outcome:
    """Whatever the base and the data, fine-tuning moves models along one direction of the map."""
    places = _places(study)
    if isinstance(places, str):
        return cannot(places)
    cosines, different = _cosines(places)
    names = np.unique(places.models)
    whole = float(cosines[different].mean())
    without = []
    for name in names:
        kept = different & (places.models != name)[:, None] & (places.models != name)[None]
        if not kept.any():
            return cannot(f"{counted(len(names), 'model')} on the map, too few to leave one out")
        without.append(float(cosines[kept].mean()))
    found = jackknife(whole, np.array(without))
    verdict = CANNOT_TELL
    why: str | None = f"the interval does not settle whether the mean cosine reaches {ALIKE}"
    if found.low > 0 and whole >= ALIKE:
        verdict, why = SUPPORTED, None
    elif found.bound(1, 1 - LEVEL) < ALIKE:
        verdict, why = NOT_SUPPORTED, None
    straight = [
        row["straightness"]
        for row in study.rows("trajectories", epoch=None) or study.rows("trajectories")
        if row["straightness"] is not None and row["epoch"] == row["epochs"] and row["from_epoch"]
    ]
    paths = f" Paths over epochs have a mean straightness of {np.mean(straight):.2f}." if straight else ""
    said = (
        f"The ways of two fine-tunings of different base models on different data have a mean cosine of {whole:.2f}"
        f"{interval_text(found.low, found.high)}, over {counted(int(different.sum()) // 2, 'pair')} of "
        f"{counted(len(names), 'model')}, each left out in turn.{paths}"
    )
    return Outcome(verdict, said, {**found.numbers("cosine"), "models": len(names)}, why)


def _places(study: Evidence) -> _Places | str:
    """The final checkpoints of the main variant on the map, or why there are too few."""
    points = study.rows("map")
    if not points:
        return "no log-likelihood vectors were measured in this study"
    at = {subject_name(row): place for place, row in enumerate(points)}
    squared = np.zeros((len(points), len(points)))
    table = study.tables.get("map_distances", STUDY_TABLES["map_distances"].empty_table())
    names = pa.array(list(at), pa.string())
    i, j = (np.asarray(pc.fill_null(pc.index_in(table[side], names), -1).to_numpy()) for side in ("a", "b"))
    there = (i >= 0) & (j >= 0)
    squared[i[there], j[there]] = squared[j[there], i[there]] = reals(table, "two_kl")[there]
    base_at = {row["model"]: place for place, row in enumerate(points) if row["trial"] is None}
    last: dict[str, int] = {}
    for row in points:
        if row["trial"] is not None:
            last[row["trial"]] = max(last.get(row["trial"], 0), row["epoch"])
    kept = [
        place
        for place, row in enumerate(points)
        if row["trial"] is not None
        and row["variant"] == study.variant
        and row["epoch"] == last[row["trial"]]
        and row["model"] in base_at
    ]
    models = [points[place]["model"] for place in kept]
    if len(set(models)) < _FEWEST_MODELS or len({points[place]["dataset"] for place in kept}) < 2:
        return f"{counted(len(set(models)), 'base model')} with fine-tunings on the map, {_FEWEST_MODELS} needed"
    bases = tuple(sorted(set(models)))
    base_places = [base_at[name] for name in bases]
    return _Places(
        np.array(models),
        np.array([points[place]["dataset"] for place in kept]),
        squared[np.ix_(kept, kept)],
        bases,
        squared[np.ix_(kept, base_places)],
        squared[np.ix_(base_places, base_places)],
    )


def _shares(squared: Reals, *groupings: np.ndarray) -> tuple[float, ...]:
    """Share of the sum of squares that each crossed grouping accounts for beyond chance, as omega squared.

    Sums of squares follow from squared distances (Anderson 2001). What no grouping accounts for is the measure of
    chance; where nothing is left to measure it by, chance takes nothing off.
    """
    n = len(squared)
    total = squared.sum() / 2 / n
    if total <= 0:
        return tuple(0.0 for _ in groupings)
    between = [total - _inside(squared, labels) for labels in groupings]
    df = [len(np.unique(labels)) - 1 for labels in groupings]
    left = n - 1 - sum(df)
    noise = max(0.0, total - sum(between)) / left if left > 0 else 0.0
    return tuple(float((part - free * noise) / total) for part, free in zip(between, df, strict=True))


def _inside(squared: Reals, labels: np.ndarray) -> float:
    """Sum of squares within groups."""
    found = 0.0
    for name in np.unique(labels):
        part = labels == name
        found += squared[np.ix_(part, part)].sum() / 2 / part.sum()
    return found


def _permuted_p(places: _Places, seed: int = 0) -> float:
    """p of the models' share when labels of models are shuffled among fine-tunings on the same data."""
    random = np.random.default_rng(seed)
    observed, beaten = _inside(places.squared, places.models), 0
    for _ in range(_PERMUTATIONS):
        moved = places.models.copy()
        for name in np.unique(places.datasets):
            part = np.flatnonzero(places.datasets == name)
            moved[part] = moved[random.permutation(part)]
        beaten += _inside(places.squared, moved) <= observed * (1 + 1e-12)
    return (beaten + 1) / (_PERMUTATIONS + 1)


def _cosines(places: _Places) -> tuple[Reals, np.ndarray]:
    """Cosines of all pairs of ways from the base, and which pairs share neither model nor dataset.

    (x - a)(y - b) = (|x - b|^2 + |y - a|^2 - |x - y|^2 - |a - b|^2) / 2.
    """
    own = np.array([places.bases.index(name) for name in places.models])
    across = places.from_base[:, own]  # from checkpoint i to the base of checkpoint j
    inner = (across + across.T - places.squared - places.of_bases[np.ix_(own, own)]) / 2
    length = np.sqrt(np.diag(across))
    size = np.outer(length, length)
    cosines = np.divide(inner, size, out=np.zeros_like(inner), where=size > 0)
    different = (places.models[:, None] != places.models) & (places.datasets[:, None] != places.datasets)
    return cosines, different & (size > 0)
