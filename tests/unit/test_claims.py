"""Claims of the paper reach each verdict on studies where they are planted true, false, or out of reach."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from raysft.study.claims.evidence import Evidence
from raysft.study.claims.schema import CLAIMS
from raysft.study.claims.table import CLAIMS_OF_THE_PAPER, Claim, claim_table
from raysft.study.claims.verdict import CANNOT_TELL, NOT_SUPPORTED, SUPPORTED, Outcome, correlated, excludes, jackknife
from raysft.study.schema import STUDY_TABLES
from raysft.study.tables import from_rows
from tests.unit.planted_claims import PLANTED
from tests.unit.planted_studies import curves, data, gains, grid, names, other_variant, places

pytestmark = pytest.mark.unit

VERDICTS = (SUPPORTED, NOT_SUPPORTED, CANNOT_TELL)
BY_NAME = {claim.name: claim for claim in CLAIMS_OF_THE_PAPER}


def test_every_claim_has_planted_studies() -> None:
    assert set(PLANTED) == set(BY_NAME)


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("at", range(3), ids=["true", "false", "out of reach"])
def test_verdicts(name: str, at: int) -> None:
    found = BY_NAME[name].test(Evidence(PLANTED[name][at](1)))
    assert found.verdict == VERDICTS[at], found
    assert (found.reason is not None) == (found.verdict == CANNOT_TELL)
    assert found.statement or found.reason


def test_nothing_can_be_told_of_an_empty_study() -> None:
    for tables in ({}, {name: schema.empty_table() for name, schema in STUDY_TABLES.items()}):
        table = claim_table(tables)
        assert table.schema.equals(CLAIMS)
        assert set(table["verdict"].to_pylist()) == {CANNOT_TELL}
        assert all(table["reason"].to_pylist())
        assert len(set(table["name"].to_pylist())) == table.num_rows == len(BY_NAME)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("models", "datasets"), [(1, 1), (1, 3), (2, 2), (1, 5), (3, 2), (3, 3)])
def test_small_grids_have_their_claims(models: int, datasets: int) -> None:
    random, pairs = np.random.default_rng(models), grid(models, datasets)
    table = claim_table({"gains": gains(pairs, {task: random.normal(size=len(pairs)) for task in names("task", 7)})})
    reason = {row["name"]: row["reason"] for row in table.to_pylist()}["components"]
    assert ("and 7 tasks that vary: 6 of each are needed" in reason) == (1 < len(pairs) < 6)


def test_a_claim_that_numbers_break_says_so_and_the_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(error: type[Exception]) -> tuple[Claim, ...]:
        def test(study: Evidence) -> Outcome:
            raise error("of two\nlines")

        return (replace(BY_NAME["components"], test=test), *CLAIMS_OF_THE_PAPER)

    monkeypatch.setattr("raysft.study.claims.table.CLAIMS_OF_THE_PAPER", broken(ZeroDivisionError))
    with pytest.warns(RuntimeWarning, match="'components': its test broke off with ZeroDivisionError: of two lines"):
        table = claim_table(data(1, 1.0))
    assert table["reason"][0].as_py() == "its test broke off with ZeroDivisionError: of two lines"
    assert table["verdict"].to_pylist()[:2] == [CANNOT_TELL, SUPPORTED]
    monkeypatch.setattr("raysft.study.claims.table.CLAIMS_OF_THE_PAPER", broken(AttributeError))
    with pytest.raises(AttributeError):
        claim_table(data(1, 1.0))


def test_a_whole_table_is_decided_alike_each_time_and_its_numbers_are_json() -> None:
    tables = {**data(1, 1.0), **places(1, 5, 1, 1)}
    first = claim_table(tables)
    assert first.equals(claim_table(tables))
    numbers = [json.loads(text) for text in first["numbers"].to_pylist()]
    assert any(values.get("n") == 120 for values in numbers)
    assert "NaN" not in "".join(first["numbers"].to_pylist())


def test_plain_pearson_is_set_beside_the_verdict() -> None:
    tables = data(1, 1.0)
    rows = tables["correlations"].to_pylist()
    rows[0]["pearson"] = 0.01
    hidden = {**tables, "correlations": tables["correlations"].from_pylist(rows, schema=tables["correlations"].schema)}
    found = BY_NAME["perplexity"].test(Evidence(hidden))
    assert found.verdict == SUPPORTED
    assert found.statement is not None
    assert "alone would not have seen it" in found.statement
    shown = BY_NAME["perplexity"].test(Evidence(tables)).statement
    assert shown is not None
    assert "alone would have said the same" in shown


def test_curves_are_of_what_is_studied_and_on_its_scale() -> None:
    study = Evidence(curves(1, lead_of_many=0.01, growth=0.05, noise=0.001))
    few, more = (BY_NAME[name].test(study) for name in ("few rows", "more epochs"))
    assert few.numbers["many_minus_few"] == pytest.approx(0.01, abs=0.001)
    assert more.numbers["last_minus_first"] == pytest.approx(0.05, abs=0.001)
    for found in (few, more):
        assert found.statement is not None
        assert "over 32 pairs of 4 models (model00, model01, model02, model03) and 8 tasks" in found.statement


@pytest.mark.parametrize(
    ("tasks", "compared"),
    [
        (("mmlu-zh", "mmlu-jp"), []),  # no English to compare with: neither with itself nor with the other
        (("mmlu", "mmlu-zh", "mmlu-jp"), ["mmlu against mmlu-jp", "mmlu against mmlu-zh"]),
        (("global_mmlu_full_en", "global_mmlu_full_ja"), ["global_mmlu_full_en against global_mmlu_full_ja"]),
        (("mmlu-0shot", "cmmlu-5shot"), []),
        (
            ("mmlu-0shot", "cmmlu-0shot", "mmlu-5shot", "cmmlu-5shot"),
            ["mmlu-0shot against cmmlu-0shot", "mmlu-5shot against cmmlu-5shot"],
        ),
    ],
)
def test_a_benchmark_is_compared_with_itself_in_another_language(tasks: tuple[str, ...], compared: list[str]) -> None:
    random, pairs = np.random.default_rng(1), grid(5, 5)
    tables = {"gains": gains(pairs, {task: random.normal(size=len(pairs)) for task in tasks})}
    found = BY_NAME["languages"].test(Evidence(tables))
    assert sorted(re.findall(r"\S+ against \S+(?=:)", found.statement or "")) == sorted(compared)


@pytest.mark.parametrize(
    ("low", "verdict"), [(0.005, CANNOT_TELL), (0.01, CANNOT_TELL), (0.025, NOT_SUPPORTED), (-0.01, CANNOT_TELL)]
)
def test_lora_gains_less_only_where_the_difference_is_larger_than_what_matters(low: float, verdict: str) -> None:
    # Errors of 0.01 on 20 degrees of freedom: the interval's ends are 0.042 apart.
    row = {"task": "a", "first": "full", "second": "lora", "n": 100, "scale": 1.0, "stderr": 0.01, "df": 20}
    wide = 0.01 * stats.t.ppf(0.975, 20)
    p = 2 * stats.t.sf((low + wide) / 0.01, 20)
    for sign in (1, -1):
        ends = sorted((sign * low, sign * (low + 2 * wide)))
        found = {**row, "mean_difference": sign * (low + wide), "low": ends[0], "high": ends[1], "p": p, "q": p}
        table = from_rows([found], STUDY_TABLES["pairs"])
        assert BY_NAME["LoRA gains as much"].test(Evidence({"pairs": table})).verdict == verdict


@pytest.mark.parametrize(("lead", "verdict"), [(0.03, CANNOT_TELL), (0.1, NOT_SUPPORTED)])
def test_few_rows_gain_less_only_where_the_lead_is_larger_than_what_matters(lead: float, verdict: str) -> None:
    found = BY_NAME["few rows"].test(Evidence(curves(0, lead, 0.05, noise=0.001, shared=0.008)))
    assert found.verdict == verdict, found
    assert float(found.numbers["many_minus_few_low"] or 0) > 0


def test_that_three_models_agree_does_not_exclude_that_models_differ() -> None:
    """Gains that spread by 0.01: of three models a standard deviation of 0.044 is not excluded, of 40 one of 0.012."""
    for models, verdict in ((3, CANNOT_TELL), (40, NOT_SUPPORTED)):
        spread = np.random.default_rng(1).normal(size=models)
        spread = 0.01 * (spread - spread.mean()) / spread.std(ddof=1)
        tables = {"gains": gains(grid(models, 1), {"a": spread}, stderr=0.05)}
        found = BY_NAME["synergies differ"].test(Evidence(tables))
        assert found.verdict == verdict
        if models == 3:
            assert found.reason == "gains that spread by 0.044 of the scale between models are not excluded somewhere"


def test_claims_are_decided_in_a_full_fine_tuning_unless_few_pairs_have_one() -> None:
    tables = other_variant(data(1, 1.0), "aaa", models=3)
    study = Evidence(tables)
    assert (study.variant, study.others) == ("full", ["aaa"])
    assert study.models == names("model", 12)
    assert Evidence(other_variant(data(1, 1.0), "aaa", models=12)).variant == "full"
    lora = {"gains": gains(grid(12, 10), {"task": np.zeros(120)}, "lora")}
    assert Evidence(other_variant(lora, "full", models=10)).variant == "full"
    assert Evidence(other_variant(lora, "full", models=9)).variant == "lora"


def test_two_models_say_nothing_of_models() -> None:
    tables = PLANTED["LoRA same structure"][0](1)
    pairs = grid(2, 10)
    few = {**tables, "gains": gains(pairs, {"task": np.arange(20.0)})}
    row = claim_table(few).to_pylist()[[claim.name for claim in CLAIMS_OF_THE_PAPER].index("LoRA same structure")]
    assert (row["verdict"], row["reason"]) == (CANNOT_TELL, "2 models, 3 needed")
    assert row["statement"]
    assert BY_NAME["LoRA same structure"].test(Evidence(few)).verdict == SUPPORTED


def test_a_claim_says_which_table_it_lacks() -> None:
    tables = data(1, 1.0)
    del tables["correlations"]
    reason = BY_NAME["perplexity"].test(Evidence(tables)).reason
    assert reason is not None
    assert "response_nll_per_token" in reason


def test_excluding_a_correlation_needs_degrees_of_freedom() -> None:
    # atanh(0.3) sqrt(df - 1) beyond 1.645: 29.3 degrees of freedom.
    assert not excludes(0.0, 29, 0.3)
    assert excludes(0.0, 31, 0.3)
    assert correlated(0.5, 50, 0.01, -1)[0] == NOT_SUPPORTED
    assert correlated(-0.5, 50, 0.01, -1)[0] == SUPPORTED


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.array([1.0, 4.0, 2.0, 7.0])
    found = jackknife(float(values.mean()), np.array([np.delete(values, at).mean() for at in range(4)]))
    assert found.stderr == pytest.approx(values.std(ddof=1) / 2)
    assert found.df == 3
