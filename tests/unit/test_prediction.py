"""Prediction of gains for what was held out: planted answers, and nothing of the held-out group used."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from raysft.study.cells import Cell, Slice
from raysft.study.predict import slice_rows
from raysft.study.statistics.held_out import FORMS, accuracy, hold_out

pytestmark = pytest.mark.unit

MODELS, DATASETS = 8, 7
MODEL, DATASET = np.repeat(np.arange(MODELS), DATASETS), np.tile(np.arange(DATASETS), MODELS)


def planted(slope: float, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """x with two columns, of which the first, as it differs within models and datasets, moves y."""
    random = np.random.default_rng(0)
    x = random.normal(size=(MODELS * DATASETS, 2))
    y = random.normal(size=DATASETS)[DATASET] + slope * x[:, 0] + noise * random.normal(size=len(x))
    return x, y


def test_the_baseline_is_the_mean_of_the_other_models_on_the_same_dataset() -> None:
    x, y = planted(0)
    found = hold_out(x, y, MODEL, DATASET)
    grid = y.reshape(MODELS, DATASETS)
    by_hand = (grid.sum(axis=0) - grid) / (MODELS - 1)
    assert found.baseline == pytest.approx(by_hand.ravel())
    other_way = hold_out(x, y, DATASET, MODEL)
    assert other_way.baseline == pytest.approx(((grid.sum(axis=1, keepdims=True) - grid) / (DATASETS - 1)).ravel())


def test_a_planted_slope_is_predicted_far_better_than_by_the_mean_of_the_others() -> None:
    found = accuracy(hold_out(*planted(2), MODEL, DATASET, "added"))
    assert found.r2 > 0.98
    assert found.skill_low > 0.9
    assert found.groups == MODELS
    assert found.n == MODELS * DATASETS


def test_the_penalty_grows_where_there_is_nothing_to_learn() -> None:
    found = accuracy(hold_out(*planted(0, noise=1), MODEL, DATASET, "added"))
    assert -0.15 < found.skill < 0.1


def ridge_by_hand(x: np.ndarray, y: np.ndarray, groups: np.ndarray, new: np.ndarray) -> np.ndarray:
    """scikit-learn's ridge, its penalty chosen by refitting without each group."""
    mean, scale = x.mean(axis=0), x.std(axis=0)

    def fitted(points: np.ndarray, penalty: float) -> Ridge:
        return Ridge(alpha=penalty * len(y)).fit(((x - mean) / scale)[points], y[points])

    def error(penalty: float) -> float:
        each = [(groups == group, fitted(groups != group, penalty)) for group in np.unique(groups)]
        return float(sum(((model.predict(((x - mean) / scale)[out]) - y[out]) ** 2).sum() for out, model in each))

    best = min(np.logspace(-3, 3, 7), key=error)
    return fitted(np.full(len(y), True), best).predict((new - mean) / scale)


