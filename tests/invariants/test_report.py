"""The report as a reader gets it: one page that holds everything, the same bytes every time."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from raysft.report import write_report
from raysft.report.listing import number
from raysft.study import run_study
from tests.unit.planted_study import fill_study
from tests.unit.synthetic_tables import Sweep, synthetic_tables, write_tables

pytestmark = pytest.mark.invariants

HOSTILE = "<script>alert(1)</script>"
BREAKING = "</script><img src=x onerror=alert(1)>"
FIGURES = {
    "gain_matrix_full",
    "bits_matrix_full",
    "minmax_matrix_full",
    "gain_by_model_full",
    "minmax_by_model_full",
    "methods_compared",
    "epochs_and_sizes",
    "gain_by_epoch",
    "cross_lingual",
    "training_loss",
    "trial_correlations",
    "components",
    "similarity_task",
    "similarity_dataset",
    "similarity_model",
    "similarity_model_by_task",
    "similarity_model_by_dataset",
    "matrices_compared",
    "gain_against_perplexity",
    "gain_against_length",
    "gain_against_similarity",
    "prediction",
    "noise_ceilings",
    "weight_change",
    "weight_change_and_gain",
    "mid_layer",
    "layer_similarity",
    "update_similarity_dataset",
    "update_similarity_variant",
    "intrinsic_dimension",
    "dimension_by_scale",
    "model_map",
    "map_layouts",
    "trajectories",
    "coverage",
    "scores_measured",
}
LISTINGS = {
    "best_dataset",
    "contamination",
    "cross_lingual_tests",
    "correlations",
    "strongest_layers",
    "failures",
    "costs",
    "checks",
    "claims",
    "lint",
    "lint_counts",
}


class Page(HTMLParser):
    """What a browser would find: elements by tag, and every id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: dict[str, list[dict[str, str | None]]] = {}
        self.ids: list[str] = []
        self.code: dict[str, str] = {}
        self.values: dict[str, list[dict[str, Any]]] = {}
        self._inside: tuple[str, str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.setdefault(tag, []).append(found)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if "data-figure" in found:
            self._inside = tag, str(found["data-figure"])

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[0] == tag:
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside:
            tag, figure = self._inside
            if tag == "code":
                self.code[figure] = self.code.get(figure, "") + data
            else:
                self.values[figure] = json.loads(data)


def report(sweep: Sweep, folder: Path, name: str = "out", fill: bool = False) -> Path:
    """The report of a synthetic sweep; `fill` plants what the study of so small a sweep lacks."""
    tables = write_tables(synthetic_tables(sweep), folder / "tables")
    run_study(tables, folder / "study")
    if fill:
        fill_study(folder / "study", list(sweep.tasks), list(sweep.models), list(sweep.datasets))
    return write_report(tables, folder / "study", folder / name, title=f"Sweep of {HOSTILE}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    datasets = ["addition", "mmlu", "mmlu_ja", HOSTILE]
    failed = frozenset({("m$1$", "addition", "full")})
    folder = tmp_path_factory.mktemp("report")
    models = ["m$1$", "m2", BREAKING]
    sweep = Sweep(models=models, datasets=datasets, methods=["full"], epochs=2, noise=0.03, failed=failed)
    report(sweep, folder, fill=True)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "out" / "report.html").read_text(encoding="utf-8"))


def test_every_figure_is_drawn_and_lies_beside_the_page_with_its_numbers(folder: Path, page: Page) -> None:
    drawn = {str(found["id"]) for found in page.tags["figure"]}
    assert drawn == FIGURES
    labelled = [found for found in page.tags["svg"] if found.get("role") == "img" and found.get("aria-label")]
    assert len(labelled) == len(FIGURES)
    out = folder / "out"
    for kind in ("png", "pdf"):
        assert {path.stem for path in (out / "figures").glob(f"*.{kind}")} == FIGURES
    assert {path.stem for path in (out / "data").glob("*.csv")} == FIGURES | LISTINGS
    assert all(pacsv.read_csv(path).num_rows for path in (out / "data").glob("*.csv"))


def test_every_link_leads_somewhere(folder: Path, page: Page) -> None:
    for link in page.tags["a"]:
        target = str(link["href"])
        assert target[1:] in page.ids if target.startswith("#") else (folder / "out" / target).is_file(), target


def test_names_from_the_user_are_text_and_never_markup(folder: Path, page: Page) -> None:
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert HOSTILE not in html
    assert "<img" not in html
    assert not page.tags.get("img")
    assert "Sweep of &lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "loss is not finite &lt;b&gt;at&lt;/b&gt; step 3" in html
    assert "Claim supported &lt;b&gt;bold&lt;/b&gt;" in html
    assert "m$1$" in html
    # What the script shows under the pointer is the name itself.
    assert BREAKING in page.values["gain_by_model_full"][0]["texts"][0][0]


