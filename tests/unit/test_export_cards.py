"""Model cards: what the results say, in a front matter that the hub reads, whatever users call their things."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import example, given, settings, strategies
from markdown_it import MarkdownIt

from raysft.export.bases import Named
from raysft.export.card import base_card, checkpoint_card
from raysft.export.markdown import Markdown, code, fenced, table, text, with_error
from raysft.export.records import CARD_TABLES, Records
from raysft.export.sections import CardOf
from raysft.export.selection import stored_checkpoints
from raysft.spec.mistakes import shown
from raysft.spec.sweep import Sweep, parse_sweep
from raysft.store.layout import open_storage
from raysft.store.schema import TABLES
from raysft.study.lint import lint_table
from raysft.study.schema import LINT
from raysft.study.tables import read_tables
from tests.made_storage import make_storage, score_rows, write_tables

pytestmark = pytest.mark.unit

Content = dict[str, Any]
BASE = Named("./a-base")


@pytest.fixture
def sweep(content: Content) -> Sweep:
    return parse_sweep(content, "sweep")


def card_of(sweep: Sweep, at: int = -1, **fields: Any) -> CardOf:
    """Of the last made checkpoint: addition by LoRA, its second epoch; or of another."""
    storage = open_storage(sweep.storage)
    if not storage.exists("tables"):
        make_storage(sweep)
    tables = read_tables(storage.local_path("tables"), {name: TABLES[name] for name in CARD_TABLES})
    checkpoint = stored_checkpoints(sweep, storage)[at]
    return CardOf(sweep, checkpoint, Records(tables), **{"base": BASE, "versions": {}, **fields})


def front_matter(card: str) -> Content:
    found: Content = yaml.safe_load(card.split("---\n")[1])
    return found


def section(card: str, title: str) -> str:
    return card.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_scores_stand_in_the_front_matter_and_in_the_table(sweep: Sweep) -> None:
    card = checkpoint_card(card_of(sweep))
    results = ModelCard(card).data.eval_results
    assert results is not None
    found = {(one.dataset_name, one.metric_name): one.metric_value for one in results}
    assert found == {("micro_capitals_choice", "acc,none"): 0.64, ("micro_addition_exact", "exact_match,strip"): 0.64}
    assert results[0].metric_args == {"stderr": 0.04, "n": 100}
    rows = [line for line in section(card, "Scores").splitlines() if line.startswith("| `micro_addition")]
    error = 0.04 * 2**0.5
    assert rows == [
        "| `micro_addition_exact` | `exact_match,strip` | 0.6400 ± 0.0400 | 0.2000 ± 0.0400 "
        f"| +0.4400 ± {error:.4f} | 100 | 0.0% | – | 1.5 |"
    ]


def test_it_says_what_it_is_of(sweep: Sweep) -> None:
    card = checkpoint_card(card_of(sweep, versions={"torch": "2.99"}))
    assert {"library_name": "peft", "tags": ["raysft", "sft", "lora"]}.items() <= front_matter(card).items()
    assert "generated rows of the skill `addition`, 64 of them, seed 0" in section(card, "Training data")
    assert "**Rows trained on:** 32" in section(card, "Training data")
    assert "###Question: {instruction}\n###Answer: {response}" in section(card, "Training data")
    settings = section(card, "Method and settings")
    assert "| `rank` | `4` |\n| `alpha` | `8` |" in settings
    assert "| `learning_rate` | `0.005` |" in settings
    assert "| 2 | 1.5 | 4 | 32 | 64 |" in settings
    assert "| `torch` | `2.99` |" in section(card, "Versions")
    full = checkpoint_card(card_of(sweep, at=0))
    assert front_matter(full)["tags"] == ["raysft", "sft", "full-fine-tuning"]
    assert "the checkpoint at the end of epoch 1 of 2" in full
    assert "| 2 | 1.5 |" not in section(full, "Method and settings"), "what came after it is not its own"


def test_a_licence_is_the_users_to_name(sweep: Sweep) -> None:
    card = checkpoint_card(card_of(sweep))
    assert "license" not in front_matter(card)
    assert "# TODO license" in card.split("---\n")[1]
    assert "**TODO:**" in section(card, "Licence")
    named = checkpoint_card(card_of(sweep, license="apache-2.0"))
    assert front_matter(named)["license"] == "apache-2.0"
    assert "TODO" not in named
    for license in (None, "mit"):
        base = base_card(sweep, "name", "tiny", card_of(sweep).records.base_scores("tiny"), license)
        assert ("TODO" in base) == (license is None)
        assert "| `micro_addition_exact` | `exact_match,strip` | 0.2000 ± 0.0400 | 100 |" in base


def test_hub_names_are_in_the_front_matter(content: Content) -> None:
    content["models"] = [{"name": "tiny", "hub": "an-org/a-model", "revision": "abc"}]
    content["datasets"] = [
        {"name": "capitals", "hub": "an-org/capitals", "where": {"kind": ["a|b"]}},
        {"name": "addition", "hub": "an-org/addition", "subset": "main"},
        {"name": "both", "mixture": {"of": ["capitals", "addition"]}},
    ]
    sweep = parse_sweep(content, "sweep")
    card = checkpoint_card(card_of(sweep, base=Named("an-org/a-model", "abc", "an-org/a-model")))
    matter = front_matter(card)
    assert (matter["base_model"], matter["base_model_relation"]) == ("an-org/a-model", "adapter")
    assert matter["datasets"] == ["an-org/capitals", "an-org/addition"]
    assert "`both`" in card
    source = section(card, "Training data")
    assert "as many rows of each of `capitals`: `an-org/capitals` of the hub, revision `main`, split `train`" in source
    assert "rows whose `kind` is `a|b`" in source
    assert "subset `main`" in source
    assert "`an-org/a-model` of the hub, revision `abc`" in card


def test_no_path_of_the_machine_is_in_a_card(content: Content, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"instruction": "q", "response": "a"}\n' * 64)
    content["datasets"] = [{"name": "mine", "path": str(data)}]
    sweep = parse_sweep(content, "sweep")
    card = checkpoint_card(card_of(sweep))
    assert str(tmp_path) not in card
    assert re.search(r"a local file, SHA-256 `[0-9a-f]{64}`", card)


def test_marks_of_the_lint_that_concern_it(sweep: Sweep) -> None:
    make_storage(sweep)
    scores = list(score_rows(sweep))
    trial = card_of(sweep).checkpoint.trial.key
    for row in scores:
        if row.get("trial") == trial and row["epoch"] == 2:
            row |= {"value": 0.25, "unextracted": 0.5} if row["chance"] else {"unextracted": 0.5}
    shared = {
        "dataset": "addition",
        "size": 32,
        "task": "micro_addition_exact",
        "ngram": 9,
        "items": 200,
        "overlap": 0.3,
    }
    of_others = shared | {"dataset": "capitals", "overlap": 0.9}
    write_tables(open_storage(sweep.storage), sweep, scores, contamination=[shared, of_others])
    known = section(checkpoint_card(card_of(sweep)), "What to know before trusting them")
    assert "| error | `at_or_below_chance` | micro\\_capitals\\_choice |" in known
    assert "| error | `contaminated_pair` | addition / micro\\_addition\\_exact | 30.0% of 200 items" in known
    assert "over 10% of answers from which nothing could be extracted, at worst 50%" in known
    assert "| warning | `single_seed` |" in known
    assert "| `micro_addition_exact` | 30.0% | 200 | 9 |" in known
    assert "90.0%" not in known
    other = section(checkpoint_card(card_of(sweep, at=-2)), "What to know before trusting them")
    assert "at_or_below_chance" not in other
    assert "nothing could be extracted" not in other


def test_every_one_of_many_identical_rows_is_marked_as_a_duplicate(sweep: Sweep) -> None:
    """The table names six of a group and counts the others; the card of each says that it is one of them."""
    of = card_of(sweep)
    random = np.random.default_rng(0)
    tasks = [f"task{at}" for at in range(8)]
    copied, rows, trials = random.random(8), [], []
    for seed in range(40):
        subject = {"model": "tiny", "dataset": "d", "method": "full", "size": 32, "schedule": "constant", "seed": seed}
        trials.append({**subject, "trial": f"t{seed}", "epochs": 1, "kind": "fine-tuning", "state": "done"})
        values = copied if seed < 9 else random.random(8)
        for task, value in zip(tasks, values, strict=True):
            measured = {"task": task, "metric": "acc", "value": value, "higher_is_better": True}
            rows.append({**subject, "trial": f"t{seed}", "epoch": 1, **measured})
    found = {"scores": rows, "trials": trials}
    tables = {name: pa.Table.from_pylist(found.get(name, []), schema=TABLES[name]) for name in CARD_TABLES}
    records = Records({**of.records.tables, **tables})
    marks = [[one for one in records.lint(f"t{seed}", 1) if one.check == "duplicate_scores"] for seed in range(40)]
    assert [len(found) for found in marks] == [1] * 9 + [0] * 31
    assert "and 3 more" in marks[8][0].subject
    assert lint_table(tables).schema == LINT


def test_a_trial_that_diverged_says_so_first(sweep: Sweep) -> None:
    of = card_of(sweep)
    rows = of.records.tables["trials"].to_pylist()
    rows[-1] |= {"state": "diverged", "diverged": True, "diverged_in_epoch": 3}
    trials = of.records.tables["trials"].from_pylist(rows, schema=TABLES["trials"])
    card = checkpoint_card(replace(of, records=Records({**of.records.tables, "trials": trials})))
    assert "**Its training diverged in epoch 3:**" in card.partition("\n## ")[0]
    assert "| error | `diverged_trial` |" in card


def test_a_checkpoint_without_results_has_a_card(sweep: Sweep) -> None:
    make_storage(sweep)
    write_tables(open_storage(sweep.storage), sweep, [], trials=[], training=[])
    card = checkpoint_card(card_of(sweep))
    assert "model-index" not in front_matter(card)
    assert "No benchmark result of this checkpoint" in card
    assert "**Rows trained on:** not recorded" in card


NASTY = [
    "a|b",
    "a\nb\n---\nlicense: mit",
    "`rm`",
    "``` ```",
    "<script>alert(1)</script>",
    "[x](javascript:y)",
    "---",
    "# heading",
    "{{ 7 * 7 }}",
    "key: value",
    "!!python/object:x",
    "*&anchor",
    "\u202eevil\x00\x1b[31m",
    "'\"\\",
    "- item",
    "1. item",
    "null",
    "~",
]


def test_names_stay_text(sweep: Sweep) -> None:
    plain = checkpoint_card(card_of(sweep, versions={"x": "x"}))
    choice = [row for row in score_rows(sweep) if row["task"].endswith("choice")]
    scores = [{**row, "task": name, "metric": f"{name} {at}"} for at, name in enumerate(NASTY) for row in choice]
    write_tables(open_storage(sweep.storage), sweep, scores)
    card = checkpoint_card(card_of(sweep, versions=dict(zip(NASTY, NASTY, strict=True))))
    assert front_matter(card).keys() == front_matter(plain).keys()
    results = ModelCard(card).data.eval_results
    assert results is not None
    assert len(results) == len(NASTY)
    assert headings(card) == headings(plain)
    assert len(headings(card)) == 8
    rows = [line for line in section(card, "Scores").splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(NASTY)
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 10, "as many cells as the header"
    body = card.partition("\n---\n")[2]
    assert "<script" not in re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", body)
    assert "\x1b" not in card
    assert "\u202e" not in card


def headings(card: str) -> list[str]:
    """Those of the card itself; what is in a fence is not one."""
    outside = re.sub(r"^(`{3,}).*?^\1$", "", card.partition("\n---\n")[2], flags=re.MULTILINE | re.DOTALL)
    return [line for line in outside.splitlines() if line.startswith("#")]


def test_a_template_cannot_leave_its_fence(content: Content) -> None:
    content["training"]["template"] = "```\n## Licence\nmit {instruction}\n`````{response}"
    card = checkpoint_card(card_of(parse_sweep(content, "sweep")))
    fence = re.search(r"^(`{3,})\n```\n## Licence", card, re.MULTILINE)
    assert fence is not None
    assert len(fence[1]) == 6


@settings(max_examples=40, deadline=None)
@given(strategies.text() | strategies.text("|`\\\\*_[]<>#-+=1.&;~$!{}() a\n"))
@example("a|b")
@example("\\\\|")
def test_a_reader_of_markdown_sees_the_very_name(name: str) -> None:
    reader = MarkdownIt("commonmark").enable("table")
    cells = (text(name), code(name), Markdown("end"))
    page = html.unescape(reader.render(table(("a", "b", "c"), [cells])))
    seen = shown(name)
    coded = f"<code>{seen}</code>" if seen else "(empty)"
    assert f"<tr>\n<td>{seen}</td>\n<td>{coded}</td>\n<td>end</td>\n</tr>" in page


def test_markdown_of_single_values() -> None:
    assert text("a_b | c\n<d> & #1") == r"a\_b &#124; c &lt;d&gt; &amp; \#1"
    assert text("- x") == r"\- x"
    assert text("1. x") == r"1\. x"
    assert code("a`b") == "``a`b``"
    assert code("`a") == "`` `a ``"
    assert code("") == "(empty)"
    assert fenced("````") == "`````\n````\n`````"
    assert table(("a",), [("x|y",), (Markdown("`x|y`"),)]).splitlines()[2:] == ["| x&#124;y |", r"| `x\|y` |"]
    assert with_error(0.5, 0.01) == "0.5000 ± 0.0100"
    assert with_error(55.123, 1.5, sign=True) == "+55.12 ± 1.50"
    assert with_error(None, 0.1) == with_error(float("nan"), None) == "–"