@pytest.mark.parametrize("slope", [0.1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_predictions_are_those_of_refits_by_hand(form: str, slope: float) -> None:
    measured = ~np.isin(
        np.arange(MODELS * DATASETS), [8, 15, 22, 31, 50]
    )  # datasets differ in how many models they have
    x, y = (values[measured] for values in planted(slope, noise=1))
    models, datasets = MODEL[measured], DATASET[measured]
    found = hold_out(x, y, models, datasets, form)
    for model in (0, 5):
        ins, out = models != model, models == model
        if form == "alone":
            assert found.predicted[out] == pytest.approx(ridge_by_hand(x[ins], y[ins], models[ins], x[out]))
            continue
        both = np.column_stack([x, y])[ins]
        left = np.array(
            [
                row - both[(datasets[ins] == data) & (models[ins] != own)].mean(axis=0)
                for row, own, data in zip(both, models[ins], datasets[ins], strict=True)
            ]
        )
        others = np.array([both[datasets[ins] == data].mean(axis=0) for data in datasets[out]])
        correction = ridge_by_hand(left[:, :2], left[:, 2], models[ins], x[out] - others[:, :2])
        assert found.predicted[out] == pytest.approx(others[:, 2] + correction)


@pytest.mark.parametrize("form", FORMS)
def test_gains_of_the_held_out_model_are_not_used_to_predict_it(form: str) -> None:
    x, y = planted(1)
    changed = np.where(MODEL == 3, 1000 * y, y)
    before, after = (hold_out(x, values, MODEL, DATASET, form).predicted for values in (y, changed))
    assert (before[MODEL == 3] == after[MODEL == 3]).all()
    assert (before[MODEL != 3] != after[MODEL != 3]).all()


@pytest.mark.parametrize("form", FORMS)
def test_units_of_the_predictors_do_not_matter(form: str) -> None:
    x, y = planted(1)
    moved = hold_out(x * [1e6, 1e-6] + [5, 0], y, MODEL, DATASET, form).predicted
    assert moved == pytest.approx(hold_out(x, y, MODEL, DATASET, form).predicted, rel=1e-5, abs=1e-6)


def test_r2_and_skill_are_of_the_same_held_out_points() -> None:
    x, y = planted(0.5)
    found = hold_out(x, y, MODEL, DATASET)
    score = accuracy(found)
    ours, theirs = ((found.actual - guess) ** 2 for guess in (found.predicted, found.baseline))
    assert score.r2 == pytest.approx(1 - ours.sum() / ((y - y.mean()) ** 2).sum())
    assert score.skill == pytest.approx(1 - ours.sum() / theirs.sum())
    assert score.rmse == pytest.approx(np.sqrt(ours.mean()))


def test_a_dataset_that_only_one_model_saw_has_no_mean_of_the_others() -> None:
    x, y = planted(1)
    y[(DATASET == 2) & (MODEL != 5)] = np.nan
    found = hold_out(x, y, MODEL, DATASET)
    assert np.isnan(found.baseline).sum() == 1
    assert accuracy(found).n == np.isfinite(y).sum() - 1


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_predicted_says_why() -> None:
    x, y = planted(1)
    two = MODEL < 2
    assert accuracy(hold_out(x[two], y[two], MODEL[two], DATASET[two])).reason == "2 to hold out in turn, 3 needed"
    assert "3 needed" in str(accuracy(hold_out(x, np.full(len(y), np.nan), MODEL, DATASET)).reason)
    assert accuracy(hold_out(x, np.ones(len(y)), MODEL, DATASET)).reason == "constant"
    assert accuracy(hold_out(np.ones_like(x), y, MODEL, DATASET)).reason == "no predictor varies"
    by_dataset = np.arange(DATASETS, dtype=float)[DATASET]
    assert accuracy(hold_out(x, by_dataset, MODEL, DATASET)).reason == "the mean of the others is never wrong"
    with pytest.raises(ValueError, match="alone, added"):
        hold_out(x, y, MODEL, DATASET, "both")


def test_a_predictor_that_is_constant_wherever_it_is_learned_is_not_used() -> None:
    """Inside one fold a column may not vary although it does in the whole."""
    x, y = planted(1)
    flag = np.column_stack([x[:, 0], MODEL == 0])
    found = hold_out(flag, y, MODEL, DATASET, "alone")
    assert np.isfinite(found.predicted).all()


def test_every_predictor_by_itself_and_all_together_in_both_forms_and_splits() -> None:
    x, y = planted(1)
    pairs = [(f"m{model}", f"d{dataset}") for model, dataset in zip(MODEL, DATASET, strict=True)]
    cells = tuple(Cell("full", *pair, "t", True, gain, 0.5) for pair, gain in zip(pairs, y.tolist(), strict=True))
    predictors = {name: dict(zip(pairs, x[:, at].tolist(), strict=True)) for at, name in enumerate("pq")}
    rows = slice_rows(Slice("full", "all", None, cells), {**predictors, "unmeasured": {}})
    assert {row["predictors"] for row in rows} == {"mean of the others", "p", "q", "p + q"}
    assert {(row["form"], row["split"]) for row in rows if row["form"] != "baseline"} == {
        (form, split) for form in FORMS for split in ("leave_one_model_out", "leave_one_dataset_out")
    }
    best = max(rows, key=lambda row: row["skill"])
    assert "p" in best["predictors"]
    of_task = slice_rows(Slice("full", "task", "t", cells), predictors)
    assert {row["predictors"] for row in of_task} == {"mean of the others", "p + q"}
    assert {row["target"] for row in of_task} == {"t"}


def test_the_mean_of_the_others_has_an_accuracy_where_nothing_was_measured() -> None:
    _, y = planted(1)
    pairs = [(f"m{model}", f"d{dataset}") for model, dataset in zip(MODEL, DATASET, strict=True)]
    cells = tuple(Cell("full", *pair, "t", True, gain, 0.5) for pair, gain in zip(pairs, y.tolist(), strict=True))
    rows = slice_rows(Slice("full", "task", "t", cells), {})
    assert [row["split"] for row in rows] == ["leave_one_model_out", "leave_one_dataset_out"]
    grid = y.reshape(MODELS, DATASETS)
    others = (grid.sum(axis=0) - grid) / (MODELS - 1)
    expected = 1 - ((grid - others) ** 2).sum() / ((grid - grid.mean()) ** 2).sum()
    assert rows[0]["baseline_r2"] == rows[0]["r2"] == pytest.approx(expected)
    assert rows[0]["skill"] == 0
