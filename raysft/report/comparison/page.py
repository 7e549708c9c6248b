"""The page that sets two studies side by side."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysft.report.comparison import tables
from raysft.report.comparison.figures import NOTHING, gains_compared, one_against_the_other
from raysft.report.comparison.gains import compare_gains, scale_notes
from raysft.report.comparison.sides import Pair, Side, pairs
from raysft.report.listing import Listing
from raysft.report.page import Page, Section, Shown, show, write_page
from raysft.report.plot import LOOK, Absent, slugs
from raysft.report.words import Headline
from raysft.study.tables import reals

_CLEAR = 0.05


def write_comparison(first: Side, second: Side, out: Path) -> Path:
    """Write `out/report.html` with its figures and CSV; `first` is A on the page and `second` is B."""
    found = pairs(first, second)
    compared = compare_gains(first, second, found)
    claims = tables.claims(first, second)
    gains = Section(
        "gains", "Gains", _GAINS, _figures(compared, out), (_cells(compared), tables.settings(first, second, found))
    )
    sections = [
        gains,
        Section("alike", "What reacts alike", _ALIKE, listings=(tables.similarities(first, second),)),
        Section("coverage", "What each has", _COVERAGE, listings=_coverage(first, second, found)),
        Section("lint", "Lint", "Findings of each check in both.", listings=(tables.lint(first, second),)),
        Section("methods", "Methods", "How the two were compared.", paragraphs=(("Comparison", _METHODS),)),
    ]
    title = f"{first.name} and {second.name}"
    notes = [f"A is {first.name}, B is {second.name}.", *_notes(compared, first, second), *scale_notes(first, second)]
    page = Page(title, "raysft comparison", _headlines(compared, claims), notes, sections, (claims,))
    return write_page(page, out)


def _figures(compared: pa.Table, out: Path) -> tuple[Shown, ...]:
    with mpl.rc_context(LOOK):
        if not compared.num_rows:
            return (show(Absent("gains_compared", "Gains of both", NOTHING), out),)
        variants = slugs(compared["variant"].to_pylist())
        datasets = sorted(set(compared["dataset"].to_pylist()))
        shown = [show(gains_compared(compared, name, f"gains_{slug}"), out) for name, slug in variants.items()]
        return (*shown, show(one_against_the_other(compared, datasets), out))


def _cells(compared: pa.Table) -> Listing:
    order = np.argsort(np.nan_to_num(reals(compared, "p"), nan=2.0), kind="stable")
    about = "The clearest differences first. Gains are shares of the task's scale."
    return Listing("cells", "Every cell that both have", f"None: {NOTHING}.", compared.take(pa.array(order)), about)


def _coverage(first: Side, second: Side, found: list[Pair]) -> tuple[Listing, ...]:
    return tables.coverage(first, second, found), tables.names(first, second, found)


def _headlines(compared: pa.Table, claims: Listing) -> list[Headline]:
    clear = pc.fill_null(pc.less(compared["q"], _CLEAR), False)
    different = compared.filter(clear)
    more = int((reals(different, "difference") > 0).sum())
    tested = compared["p"].length() - compared["p"].null_count
    agreed = claims.data["agree"].to_pylist()
    told = agreed.count("agree") + agreed.count("disagree")
    return [
        Headline(f"{compared.num_rows:,}", "cells in both", "variants x datasets x tasks"),
        Headline(f"{more:,}", "gain more in B", f"at q < {_CLEAR}, of {tested:,} with an interval"),
        Headline(
            f"{different.num_rows - more:,}", "gain less in B", f"at q < {_CLEAR}, of {tested:,} with an interval"
        ),
        Headline(f"{agreed.count('agree')} / {told}", "verdicts agree", "of the claims that both can tell"),
    ]


def _notes(compared: pa.Table, first: Side, second: Side) -> list[str]:
    shared = first.names("model") & second.names("model")
    if not compared.num_rows:
        return [f"Nothing can be compared cell by cell: {NOTHING}."]
    if not shared:
        return ["They have no base model in common: gains are means over each one's own models."]
    return [f"Gains are means over the base models that both have in a cell ({len(shared)} in all)."]


_GAINS = "What the same dataset did to the same task in both."
_ALIKE = "Two studies may gain differently and yet agree on what goes together."
_COVERAGE = "Names are compared as they are, and never guessed."
_METHODS = (
    "A variant of the one is a variant of the other if both call it by the same name, or if it is the same in all that "
    "varies over both studies together and is known in both. Gains are those of each trial's last measured epoch, mean "
    "over seeds, as a share of the task's scale. Where a cell has base models in common, only those count, and the 95% "
    "interval of B - A is Student's over the models' differences; with fewer than three it is that of the items' "
    "standard errors. Without a common model it is Welch's over each one's models. q is Benjamini and Hochberg's over "
    "all cells of the page. Similarity matrices are compared by Mantel's test over the names that both have, those of "
    "tasks and of models from gains less their mean over each study's datasets; q is over these tests."
)
