"""Pages of a study with hundreds of fine-tunings, and of a sweep that was trained and measured, in a browser."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
import torch

from raysft.publish import make_report
from raysft.reduce import reduce_sweep
from raysft.report.findings import STUDIED, Findings
from raysft.report.page import Page, Section, show, write_page
from raysft.report.plot import LOOK
from raysft.report.trial_figures import trial_correlations
from raysft.session import Session
from raysft.spec.plan import make_plan
from raysft.spec.sweep import parse_sweep
from raysft.store.layout import open_storage
from raysft.study.run import SWEEP_TABLES
from raysft.study.schema import GAINS
from raysft.trial import run_unit
from tests.browser import needs_browser
from tests.conftest import SMALL

pytestmark = [pytest.mark.end_to_end, needs_browser]

DESKTOP, PHONE = (1360, 900), (390, 844)

Opened = Callable[..., Any]


@pytest.fixture(scope="module")
def many_trials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of one figure: the correlations of 300 fine-tunings."""
    random = np.random.default_rng(0)
    seeds = product("abc", "uvwxy", range(20), range(6))
    rows = [
        {"model": model, "dataset": dataset, "seed": seed, "trial": f"{model}{dataset}{seed}", "task": f"task{task}"}
        | {"variant": "full", "final": True, "primary": True, "scaled_gain": float(random.normal())}
        for model, dataset, seed, task in seeds
    ]
    study = {name: schema.empty_table() for name, schema in STUDIED.items()}
    study["gains"] = pa.Table.from_pylist(rows, schema=GAINS)
    findings = Findings({name: schema.empty_table() for name, schema in SWEEP_TABLES.items()}, study)
    out = tmp_path_factory.mktemp("many")
    with mpl.rc_context(LOOK):
        figure = show(trial_correlations(findings), out)
    return write_page(Page("Many", "raysft", [], [], [Section("alike", "Alike", "", (figure,))]), out)


def test_a_matrix_of_hundreds_of_fine_tunings_shows_every_value(open_page: Opened, many_trials: Path) -> None:
    page = open_page(many_trials)
    table = pacsv.read_csv(many_trials.parent / "data" / "trial_correlations.csv").to_pandas().set_index("fine_tuning")
    r = table.T.corr()
    assert r.shape == (300, 300)
    area = page.locator("#trial_correlations .area")
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    tip = page.locator("#tip")
    for row, column in [(0, 0), (0, 299), (299, 0), (123, 45), (45, 123), (200, 201)]:
        page.mouse.move(box["x"] + box["width"] * (column + 0.5) / 300, box["y"] + box["height"] * (row + 0.5) / 300)
        said = tip.inner_text()
        assert said.startswith(f"{r.index[row]} × {r.columns[column]}: "), said
        assert float(said.rpartition(" ")[2]) == pytest.approx(r.iloc[row, column], abs=0.0051)
    area.focus()
    page.keyboard.press("ArrowDown")
    assert tip.inner_text().startswith(f"{r.index[201]} × {r.columns[201]}: ")
    assert page.locator("#trial_correlations svg *").count() < 2000  # no element of its own for any of 90,000 cells


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep that was trained and measured, with the probes that need no cluster."""
    content = {**copy.deepcopy(SMALL), "storage": str(tmp_path_factory.mktemp("measured") / "storage")}
    content["grid"] = [{"sizes": [32], "epochs": [2], "measure": "last"}]
    content["probes"] = {"perplexity": {"rows": 8}, "intrinsic_dimension": None, "log_likelihood": {"texts": "skills"}}
    sweep = parse_sweep(content, "sweep")
    storage = open_storage(sweep.storage)
    plan, session = make_plan(sweep, storage), Session(sweep, torch.device("cpu"))
    apart = plan.works_apart()
    for unit in plan.missing_units():
        run_unit(session, unit, plan.missing_works(unit), apart.get(unit.key, {}))
    assert not make_plan(sweep, storage).missing_units()
    reduce_sweep(sweep, storage)
    make_report(storage, sweep.name)
    return storage.local_path("report", "report.html")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_sweep_that_was_measured_has_a_page_with_its_probes(
    open_page: Opened, measured: Path, size: tuple[int, int]
) -> None:
    page = open_page(measured, size)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    for figure in ("weight_change", "model_map", "gain_against_perplexity", "gain_matrix_full"):
        area = page.locator(f"#{figure} .area").first
        area.focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#tip").inner_text(), figure
        page.keyboard.press("Escape")
    listing = page.locator("#correlations tbody tr")
    assert listing.count() > 20
    header = page.locator("#correlations th button", has_text="predictor")
    orders = []
    for _ in range(2):
        header.click()
        orders.append(listing.evaluate_all("rows => rows.map((row) => row.cells[0].textContent)"))
    assert orders[0][0] != orders[0][-1]
    assert orders[0] == orders[1][::-1]
