"""Claims about depth: where weights change as gains do, and from where on intrinsic dimension changes."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from raysft.study.claims.evidence import Evidence, Row
from raysft.study.claims.verdict import (
    CANNOT_TELL,
    LEVEL,
    MATTERS_R,
    NOT_SUPPORTED,
    SUPPORTED,
    Number,
    Outcome,
    alone,
    cannot,
    counted,
    excludes,
    interval_text,
    p_text,
    pearson_p,
    smallest_r,
)
from raysft.study.statistics.paired import paired
from raysft.study.tables import Reals

MIDDLE = (0.4, 0.8)  # depths that count as the middle, around the 0.6 of the paper
SPLIT = 0.6
_SURE = 0.8  # share of resamples
_MATTERS_DIMENSION = 0.02  # of the dimension before
_DEPTHS = np.linspace(0, 1, 11)
_RESAMPLES = 499


def middle_layers(study: Evidence) -> Outcome:
    """The layer whose weight change goes with gain most strongly lies in the middle of the stack."""
    if study.variant is None:
        return cannot("the study has no gains")
    rows = study.rows("layer_tests", variant=study.variant, scope="all", effects="fixed")
    tested = [row for row in rows if row["r"] is not None and row["p_max"] is not None]
    if not tested:
        why = next((row["reason"] for row in rows if row["reason"]), "no weight change was measured in this study")
        return cannot(f"weight change against gain: {why}")
    best = max(tested, key=lambda row: abs(row["r"]))
    share = _share_in_the_middle(tested)
    df = best["n"] - len(study.models) - len(study.datasets)
    plain = study.rows("layer_tests", variant=study.variant, scope="all", effects="none")
    verdict, why = _of_the_strongest(best, share, df, tested)
    said = (
        f"Given model and dataset, weight change goes with gain most strongly at depth {best['depth']:.2f} of "
        f"{best['layers']} depths: r = {best['r']:.2f}, {p_text(best['p_max'])} as the strongest of all, "
        f"{_resampled(share)}, n = {best['n']} ({study.variant}). {_beside(plain, verdict)}"
    )
    numbers: dict[str, Number] = {name: best[name] for name in ("depth", "r", "p", "p_max", "n", "layers")}
    return Outcome(verdict, said, {**numbers, "share_in_the_middle": share}, why)


def _of_the_strongest(best: Row, share: float, df: int, tested: list[Row]) -> tuple[str, str | None]:
    if best["p_max"] <= LEVEL and best["r"] > 0:
        inside = _is_middle(best["depth"])
        if not np.isfinite(share):
            return CANNOT_TELL, "which depth leads cannot be resampled with so few models or datasets"
        if inside and share >= _SURE:
            return SUPPORTED, None
        if not inside and 1 - share >= _SURE:
            return NOT_SUPPORTED, None
        return (
            CANNOT_TELL,
            f"the strongest depth is in the middle in {100 * share:.0f}% of resamples, {_SURE:.0%} needed",
        )
    if best["p_max"] <= LEVEL:
        return NOT_SUPPORTED, None
    if df > 1 and all(excludes(row["r"], df, MATTERS_R) for row in tested):
        return NOT_SUPPORTED, None
    least = f"; an r of {smallest_r(df):.2f} at one depth is found in four studies of five" if df > 1 else ""
    return CANNOT_TELL, f"no depth goes with gain beyond chance, and r of {MATTERS_R} is not excluded{least}"


def _share_in_the_middle(tested: list[Row]) -> float:
    if any(row["chosen"] is None for row in tested):
        return np.nan
    return float(sum(row["chosen"] for row in tested if _is_middle(row["depth"])))


def _is_middle(depth: float) -> bool:
    return MIDDLE[0] - 1e-9 <= depth <= MIDDLE[1] + 1e-9


def _resampled(share: float) -> str:
    return f"in the middle in {100 * share:.0f}% of resamples" if np.isfinite(share) else "not resampled"


def _beside(plain: list[Row], verdict: str) -> str:
    known = [row for row in plain if row["r"] is not None]
    if not known:
        return "Plain Pearson is not defined."
    best = max(known, key=lambda row: abs(row["r"]))
    p = pearson_p(best["r"], best["n"])
    found = p <= LEVEL and best["r"] > 0 and _is_middle(best["depth"])
    where = f"Plain Pearson is strongest at depth {best['depth']:.2f}, r = {best['r']:.2f} ({p_text(p)}), and"
    return f"{where} {alone(found, verdict)}."


def dimension_splits(study: Evidence) -> Outcome:
    """Intrinsic dimension before and after is alike in the lower layers and parts at a depth of about 0.6."""
    curves, estimator = _dimension_changes(study)
    if not curves:
        return cannot("no intrinsic dimension before and after the same texts was measured in this study")
    values, pairs = np.array(list(curves.values())), list(curves)
    above = _DEPTHS >= SPLIT - 1e-9
    test = paired(values[:, above].mean(axis=1), values[:, ~above].mean(axis=1), list(zip(*pairs, strict=True)))
    if not np.isfinite(test.p):
        return cannot(f"change of intrinsic dimension above and below depth {SPLIT}: {test.reason}")
    kink = _kink(values.mean(axis=0))
    share = _kinks_in_the_middle(values, pairs)
    said = (
        f"By {estimator}, intrinsic dimension changes by {100 * values[:, ~above].mean():.1f}% below depth {SPLIT} "
        "and by "
        f"{100 * values[:, above].mean():.1f}% from there on: difference {100 * test.mean:.1f}%"
        f"{interval_text(100 * test.low, 100 * test.high)}, {p_text(test.p)}. The curves part at depth {kink:.1f}, "
        "between "
        f"{MIDDLE[0]} and {MIDDLE[1]} in {100 * share:.0f}% of resamples; {counted(test.n, 'pair')} of model and "
        "dataset "
        f"({study.variant}). A plain paired t test has {p_text(test.t_p)}."
    )
    numbers: dict[str, Number] = {
        "difference": test.mean,
        "low": test.low,
        "high": test.high,
        "p": test.p,
        "plain_p": test.t_p,
        "parts_at": kink,
        "share_in_the_middle": share,
        "n": test.n,
    }
    if test.p <= LEVEL and test.mean > 0:
        if _is_middle(kink) and share >= _SURE:
            return Outcome(SUPPORTED, said, numbers)
        if not _is_middle(kink) and share <= 1 - _SURE:
            return Outcome(NOT_SUPPORTED, said, numbers)
        return Outcome(CANNOT_TELL, said, numbers, f"where the curves part is not settled, {_SURE:.0%} needed")
    if test.high < _MATTERS_DIMENSION:
        return Outcome(NOT_SUPPORTED, said, numbers)
    why = f"the interval holds both 0 and {_MATTERS_DIMENSION:.0%} of the dimension"
    return Outcome(CANNOT_TELL, said, numbers, why)


def _dimension_changes(study: Evidence) -> tuple[dict[tuple[str, str], Reals], str]:
    """(model, dataset) -> |after - before| / before at `_DEPTHS`, of the dataset's own texts, and by which "
    "estimator."""
    rows = [
        row
        for row in study.rows("intrinsic_dimension_by_depth", variant=study.variant, final=True)
        if row["change"] is not None and row["before"] and row["texts_of"] == row["dataset"]
    ]
    estimators = sorted({(row["estimator"] != "twonn", row["estimator"], row["scale"] or 0) for row in rows})
    if not estimators:
        return {}, ""
    _, name, scale = estimators[0]
    points: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if (row["estimator"], row["scale"] or 0) == (name, scale):
            points[row["model"], row["dataset"]][row["depth"]].append(abs(row["change"]) / row["before"])
    curves = {}
    for pair, at in sorted(points.items()):
        depths = sorted(at)
        if len(depths) >= 4:  # fewer have no lower and upper part to speak of
            curves[pair] = np.interp(_DEPTHS, depths, [float(np.mean(at[depth])) for depth in depths])
    return curves, name


def _kink(profile: Reals) -> float:
    """The depth from which on a profile that is flat until there rises: least squares of a + b max(0, depth - kink)."""
    errors = []
    for kink in _DEPTHS[:-1]:
        hinge = np.column_stack([np.ones_like(_DEPTHS), np.maximum(0, _DEPTHS - kink)])
        left = profile - hinge @ np.linalg.lstsq(hinge, profile, rcond=None)[0]
        errors.append(float(left @ left))
    return float(_DEPTHS[int(np.argmin(errors))])


def _kinks_in_the_middle(values: Reals, pairs: list[tuple[str, str]], seed: int = 0) -> float:
    """Share of two-way resamples (Owen 2007) of models and datasets whose mean curve parts in the middle."""
    levels = [np.unique(names, return_inverse=True) for names in zip(*pairs, strict=True)]
    random = np.random.default_rng(seed)
    hits = tried = 0
    for _ in range(_RESAMPLES):
        weight = np.ones(len(values))
        for names, level in levels:
            weight *= random.multinomial(len(names), np.full(len(names), 1 / len(names)))[level]
        if weight.sum() == 0:
            continue
        tried += 1
        hits += _is_middle(_kink(weight @ values / weight.sum()))
    return hits / tried if tried else np.nan
