"""Two studies side by side: which of their cells are the same, and how far they differ."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from raysft.publish import make_comparison, report_released
from raysft.report.comparison import Side
from raysft.report.comparison.gains import compare_gains, scale_notes
from raysft.report.comparison.sides import Pair, different_settings, only_in_one, pairs
from raysft.report.comparison.tables import claims, similarities
from raysft.report.findings import Findings, read_findings
from raysft.store.layout import StorageError
from raysft.study import run_study
from raysft.study.gains import final_gains
from raysft.study.released import study_released
from raysft.study.similarity import similarity_table
from tests.unit.synthetic_tables import Sweep, synthetic_tables, write_tables
from tests.unit.test_study_tests import gain_rows, gain_table_of

pytestmark = pytest.mark.invariants

FIRST = Sweep(datasets=("addition", "reverse"), epochs=1, noise=0.03)
SECOND = Sweep(
    models=("micro-llama", "micro-qwen3", "micro-gemma2", "new"), datasets=("reverse", "uppercase"), epochs=2
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    made = []
    for name, sweep in (("first", FIRST), ("second", SECOND)):
        folder = tmp_path_factory.mktemp(name)
        write_tables(synthetic_tables(sweep), folder / "tables")
        run_study(folder / "tables", folder / "study")
        made.append(folder)
    return made[0], made[1]


@pytest.fixture(scope="module")
def sides(folders: tuple[Path, Path]) -> tuple[Side, Side]:
    first, second = (read_findings(folder / "tables", folder / "study") for folder in folders)
    return Side("first", first), Side("second", second)


def test_only_what_both_call_by_one_name_is_compared(sides: tuple[Side, Side]) -> None:
    found = pairs(*sides)
    assert found == [Pair("full", "full", "full"), Pair("lora", "lora", "lora")]
    compared = compare_gains(*sides, found)
    assert set(compared["dataset"].to_pylist()) == {"reverse"}
    assert set(compared["task"].to_pylist()) == {"micro_reverse_choice", "micro_reverse_exact"}
    left = {(row["what"], row["name"], row["only_in"]) for row in only_in_one(*sides, found)}
    assert {("model", "new", "B"), ("dataset", "addition", "A"), ("dataset", "uppercase", "B")} <= left
    settings = {(row["variant"], row["setting"]): (row["A"], row["B"]) for row in different_settings(*sides, found)}
    assert settings == {("full", "epochs"): ("1", "2"), ("lora", "epochs"): ("1", "2")}


def test_differences_are_over_the_models_that_both_have(sides: tuple[Side, Side]) -> None:
    compared = compare_gains(*sides, pairs(*sides)).to_pylist()
    row = next(row for row in compared if row["variant"] == "full" and row["task"] == "micro_reverse_exact")
    gains = []
    for side in sides:
        cells = [
            cell
            for cell in final_gains(side.findings.study["gains"]).to_pylist()
            if (cell["variant"], cell["dataset"], cell["task"]) == ("full", "reverse", "micro_reverse_exact")
        ]
        gains.append({cell["model"]: cell["scaled_gain"] for cell in cells})
    differences = [gains[1][model] - gains[0][model] for model in gains[0]]
    test = stats.ttest_1samp(differences, 0)
    interval = test.confidence_interval(0.95)
    assert row["models"] == 3
    assert row["B_models"] == 4
    assert row["difference"] == pytest.approx(np.mean(differences))
    assert row["p"] == pytest.approx(test.pvalue)
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))


def test_variants_whose_names_depend_on_their_study_are_matched_by_their_settings(tmp_path: Path) -> None:
    """`full` with one size is `full, 512 rows` beside a second; a learning rate unknown to one is no difference."""
    one = synthetic_tables(replace(FIRST, methods=("full",)))
    two = synthetic_tables(replace(FIRST, methods=("full",)))
    other = synthetic_tables(replace(FIRST, methods=("full",), seeds=(1,)))
    made = []
    for name in ("trials", "scores"):
        sized = other[name].to_pylist()
        rows = two[name].to_pylist() + [{**row, "size": 1024} for row in sized if row["trial"] is not None]
        rows = [{**row, "learning_rate": None} for row in rows]
        two[name] = two[name].from_pylist(rows, schema=two[name].schema)
    for at, tables in enumerate((one, {name: two[name] for name in ("trials", "scores")})):
        folder = tmp_path / str(at)
        run_study(write_tables(tables, folder / "tables"), folder / "study")
        made.append(Side(str(at), read_findings(folder / "tables", folder / "study")))
    assert pairs(made[0], made[1]) == [Pair("full, 512 rows", "full", "full, 512 rows")]
    compared = compare_gains(made[0], made[1], pairs(made[0], made[1]))
    assert compared.num_rows == 8
    assert np.allclose(compared["difference"].to_numpy(), 0)


def test_a_study_agrees_with_itself(sides: tuple[Side, Side]) -> None:
    found = similarities(sides[1], sides[1]).data.to_pylist()
    tasks = next(row for row in found if row["matrix"] == "task")
    assert tasks["r"] == pytest.approx(1)
    assert claims(sides[0], sides[1]).empty


def test_a_common_error_of_base_scores_makes_no_two_studies_agree() -> None:
    """Two studies of the same bases whose gains are noise, less the base scores that both are measured from."""
    random = np.random.default_rng(6)
    positive: Counter[str] = Counter()
    for _ in range(30):
        bases = random.normal(size=(len("stuvw"), 6, 1, 1))
        made = []
        for name in "AB":
            rows = [
                gain_rows(random.normal(size=(6, 5, 1)) - base, task) for task, base in zip("stuvw", bases, strict=True)
            ]
            table = gain_table_of(*rows)
            study = {"gains": table, "similarity": similarity_table(table)}
            made.append(Side(name, Findings({}, study)))
        found = similarities(made[0], made[1]).data.to_pylist()
        positive.update(row["matrix"] for row in found if row["p"] is not None and row["p"] < 0.05)
        assert all(row["q"] is None if row["p"] is None else row["q"] >= row["p"] for row in found)
    assert max(positive.values()) <= 6  # 1.5 by chance, of each; without centring 16 of tasks and 17 of models


def test_two_storages_make_one_page(folders: tuple[Path, Path], tmp_path: Path) -> None:
    page = make_comparison(str(folders[0]), str(folders[1]), tmp_path / "out")
    html = page.read_text(encoding="utf-8")
    assert "Every cell that both have" in html
    assert {"gains_full.csv", "cells.csv", "names.csv"} <= {path.name for path in (tmp_path / "out" / "data").iterdir()}


def scored(base: float, tuned: float, task: str, out: Path) -> Path:
    """A study of released scores of three models on one task, whose scores are all about as large as these."""
    rows = ["model,dataset,other," + task]
    for at, model in enumerate("abc"):
        rows += [f"{model},base,30,{base + at / 100 * base}", f"{model},d,60,{tuned - at / 100 * tuned}"]
    (path := out.with_suffix(".csv")).write_text("\n".join(rows))
    study_released(path, out)
    return out


@pytest.mark.parametrize(
    ("weak", "strong", "gains", "note"),
    [
        # Percentages below 10 in one, above in the other; nothing says that they are percentages.
        (
            5.0,
            60.0,
            (0.04, 0.2),
            "Scores of x fit a scale of 10 in A and 100 in B: its gains are shares of 100 in both",
        ),
        (
            0.5,
            60.0,
            (0.4, 0.2),
            "Scores of x fit a scale of 1 in A and 100 in B: its gains are shares of 1 in A",
        ),
        (50.0, 60.0, (0.4, 0.2), None),
    ],
)
def test_two_scales_of_one_task(
    weak: float, strong: float, gains: tuple[float, float], note: str | None, tmp_path: Path
) -> None:
    made = [scored(weak, weak * 1.8, "x", tmp_path / "a"), scored(strong, strong * 4 / 3, "x", tmp_path / "b")]
    both = [Side(folder.name, read_findings(folder / "sweep", folder)) for folder in made]
    row = next(row for row in compare_gains(*both, pairs(*both)).to_pylist() if row["task"] == "x")
    assert (row["A"], row["B"]) == pytest.approx(gains, rel=0.1)
    notes = scale_notes(*both)
    assert [found[: len(note or "")] for found in notes] == ([note] if note else [])
    if note:
        html = make_comparison(str(made[0]), str(made[1]), tmp_path / "out").read_text(encoding="utf-8")
        assert note in html


def test_studies_with_nothing_in_common_say_so(folders: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    tables = synthetic_tables(Sweep(models=("m",), datasets=("elsewhere",), methods=("dora",), epochs=1))
    run_study(write_tables(tables, folder / "tables"), folder / "study")
    html = make_comparison(str(folders[0]), str(folder), tmp_path / "out").read_text(encoding="utf-8")
    assert "Nothing can be compared cell by cell" in html


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "no such file or folder"),
        (lambda folder: folder.mkdir(), "no tables there"),
        (lambda folder: write_tables(synthetic_tables(FIRST), folder / "tables"), "no study there yet"),
    ],
)
def test_what_is_no_study_is_one_line(folders: tuple[Path, Path], tmp_path: Path, make: object, says: str) -> None:
    make(tmp_path / "x")  # type: ignore[operator]
    with pytest.raises(StorageError, match=says) as found:
        make_comparison(str(folders[0]), str(tmp_path / "x"), tmp_path / "out")
    assert "\n" not in str(found.value)


def test_a_report_of_released_scores_wants_their_study(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no study of released scores; `raysft study --released` makes one"):
        report_released(tmp_path)
