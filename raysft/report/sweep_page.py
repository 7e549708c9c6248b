"""The report of one study: its figures, tables and words, in the page's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from raysft.report.correlations import correlations, cross_lingual_tests, strongest_layers
from raysft.report.figures import Drawn, draw
from raysft.report.findings import Findings, read_findings
from raysft.report.listing import Listing
from raysft.report.listings import best_datasets, checks, claims, costs, failures, lint_counts, lint_groups, verdicts
from raysft.report.methods import methods
from raysft.report.output import write_csv
from raysft.report.overlap import overlap_note, overlaps
from raysft.report.page import Page, Section, show, write_page
from raysft.report.words import headlines, notes
from raysft.spec.sweep import Sweep

# Tables that stand below the figures of a section.
_BELOW: Mapping[str, tuple[Callable[[Findings], Listing], ...]] = {
    "gains": (best_datasets, overlaps),
    "choices": (cross_lingual_tests,),
    "predictors": (correlations,),
    "layers": (strongest_layers,),
    "coverage": (failures, checks),
}


def write_report(tables: Path, study: Path, out: Path, title: str, spec: Sweep | None = None) -> Path:
    """Write `out/report.html`, `out/figures/<name>.png` and `.pdf`, and `out/data/<name>.csv`; return the page's path.

    Args:
        tables: the sweep's tables.
        study: the folder that `run_study` wrote, or that of a study of released scores.
        out: where to write; files of the same names are replaced.
        title: the page's heading, in plain text.
        spec: the sweep's YAML, for what the methods say beyond the tables.

    Raises:
        ValueError: `tables` or `study` is not a folder.
    """
    findings = read_findings(tables, study)
    sections = [_section(drawn, out, findings) for drawn in draw(findings)]
    write_csv(findings.study["lint"], out, "lint")
    about = "Defects that make conclusions wrong whatever the statistic, looked for in every score and trial."
    groups = tuple(lint_groups(findings))
    sections.append(Section("lint", "Lint", about, listings=(lint_counts(findings),), groups=groups))
    sections.append(Section("costs", "Costs", "Where the time went.", listings=(costs(findings),)))
    text = tuple(methods(findings, spec))
    sections.append(Section("methods", "Methods", "As they would stand in a paper.", paragraphs=text))
    said = [*verdicts(findings), *notes(findings), *overlap_note(findings)]
    return write_page(Page(title, "raysft report", headlines(findings), said, sections, (claims(findings),)), out)


def _section(drawn: Drawn, out: Path, findings: Findings) -> Section:
    shown = tuple(show(figure, out) for figure in drawn.figures)
    found = (listing(findings) for listing in _BELOW.get(drawn.anchor, ()))
    listings = tuple(listing for listing in found if listing.data.num_rows or listing.empty)
    return Section(drawn.anchor, drawn.title, drawn.about, shown, listings)
