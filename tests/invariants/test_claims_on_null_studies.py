"""Claims are hardly ever supported where nothing was planted, and those of no difference not at their margin."""

from __future__ import annotations

from collections import Counter

import pytest

from raysft.study.claims.evidence import Evidence
from raysft.study.claims.table import CLAIMS_OF_THE_PAPER, claim_table
from raysft.study.claims.verdict import CANNOT_TELL, MATTERS_GAIN, NOT_SUPPORTED, SUPPORTED
from tests.unit.planted_claims import PLANTED, Planted, null_study
from tests.unit.planted_studies import curves, methods

pytestmark = pytest.mark.invariants

STUDIES = 40
HELD = 6  # of 40 at 5%, more have a chance of 0.3%, and most claims are tested well below 5%
# What is supported once or never in so many is not gone on with: one supported in a quarter of null studies passes here
# with a chance of 6%, with 40 of them of 10%.
FIRST = 16
MOST = 7  # of ten
NO_DIFFERENCE = {"LoRA gains as much", "few rows"}
BY_NAME = {claim.name: claim for claim in CLAIMS_OF_THE_PAPER}


@pytest.fixture(scope="module")
def on_nulls() -> Counter[tuple[str, str]]:
    """How often each claim got each verdict."""
    found: Counter[tuple[str, str]] = Counter()
    for seed in range(STUDIES):
        if seed == FIRST and all(found[name, SUPPORTED] <= 1 for name in set(BY_NAME) - NO_DIFFERENCE):
            break
        rows = claim_table(null_study(100 + seed)).to_pylist()
        found.update((row["name"], row["verdict"]) for row in rows)
    return found


@pytest.mark.parametrize("name", sorted(set(BY_NAME) - NO_DIFFERENCE))
def test_a_null_study_supports_nothing(on_nulls: Counter[tuple[str, str]], name: str) -> None:
    assert sum(on_nulls[name, verdict] for verdict in (SUPPORTED, NOT_SUPPORTED, CANNOT_TELL)) in (FIRST, STUDIES)
    assert on_nulls[name, SUPPORTED] <= HELD


@pytest.mark.parametrize(
    ("name", "study"),
    [
        ("LoRA gains as much", lambda seed: methods(seed, {"a": MATTERS_GAIN, "b": 0.0}, noise=0.05, shared=0.005)),
        ("few rows", lambda seed: curves(seed, MATTERS_GAIN, 0.05, 0.01, shared=0.005)),
    ],
)
def test_a_difference_that_matters_is_rarely_called_none(name: str, study: Planted) -> None:
    verdicts = Counter(BY_NAME[name].test(Evidence(study(seed))).verdict for seed in range(STUDIES))
    assert verdicts[SUPPORTED] <= HELD


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(name: str) -> None:
    """In most of ten studies where the claim is true, and most where it is false, that is the verdict."""
    true, false, _ = PLANTED[name]
    for study, verdict in ((true, SUPPORTED), (false, NOT_SUPPORTED)):
        found: list[str] = []
        while found.count(verdict) < MOST and len(found) < 10:
            found.append(BY_NAME[name].test(Evidence(study(len(found)))).verdict)
        assert found.count(verdict) == MOST, found
