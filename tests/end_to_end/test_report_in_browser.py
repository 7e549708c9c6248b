"""The report in a browser: desktop and phone, light and dark, by pointer and by keyboard, on paper, and offline."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.csv as pacsv
import pytest

from raysft.report import write_report
from raysft.study import run_study
from tests.browser import needs_browser
from tests.unit.planted_study import fill_study
from tests.unit.synthetic_tables import Sweep, synthetic_tables, write_tables

pytestmark = [pytest.mark.end_to_end, needs_browser]

DESKTOP, PHONE, SMALL_PHONE = (1360, 900), (360, 780), (320, 640)
HOSTILE = "<img src=x onerror=document.title='owned'>"

Opened = Callable[..., Any]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    sweep = Sweep(models=["m1", "m2", HOSTILE], datasets=["addition", "reverse"], epochs=2, noise=0.03)
    tables = write_tables(synthetic_tables(sweep), folder / "tables")
    run_study(tables, folder / "study")
    fill_study(folder / "study", list(sweep.tasks), list(sweep.models), list(sweep.datasets))
    return write_report(tables, folder / "study", folder / "out", title=f"Sweep {HOSTILE}")


@pytest.fixture
def opened(open_page: Opened, report: Path) -> Opened:
    """Open the page of the synthetic sweep."""
    return partial(open_page, report)


@pytest.mark.parametrize("size", [DESKTOP, PHONE, SMALL_PHONE], ids=["desktop", "phone", "small phone"])
def test_the_page_never_scrolls_sideways(opened: Opened, size: tuple[int, int]) -> None:
    page = opened(size)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    # Nothing sticks out of the page that is not inside a box that scrolls by itself.
    wide = page.evaluate(
        """() => [...document.querySelectorAll('main *')]
        .filter((e) => !e.closest('.scroll, pre, svg') && e.getBoundingClientRect().right > innerWidth + 1)
        .map((e) => e.tagName + '.' + e.className)"""
    )
    assert wide == []
    assert page.title() == f"Sweep {HOSTILE}"


def test_the_contents_stay_beside_the_page_on_a_desktop_and_lead_everywhere(opened: Opened) -> None:
    page = opened()
    page.evaluate("window.scrollTo({top: 4000, behavior: 'instant'})")
    place = page.locator("nav ol").bounding_box()
    assert 0 <= place["y"] < 100
    page.click("nav a[href='#section-methods']")
    page.wait_for_function("location.hash === '#section-methods'")
    assert page.locator("#section-methods h2").is_visible()


def test_a_pointer_on_a_cell_shows_the_value_of_the_csv(opened: Opened, report: Path) -> None:
    page = opened()
    area = page.locator("#gain_matrix_full .area")
    area.scroll_into_view_if_needed()
    rows = pacsv.read_csv(report.parent / "data" / "gain_matrix_full.csv").to_pylist()
    datasets, tasks = (sorted({row[axis] for row in rows}) for axis in ("dataset", "task"))
    box = area.bounding_box()
    for row in rows:
        x = box["x"] + box["width"] * (tasks.index(row["task"]) + 0.5) / len(tasks)
        y = box["y"] + box["height"] * (datasets.index(row["dataset"]) + 0.5) / len(datasets)
        page.mouse.move(x, y)
        said = page.locator("#tip").inner_text()
        assert said.startswith(f"{row['dataset']} × {row['task']}: {round(row['gain'], 3) + 0.0:+.3f}"), said
    page.mouse.move(2, 2)
    assert page.locator("#tip").is_hidden()


def test_a_tap_on_a_phone_shows_a_value_and_one_beside_hides_it(opened: Opened) -> None:
    page = opened(PHONE, has_touch=True, is_mobile=True)
    area = page.locator("#gain_matrix_full .area")
    area.scroll_into_view_if_needed()
    area.tap(position={"x": 8, "y": 8})
    tip = page.locator("#tip")
    assert "addition × micro_addition_choice" in tip.inner_text()
    box = tip.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE[0]
    page.locator("#gain_matrix_full h3").tap()
    assert tip.is_hidden()


def test_values_of_a_matrix_and_of_points_are_there_for_the_keyboard(opened: Opened) -> None:
    page = opened()
    tip = page.locator("#tip")
    page.locator("#gain_matrix_full .area").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert tip.inner_text().startswith("reverse × ")
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.locator("#model_map .area").first.focus()
    page.keyboard.press("ArrowRight")
    first = tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert first
    assert tip.inner_text() != first


def test_the_map_shows_what_a_point_is(opened: Opened) -> None:
    page = opened()
    area = page.locator("#model_map .area").first
    area.scroll_into_view_if_needed()
    place = page.evaluate(
        """() => {
        const data = JSON.parse(document.querySelector("script[data-figure='model_map']").textContent)[0];
        const [x, y, text] = data.dots[0];
        const svg = document.querySelector('#model_map svg');
        const point = new DOMPoint(x, y).matrixTransform(svg.getScreenCTM());
        return [point.x, point.y, text, data.dots.map((dot) => dot[2])];
    }"""
    )
    page.mouse.move(place[0], place[1])
    assert page.locator("#tip").inner_text() in place[3]
    assert HOSTILE in " ".join(place[3])


def _column(page: Any, at: int) -> list[str]:
    return page.locator("#costs tbody tr").evaluate_all(f"rows => rows.map((row) => row.cells[{at}].textContent)")


def test_a_table_is_sorted_by_keyboard_and_says_how(opened: Opened) -> None:
    page = opened()
    header = page.locator("#costs th").nth(2)
    assert header.get_attribute("aria-sort") == "none"
    header.locator("button").focus()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    rising = [float(text.replace(",", "")) for text in _column(page, 2)]
    assert rising == sorted(rising)
    assert len(set(rising)) > 1
    page.keyboard.press("Space")
    assert header.get_attribute("aria-sort") == "descending"
    assert [float(text.replace(",", "")) for text in _column(page, 2)] == rising[::-1]
    page.locator("#costs th").first.locator("button").click()
    assert header.get_attribute("aria-sort") == "none"
    assert _column(page, 0) == sorted(_column(page, 0))


def test_a_long_table_scrolls_under_its_header(opened: Opened) -> None:
    page = opened()
    table = page.locator(".long").first
    rows = table.locator("tbody tr")
    assert rows.count() > 30
    header = table.locator("th").first
    assert table.evaluate("e => e.scrollHeight > e.clientHeight")
    before = header.bounding_box()
    table.evaluate("e => e.scrollTo(0, 300)")
    assert header.bounding_box() == before
    page.set_viewport_size({"width": 390, "height": 800})
    assert table.evaluate("e => e.scrollHeight <= e.clientHeight + 2")


def test_in_the_dark_ink_is_light_and_cells_keep_their_colours(opened: Opened) -> None:
    light, dark = opened(), opened(color_scheme="dark")
    colours = []
    for page in (light, dark):
        look = """(name) => getComputedStyle(document.querySelector(name))"""
        ground = page.evaluate(f"({look})('figure').backgroundColor")
        text = page.evaluate(f"({look})('#gain_matrix_full svg text').fill")
        cell = page.evaluate(f"({look})('#gain_matrix_full [id*=QuadMesh] path').fill")
        colours.append((ground, text, cell))
    assert _brightness(colours[0][0]) > 240 > 90 > _brightness(colours[0][1])
    assert _brightness(colours[1][0]) < 60 < 180 < _brightness(colours[1][1])
    assert colours[0][2] == colours[1][2]


def _brightness(colour: str) -> float:
    numbers = [float(part) for part in re.findall(r"[\d.]+", colour)[:3]]
    return sum(numbers) / 3


def test_without_scripts_everything_is_there_to_read(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri(), timeout=30_000)
    assert page.locator("#costs tbody tr").count() == 3
    assert page.locator("figure svg").count() > 30
    context.close()


def test_on_paper_nothing_is_cut_and_links_say_where_they_lead(opened: Opened) -> None:
    page = opened(size=(760, 1000))  # about the width of A4 between its margins
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    cut = page.evaluate(
        """() => [...document.querySelectorAll('.scroll')]
        .filter((e) => e.offsetParent && (e.scrollWidth > e.clientWidth + 2 || e.scrollHeight > e.clientHeight + 2))
        .map((e) => e.getAttribute('aria-label') + ' ' + e.scrollWidth + '>' + e.clientWidth)"""
    )
    assert cut == []
    link = "getComputedStyle(document.querySelector('#gain_matrix_full .files a'), '::after').content"
    assert "data/gain_matrix_full.csv" in page.evaluate(link)
    pdf = page.pdf(format="A4", prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 5