def test_the_page_loads_nothing(page: Page) -> None:
    assert not {"link", "img", "iframe", "object", "embed"} & page.tags.keys()
    for tags in page.tags.values():
        for attributes in tags:
            for name, value in attributes.items():
                if not name.startswith("xmlns"):
                    assert "://" not in (value or ""), (name, value)


def test_the_policy_allows_the_pages_own_script_and_no_other(folder: Path, page: Page) -> None:
    policy = next(str(tag["content"]) for tag in page.tags["meta"] if "http-equiv" in tag)
    assert policy.startswith("default-src 'none'")
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert [f"'sha256-{digest}'" for digest in digests] == re.findall(r"'sha256-[^']+'", policy)
    assert all(tag.get("type") == "application/json" for tag in page.tags["script"][:-1])


def test_values_under_the_pointer_are_those_of_the_csv(folder: Path, page: Page) -> None:
    rows = pacsv.read_csv(folder / "out" / "data" / "gain_matrix_full.csv").to_pylist()
    assert rows
    (cells,) = page.values["gain_matrix_full"]
    for row in rows:
        said = cells["texts"][cells["rows"].index(row["dataset"])][cells["columns"].index(row["task"])]
        assert said.startswith(f"{round(row['gain'], 3) + 0.0:+.3f}")
        assert f"mean of {row['models']} models" in said


def test_no_correlation_stands_without_the_tests_that_know_of_models_and_datasets(folder: Path) -> None:
    """Interval, permutation p, mixed-effects slope and every q of the study's table: in a listing, and in words."""
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    listing = html[html.index('id="correlations"') :].partition("</table>")[0]
    header = re.findall(r"<th[^>]*>([^<]+)</th>", listing)
    assert {"permutation p", "permutation q", "within q", "mixed slope", "mixed q"} <= set(header)
    assert "pearson low" not in header
    assert "3 models or datasets, 4 needed to resample them" in listing  # that is why
    studied = pq.read_table(folder / "study" / "tables" / "correlations.parquet").to_pylist()
    of_data = [row for row in studied if row["predictor"] != "weight_change"]
    written = pacsv.read_csv(folder / "out" / "data" / "correlations.csv").to_pylist()
    assert len(written) == len(of_data) == listing.count("<tr>") - 1
    row = next(row for row in of_data if row["predictor"] == "similarity" and row["scope"] == "cells")
    line = re.search(r"<li>Similarity, full: ([^<]+)</li>", html)
    assert line is not None
    assert f"permutation p = {number(row['permutation_p'])}, q = {number(row['permutation_q'])}" in line[1]
    row = next(row for row in of_data if row["predictor"] == "response_perplexity" and row["scope"] == "matching")
    line = re.search(r"<li>Response perplexity, full: ([^<]+)</li>", html)
    assert line is not None
    assert f"mixed-effects slope {number(row['mixed_slope'])} (standard error {number(row['mixed_stderr'])}" in line[1]
    assert f"p = {number(row['within_p'])}, q = {number(row['within_q'])}, {row['within_df']} df" in line[1]
    between = pacsv.read_csv(folder / "out" / "data" / "cross_lingual_tests.csv").to_pylist()
    assert between
    for row in between:
        assert row["permutation_p"] >= 1 / 144  # of 3! orders of models and 4! of datasets
        assert f"permutation p = {number(row['permutation_p'])}" in html


def test_the_strongest_layer_of_each_choice_of_tasks_has_paid_for_the_search(folder: Path) -> None:
    rows = pacsv.read_csv(folder / "out" / "data" / "strongest_layers.csv").to_pylist()
    tests = pq.read_table(folder / "study" / "tables" / "layer_tests.parquet").to_pylist()
    assert len(rows) == len({(row["variant"], row["scope"], row["task"], row["effects"]) for row in tests if row["r"]})
    assert all(row["p_max"] >= row["p"] > 0 for row in rows)


