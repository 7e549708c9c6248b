"""Parts of the report by themselves: file names, places under the pointer, languages, scaling, JSON in a page."""

from __future__ import annotations

import base64
import json
import re

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pytest

from raysft.report.drawing import inline_svg, render
from raysft.report.gain_figures import minmax
from raysft.report.hover import MOST_DOTS, Cells, Correlations, Dots, regions, too_many
from raysft.report.listing import MOST_ROWS, Listing, number
from raysft.report.page import script_json
from raysft.report.plot import INK, LOOK, PAPER, Plot, heat, key_line, legend, panels, slugs
from raysft.study.languages import language_families

pytestmark = pytest.mark.unit


def test_names_that_would_share_a_file_get_one_each() -> None:
    found = slugs(["a b", "a-b", "A/B", "../x", "漢字"])
    assert len(set(found.values())) == 5
    assert found["../x"] == "x"
    assert found["漢字"] == "unnamed"
    assert found == slugs(["漢字", "../x", "A/B", "a-b", "a b"])


def test_each_column_runs_from_minus_one_to_one_and_what_does_not_vary_is_missing() -> None:
    values = np.array([[1.0, 5.0, np.nan], [3.0, 5.0, 2.0], [2.0, 5.0, np.nan]])
    scaled = minmax(values)
    assert np.array_equal(scaled[:, 0], [-1, 1, 0])
    assert np.isnan(scaled[:, 1:]).all()
    assert minmax(np.empty((0, 2))).shape == (0, 2)


@pytest.mark.parametrize(
    ("tasks", "families"),
    [
        (
            ["mmlu-0shot", "cmmlu-0shot", "jmmlu-0shot", "nq-0shot"],
            {"mmlu 0shot": {"English": "mmlu-0shot", "Chinese": "cmmlu-0shot", "Japanese": "jmmlu-0shot"}},
        ),
        (["mmlu", "global_mmlu_full_ja"], {"mmlu": {"English": "mmlu", "Japanese": "global_mmlu_full_ja"}}),
        (
            ["belebele_eng_Latn", "belebele_deu_Latn"],
            {"belebele": {"English": "belebele_eng_Latn", "German": "belebele_deu_Latn"}},
        ),
        # Of two translations without the original, and of names that only look like languages, nothing is said.
        (["xnli_de", "xnli_fr"], {}),
        (["math", "en", "what_it_is", "mbpp"], {}),
        (["wmt_en_de", "wmt"], {}),
    ],
)
def test_languages_are_read_off_names(tasks: list[str], families: dict[str, dict[str, str]]) -> None:
    assert language_families(tasks) == families


def test_cells_and_dots_lie_where_matplotlib_draws_them() -> None:
    with mpl.rc_context(LOOK):
        figure, axes = panels(1, 2, 3.0, 2.0)
        heat(axes[0, 0], np.array([[0.1, 0.2]]), ["r"], ["a", "b"], cbar=False)
        axes[0, 1].set(xlim=(0, 10), ylim=(0, 4))
        hover = (
            Cells(axes[0, 0], ["r"], ["a", "b"], [["x", "y"]]),
            Dots(axes[0, 1], [5.0, np.nan], [1.0, 1.0], ["mid", "no"]),
        )
        drawing = render(Plot("f", "F", "", figure, pa.table({}), hover=hover))
    cells, dots = drawing.regions
    left, top, width, height = cells["box"]
    # The heat map's own quadrilaterals in the SVG span the same box.
    corners = np.array([[float(n) for n in at] for at in re.findall(r"[ML] ([\d.]+) ([\d.]+)", _mesh(drawing.svg))])
    assert np.allclose([*corners.min(axis=0), *corners.max(axis=0)], [left, top, left + width, top + height], atol=0.02)
    (x, y, text), (box_left, box_top, box_width, box_height) = dots["dots"][0], dots["box"]
    assert len(dots["dots"]) == 1
    assert text == "mid"
    assert x == pytest.approx(box_left + box_width / 2, abs=0.06)
    assert y == pytest.approx(box_top + box_height * 3 / 4, abs=0.06)
    assert 0 < left < left + width < box_left
    assert 0 <= top < top + height <= 2.0 * 72


