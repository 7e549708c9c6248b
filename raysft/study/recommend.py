"""Which dataset to fine-tune a model on that no trial has seen: predicted gains by task, ranked, with intervals.

What is known of the model are forward passes of its base: perplexity and length of each dataset, similarity to each
benchmark, the log-likelihood vector; in place of these its base scores, where a study has nothing else. Whether they
help is decided on models of the study that are held out: if they do not beat the mean of the others for certain, the
mean of the others is recommended, and the recommendation says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import stats

from raysft.study.association import constant
from raysft.study.cells import gain_cells
from raysft.study.claims.evidence import Evidence
from raysft.study.gains import final_gains
from raysft.study.recommend_known import ALL_TASKS, Known, RecommendError, named
from raysft.study.recommend_schema import ACCURACIES, RECOMMENDATIONS
from raysft.study.statistics.held_out import skill_interval
from raysft.study.statistics.new_model import (
    FEWEST_TO_CORRECT,
    Panel,
    held_out_predictions,
    jackknife_plus,
    possible_level,
    predict,
)
from raysft.study.tables import Reals, from_rows

FORMS = ("mean of the others", "properties")
_FEWEST_TO_TELL = 5  # models whose resampling can show that one form is better


@dataclass(frozen=True)
class Recommendation:
    """Predicted gains of one model (schema `RECOMMENDATIONS`) and how good such predictions were (`ACCURACIES`).

    `form` is the one of `FORMS` that is recommended by and `why` says why; `level` is that of the intervals.
    """

    model: str
    variant: str
    form: str
    why: str
    predictors: tuple[str, ...]
    others: tuple[str, ...]
    left_out: bool
    level: float
    gains: pa.Table
    accuracy: pa.Table


def recommend(
    study: Mapping[str, pa.Table],
    sweep: Mapping[str, pa.Table],
    model: str,
    datasets: Sequence[str] = (),
    tasks: Sequence[str] = (),
    variant: str | None = None,
    level: float = 0.9,
) -> Recommendation:
    """Predict what `model` gains from each dataset on each task.

    Args:
        study: the study's tables; `gains` is used.
        sweep: the sweep's; `data_properties`, `log_likelihood` and the base models' `scores` are used as far as they
            are there, and hold what is known of `model` too.
        model: a base model. If it has trials in the study they are left out.
        datasets: some of the study's, default all that two other models have gains on.
        tasks: some of the study's, default all.
        variant: kind of trial, default the study's main one (see `Evidence.variant`).
        level: of the intervals, as far as the number of models allows it.

    Raises:
        RecommendError: a name that the study does not have, a single other model, or something missing of `model`.
    """
    if not 0 < level < 1:
        raise RecommendError(f"level: {level} given, valid: above 0 and below 1")
    evidence = Evidence(study)
    if evidence.variant is None:
        raise RecommendError("the study has no gains to learn from")
    variants = [evidence.variant, *evidence.others]
    chosen = variant or evidence.variant
    named("variant", [chosen], variants)
    cells = [cell for cell in gain_cells(final_gains(study["gains"])) if cell.variant == chosen]
    known = Known(cells, study["gains"], sweep, model)
    known.narrow(datasets, tasks)
    panels = known.panels()
    can_correct = bool(known.predictors) and len(known.others) >= FEWEST_TO_CORRECT
    held = {task: _held_out(panel, can_correct) for task, panel in panels.items()}
    form, why = _choice(panels, held, known, can_correct)
    rows = [row for task, panel in panels.items() for row in _rows(known, task, panel, held[task][form], form, level)]
    accuracies = [_accuracy(task, panel, held[task]) for task, panel in panels.items()]
    return Recommendation(
        model,
        chosen,
        form,
        why,
        known.predictors if form == FORMS[1] else (),
        known.others,
        known.has_trials,
        possible_level(len(known.others), level),
        from_rows(rows, RECOMMENDATIONS),
        from_rows(accuracies, ACCURACIES),
    )


def _held_out(panel: Panel, can_correct: bool) -> dict[str, Reals]:
    found = {FORMS[0]: held_out_predictions(panel, correct=False)}
    return {**found, FORMS[1]: held_out_predictions(panel, correct=True)} if can_correct else found


def _choice(
    panels: Mapping[str, Panel], held: Mapping[str, Mapping[str, Reals]], known: Known, can_correct: bool
) -> tuple[str, str]:
    """The form to recommend by, and why: the properties if they beat the mean of the others with 95% confidence."""
    if not known.predictors:
        return FORMS[0], known.why_nothing
    if not can_correct:
        count = len(known.others)
        return FORMS[0], f"{count} other models, {FEWEST_TO_CORRECT} needed to learn from how models differ"
    ours, theirs = (
        np.array([_squared(panels, held, form, place) for place in range(len(known.others))]) for form in FORMS[::-1]
    )
    if theirs.sum() == 0:
        return FORMS[0], "the mean of the others is never wrong on held-out models"
    skill = 1 - ours.sum() / theirs.sum()
    if len(known.others) < _FEWEST_TO_TELL:
        return FORMS[0], (
            f"on {len(known.others)} held-out models the properties take {100 * skill:.0f}% off its squared error, "
            "which "
            f"so few cannot tell from chance ({_FEWEST_TO_TELL} needed)"
        )
    alone = known.predictors == ("base score",)
    what = "no properties of datasets are known, only base scores: these" if alone else "the properties"
    low, high = skill_interval(ours, theirs, seed=0)
    found = f"{100 * skill:.0f}% off its squared error on held-out models"
    found += f" (95% interval {100 * low:.0f} to {100 * high:.0f}%)"
    if low > 0:
        return FORMS[1], f"{what} beat the mean of the others: {found}"
    return FORMS[0], f"{what} cannot be shown to beat the mean of the others: {found}"


def _squared(panels: Mapping[str, Panel], held: Mapping[str, Mapping[str, Reals]], form: str, place: int) -> float:
    """Squared errors of one held-out model over all tasks; the mean of all tasks is no further evidence."""
    tasks = [task for task in panels if task != ALL_TASKS] or list(panels)
    errors = [panels[task].gains[place] - held[task][form][place] for task in tasks]
    return float(np.nansum(np.square(errors)))


def _rows(known: Known, task: str, panel: Panel, held: Reals, form: str, level: float) -> list[dict[str, object]]:
    """One task's datasets, the best first, on the task's own scale."""
    correct, new = form == FORMS[1], len(panel.gains) - 1
    predicted = predict(panel, panel.known, new, correct)
    baseline = predict(panel, panel.known, new, correct=False)
    low, high = jackknife_plus(panel, held, new, correct, level)
    scale = known.scales.get(task, 1.0)
    order = np.argsort(-np.nan_to_num(predicted, nan=-np.inf), kind="stable")
    return [
        {
            "task": task,
            "rank": rank,
            "dataset": known.datasets[at],
            "predicted": scale * predicted[at],
            "low": scale * low[at],
            "high": scale * high[at],
            "mean_of_others": scale * baseline[at],
            "scale": scale,
            "level": possible_level(len(panel.known), level),
            "models": int(np.isfinite(panel.gains[:, at]).sum()),
        }
        for rank, at in enumerate(order, start=1)
    ]


def _accuracy(task: str, panel: Panel, held: Mapping[str, Reals]) -> dict[str, object]:
    """How good predictions of held-out models by properties are, beside the mean of the others."""
    actual = panel.gains
    row: dict[str, object] = {"task": task, "models": len(panel.known)}
    for prefix, name in (("baseline_", FORMS[0]), ("", FORMS[1])):
        predicted = held.get(name)
        if predicted is None:
            continue
        both = np.isfinite(actual) & np.isfinite(predicted)
        row["n"] = int(both.sum())
        row[f"{prefix}r2"] = _r2(actual[both], predicted[both])
        pairs = [(actual[place], predicted[place]) for place in panel.known]
        row[f"{prefix}rank_correlation"] = _mean([_rank_correlation(*pair) for pair in pairs])
        row[f"{prefix}regret"] = _mean([_regret(*pair) for pair in pairs])
    return row


def _r2(actual: Reals, predicted: Reals) -> float:
    if len(actual) < 2 or constant(actual):
        return np.nan
    return float(1 - ((actual - predicted) ** 2).sum() / ((actual - actual.mean()) ** 2).sum())


def _rank_correlation(actual: Reals, predicted: Reals) -> float:
    """Spearman's rho over datasets; NaN where fewer than three, or all the same."""
    both = np.isfinite(actual) & np.isfinite(predicted)
    if both.sum() < 3 or constant(actual[both]) or constant(predicted[both]):
        return np.nan
    return float(stats.spearmanr(actual[both], predicted[both]).statistic)


def _regret(actual: Reals, predicted: Reals) -> float:
    """What the best dataset gains more than the one with the best prediction."""
    both = np.isfinite(actual) & np.isfinite(predicted)
    if not both.any():
        return np.nan
    return float(actual[both].max() - actual[both][int(predicted[both].argmax())])


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else np.nan