def test_methods_name_only_the_tests_of_which_there_is_a_number(folder: Path, tmp_path: Path) -> None:
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    said = html[html.index("<h3>Statistics</h3>") :].partition("</p>")[0]
    for words in (
        "Pearson",
        "fixed effects",
        "mixed-effects",
        "permutation",
        "Westfall and Young",
        "Mantel",
        "held-out",
    ):
        assert words in said, words
    # Models and datasets of which there are three cannot be resampled, so no interval of a correlation was made.
    assert "resample" not in said
    scores = {name: table for name, table in synthetic_tables(Sweep(epochs=1, noise=0.03)).items() if name == "scores"}
    run_study(write_tables(scores, tmp_path / "tables"), tmp_path / "study")
    html = write_report(tmp_path / "tables", tmp_path / "study", tmp_path / "out", "Scores").read_text("utf-8")
    said = html[html.index("<h3>Statistics</h3>") :].partition("</p>")[0]
    assert "A gain is" in said
    for words in ("Correlations", "fixed effects", "mixed-effects", "permute", "Westfall and Young", "resample"):
        assert words not in said, words


def test_points_lie_where_they_are_drawn(folder: Path, page: Page) -> None:
    """The script's x of a correlation and its value are on one line: the same scale as the axis."""
    (dots,) = page.values["components"]
    left, top, width, height = dots["box"]
    places = np.array([[x, y] for x, y, _ in dots["dots"]])
    assert ((places >= [left - 1, top - 1]) & (places <= [left + width + 1, top + height + 1])).all()
    shares = np.array([float(re.search(r"([\d.]+)%", text)[1]) for _, _, text in dots["dots"]])  # type: ignore[index]
    assert abs(np.corrcoef(shares, places[:, 1])[0, 1] + 1) < 1e-4


def test_the_code_under_every_figure_redraws_it(folder: Path, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    assert page.code.keys() == FIGURES
    monkeypatch.chdir(folder / "out")
    with mpl.rc_context({"backend": "agg", "text.parse_math": False}):
        monkeypatch.setattr(plt, "show", lambda: None)
        for name, code in page.code.items():
            plt.close("all")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(compile(code, name, "exec"), {})
            axes = [panel for number in plt.get_fignums() for panel in plt.figure(number).axes]
            drawn = [panel for panel in axes if panel.collections or panel.lines or panel.patches or panel.images]
            assert drawn, f"{name} draws nothing:\n{code}"
        plt.close("all")


def test_ids_are_unique_so_that_no_figure_borrows_from_another(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))


def test_running_again_gives_the_same_bytes(folder: Path) -> None:
    write_report(folder / "tables", folder / "study", folder / "again", title=f"Sweep of {HOSTILE}")
    first = {path.relative_to(folder / "out"): path for path in (folder / "out").rglob("*.*")}
    again = {path.relative_to(folder / "again"): path for path in (folder / "again").rglob("*.*")}
    assert first.keys() == again.keys()
    for name, path in first.items():
        assert path.read_bytes() == again[name].read_bytes(), name


def test_the_headlines_say_what_happened(folder: Path) -> None:
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    counts = re.findall(r'class="count">([^<]+)<', html)
    assert counts[0] == "11 / 12"
    # Every fine-tuning that is done gained on its own skill; the hostile name's stems are in its tasks too.
    assert counts[1] == "11 / 11"
    assert "1 failed, 0 missing" in html


def test_claims_stand_with_their_verdicts_the_supported_first(folder: Path) -> None:
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    badges = re.findall(
        r'<span class="badge ([a-z-]+)">', html[html.index('id="claims"') : html.index('id="section-gains"')]
    )
    assert badges == ["supported", "not-supported", "cannot-be-told"]
    assert "Of the paper&#39;s claims: 1 supported, 1 not supported, 1 cannot be told." in html
    assert "Said with its numbers. Too few models." in html
    rows = pacsv.read_csv(folder / "out" / "data" / "claims.csv").to_pylist()
    assert [row["numbers"] for row in rows] == ["n = 3"] * 3


@pytest.mark.parametrize(
    "sweep",
    [
        Sweep(models=["m"], datasets=["d"], epochs=1),
        Sweep(models=["m"], datasets=["d"], methods=["full"], missing=frozenset({("m", "d", "full")})),
    ],
    ids=["one model and dataset", "nothing done"],
)
def test_what_cannot_be_drawn_says_why(tmp_path: Path, sweep: Sweep) -> None:
    html = report(sweep, tmp_path).read_text(encoding="utf-8")
    absent = dict(
        re.findall(r'<figure id="([^"]+)" class="undrawn">(?:(?!</figure>).)*Not drawn: ([^<]+)', html, flags=re.DOTALL)
    )
    assert {"similarity_task", "similarity_model", "weight_change_and_gain"} <= absent.keys()
    assert all(len(reason) > 10 for reason in absent.values())


def test_no_tables_at_all_still_make_a_page(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    run_study(tmp_path / "tables", tmp_path / "study")
    html = write_report(tmp_path / "tables", tmp_path / "study", tmp_path / "out", title="Empty").read_text("utf-8")
    assert "Not drawn" in html
    assert "<svg" not in html