def _mesh(svg: str) -> str:
    return re.search(r'<g id="f-QuadMesh_1">(.*?)</g>', svg, flags=re.DOTALL)[1]  # type: ignore[index]


def test_more_points_than_a_page_should_carry_are_left_to_the_csv() -> None:
    _, axes = panels(1, 1, 2.0, 2.0)
    many = Dots(axes[0, 0], [0.0] * (MOST_DOTS + 1), [0.0] * (MOST_DOTS + 1), [""] * (MOST_DOTS + 1))
    assert regions([many]) == []
    assert too_many([many])


def test_a_matrix_of_a_thousand_fine_tunings_carries_every_value_in_a_byte_each() -> None:
    _, axes = panels(1, 1, 2.0, 2.0)
    random = np.random.default_rng(0)
    values = np.corrcoef(random.normal(size=(1000, 9)))
    values[7, :] = values[:, 7] = np.nan
    names = [f"trial {at}" for at in range(1000)]
    hover = Correlations(axes[0, 0], names, values)
    assert not too_many([hover])
    (region,) = regions([hover])
    packed = np.frombuffer(base64.b64decode(region["hundredths"]), dtype=np.int8)
    lower = values[np.tril_indices(1000)]
    assert np.array_equal(packed == -128, np.isnan(lower))
    assert np.allclose(packed[packed != -128] / 100, lower[np.isfinite(lower)], atol=0.005)
    assert len(json.dumps(region)) < 700_000


def test_ink_and_paper_of_a_drawing_follow_the_page_and_cells_do_not() -> None:
    inked, cell = f'<path style="fill: {INK}; stroke: {PAPER}"/>', '<path style="fill: #053f52"/>'
    svg = f'<?xml?><svg width="10pt" height="5pt">{inked}{cell}</svg>'
    drawn = inline_svg(svg, "f", "a <b> & c")
    assert 'style="fill: var(--ink); stroke: var(--paper)"' in drawn
    assert 'style="fill: #053f52"' in drawn
    assert 'aria-label="a &lt;b&gt; &amp; c"' in drawn


def test_no_name_ends_a_script_element() -> None:
    value = {"a": "</script><!--<script>", "b": "& \u2028"}
    text = script_json(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


def test_a_legend_name_never_stands_apart_from_what_it_names() -> None:
    figure, _ = panels(1, 1, 3.0, 1.0)
    legend(figure, first=[key_line(f"a{at}") for at in range(3)], second=[key_line(f"b{at}") for at in range(4)])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    columns = figure.legends[0]._ncols
    rows = -(-len(labels) // columns)
    assert columns > 1
    assert labels.index("second") % rows != rows - 1
    assert len(labels) == rows * columns


def test_numbers_of_a_table_are_short_and_sort_by_their_value() -> None:
    assert [number(value) for value in (0.0, 1.5, -12.345, 12345.6, 3e-7)] == [
        "0",
        "1.500",
        "-12.3",
        "12,346",
        "3.0e-07",
    ]
    table = pa.table({"p": [3e-7, None], "n": [12345, 1], "ok": [True, None]})
    rows = Listing("t", "T", "", table).rows
    assert [(cell.text, cell.value) for cell in rows[0]] == [("3.0e-07", "3e-07"), ("12,345", "12345"), ("yes", None)]
    assert [(cell.text, cell.value) for cell in rows[1]] == [("–", ""), ("1", "1"), ("–", "")]


def test_a_long_table_is_cut_on_the_page_and_says_so() -> None:
    listing = Listing("t", "T", "", pa.table({"n": list(range(MOST_ROWS + 7))}))
    assert len(listing.rows) == MOST_ROWS
    assert listing.more == 7
