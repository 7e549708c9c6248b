"""Which epochs' log-likelihood vectors are taken, and that what was stored before is found as it was."""

from __future__ import annotations

from typing import Any

import pytest

from raysft.spec.plan import make_plan
from raysft.spec.sweep import SpecError, parse_sweep

pytestmark = pytest.mark.unit


def _content(epochs: Any = None) -> dict[str, Any]:
    """One trial of four epochs, of which the first, second and last are measured."""
    probe = {} if epochs is None else {"epochs": epochs}
    return {
        "name": "small",
        "storage": "s3://bucket/small",
        "models": [{"name": "base", "hub": "some/model", "revision": "abc"}],
        "datasets": [{"name": "capitals", "generated": {"skill": "capitals", "rows": 64}}],
        "methods": [{"name": "full", "kind": "full"}],
        "grid": [{"sizes": [32], "epochs": [4], "measure": [1, 2, 4]}],
        "evaluation": {"tasks": []},
        "probes": {"log_likelihood": {"texts": "skills", **probe}, "intrinsic_dimension": None},
    }


def _keys(epochs: Any = None) -> dict[int | None, str]:
    plan = make_plan(parse_sweep(_content(epochs), "sweep"))
    works = [work for unit in plan.units for work in unit.works if work.stage == "log_likelihood"]
    return {work.subject.epoch: work.key for work in works}


def test_without_more_said_it_is_the_base_and_the_last_under_the_keys_of_before() -> None:
    assert _keys() == _keys("last") == {0: "772fd0c6ddba97e46e39", 4: "734b052d6b2d9b8585c8"}


@pytest.mark.parametrize(("epochs", "taken"), [("all", [0, 1, 2, 4]), ([1], [0, 1]), ([4, 2], [0, 2, 4])])
def test_more_epochs_add_their_own_and_change_no_other(epochs: Any, taken: list[int]) -> None:
    found, before = _keys(epochs), _keys()
    assert sorted(epoch for epoch in found if epoch is not None) == taken
    assert {epoch: key for epoch, key in found.items() if epoch in before} == {
        epoch: key for epoch, key in before.items() if epoch in taken
    }
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        ([3], "probes.log_likelihood.epochs: no trial is measured at epoch 3; valid: last, all, or some of 1, 2, 4"),
        ([0], "probes.log_likelihood.epochs.0: Input should be greater than or equal to 1, found 0"),
        ([], "probes.log_likelihood.epochs: .*"),
        ("first", "probes.log_likelihood.epochs: .*'last' or 'all'.*found 'first'"),
    ],
)
def test_epochs_that_there_are_none_of_are_refused(epochs: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_plan(parse_sweep(_content(epochs), "sweep"))
