"""The report as a reader gets it: one page that holds everything, the same bytes every time."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.csv as pacsv
import pytest

from raysft.report import write_report
from raysft.study import run_study
from tests.unit.synthetic_tables import Sweep, synthetic_tables, write_tables

pytestmark = pytest.mark.invariants

HOSTILE = "<script>alert(1)</script>"
FIGURES = {
    "gain_matrix_full",
    "bits_matrix_full",
    "gain_by_model",
    "gain_by_epoch",
    "training_loss",
    "similarity_task",
    "similarity_dataset",
    "similarity_model",
    "gain_against_perplexity",
    "gain_against_length",
    "gain_against_similarity",
    "weight_change",
    "weight_change_and_gain",
    "intrinsic_dimension",
    "dimension_by_scale",
    "model_map",
    "coverage",
}
LISTINGS = {"best_dataset", "contamination", "failures", "costs"}


class Page(HTMLParser):
    """What a browser would find: elements by tag, and every id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: dict[str, list[dict[str, str | None]]] = {}
        self.ids: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.setdefault(tag, []).append(found)
        if found.get("id"):
            self.ids.append(str(found["id"]))


def report(sweep: Sweep, folder: Path, name: str = "out") -> Path:
    tables = write_tables(synthetic_tables(sweep), folder / "tables")
    run_study(tables, folder / "study")
    return write_report(tables, folder / "study", folder / name, title=f"Sweep of {HOSTILE}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    datasets = ["addition", "reverse", HOSTILE]
    failed = frozenset({("m$1$", "reverse", "full")})
    folder = tmp_path_factory.mktemp("report")
    report(
        Sweep(models=["m$1$", "m2"], datasets=datasets, methods=["full"], epochs=2, noise=0.03, failed=failed), folder
    )
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
    assert {path.stem for path in (out / "figures").glob("*.png")} == FIGURES
    assert {path.stem for path in (out / "data").glob("*.csv")} == FIGURES | LISTINGS
    assert all(pacsv.read_csv(path).num_rows for path in (out / "data").glob("*.csv"))


def test_every_link_leads_somewhere(folder: Path, page: Page) -> None:
    for link in page.tags["a"]:
        target = str(link["href"])
        assert target[1:] in page.ids if target.startswith("#") else (folder / "out" / target).is_file(), target


def test_names_from_the_user_are_text_and_never_markup(folder: Path, page: Page) -> None:
    assert "script" not in page.tags
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert HOSTILE not in html
    assert "Sweep of &lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "loss is not finite &lt;b&gt;at&lt;/b&gt; step 3" in html
    assert "m$1$" in html


def test_the_page_loads_nothing(page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "embed"} & page.tags.keys()
    for tags in page.tags.values():
        for attributes in tags:
            for name, value in attributes.items():
                if not name.startswith("xmlns"):
                    assert "://" not in (value or ""), (name, value)


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
    assert counts[0] == "5 / 6"
    # Every fine-tuning that is done gained on its own skill; the hostile name's stems are in its tasks too.
    assert counts[1] == "5 / 5"
    assert "1 failed, 0 missing" in html


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
    absent = dict(re.findall(r'<figure id="([^"]+)">(?:(?!</figure>).)*Not drawn: ([^<]+)', html, flags=re.DOTALL))
    assert {"similarity_task", "similarity_model", "weight_change_and_gain"} <= absent.keys()
    assert all(len(reason) > 10 for reason in absent.values())


def test_no_tables_at_all_still_make_a_page(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    run_study(tmp_path / "tables", tmp_path / "study")
    html = write_report(tmp_path / "tables", tmp_path / "study", tmp_path / "out", title="Empty").read_text("utf-8")
    assert "Not drawn" in html
    assert "<svg" not in html
