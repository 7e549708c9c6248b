"""False positives of paired differences on null grids, where pairs share their models and datasets."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from raysft.study.statistics.paired import paired

pytestmark = pytest.mark.invariants

GRIDS, MODELS, DATASETS = 400, 11, 10


def rates(of_model: float, of_dataset: float, effect: float = 0.0) -> tuple[float, float]:
    """Share of grids with p below 0.05, clustered and by a plain t test; standard deviations beside noise of 1."""
    random = np.random.default_rng(0)
    labels = [(str(model), str(dataset)) for model, dataset in product(range(MODELS), range(DATASETS))]
    models, datasets = map(list, zip(*labels, strict=True))
    clustered = plain = 0
    for _ in range(GRIDS):
        shared = of_model * random.normal(size=(MODELS, 1)) + of_dataset * random.normal(size=(1, DATASETS))
        values = (effect + shared + random.normal(size=(MODELS, DATASETS))).ravel()
        clustered += paired(values, np.zeros_like(values), [models, datasets]).p < 0.05
        plain += stats.ttest_1samp(values, 0).pvalue < 0.05
    return clustered / GRIDS, plain / GRIDS


@pytest.mark.parametrize(("of_model", "of_dataset"), [(0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5)])
def test_false_positives_stay_near_five_in_a_hundred(of_model: float, of_dataset: float) -> None:
    clustered, plain = rates(of_model, of_dataset)
    # 400 grids at 5% have a standard error of 1.1%.
    assert 0.015 < clustered < 0.085
    assert plain > 0.3 or of_model == of_dataset == 0


def test_an_effect_that_is_there_is_found() -> None:
    assert rates(0.5, 0.5, effect=1.0)[0] > 0.9
