"""The report's headline numbers and notes, in words."""

from __future__ import annotations

from dataclasses import dataclass

from raysft.report.findings import Findings


@dataclass(frozen=True)
class Headline:
    """One number with what it counts; `mood` is good, bad or plain."""

    number: str
    label: str
    detail: str
    mood: str = "plain"


def headlines(findings: Findings) -> list[Headline]:
    """The numbers that a reader should see first."""
    counts = _counts(findings)
    done, planned = counts.get("trials_done", (0, 0))
    failed, missing = counts.get("trials_failed", (0, 0))[0], counts.get("trials_missing", (0, 0))[0]
    learned, taught = counts.get("own_skill_gains", (0, 0))
    gained, elsewhere = counts.get("synergies", (0, 0))
    lost, _ = counts.get("losses", (0, 0))
    beyond = f"beyond 3 standard errors in {elsewhere:,.0f} other cells"
    own = "gained beyond 3 standard errors on a task of their own skill"
    trials = Headline(
        f"{done:,.0f} / {planned:,.0f}", "fine-tunings done", f"{failed:,.0f} failed, {missing:,.0f} missing"
    )
    if not findings.stated:
        bases = len(findings.names("model"))
        trials = Headline(
            f"{findings.trials.num_rows:,}", "fine-tunings", f"of {bases} base models, with released scores"
        )
    return [
        trials,
        Headline(
            f"{learned:,.0f} / {taught:,.0f}", "learned what they were taught", own, "good" if learned else "plain"
        ),
        Headline(f"{gained:,.0f}", "synergies", f"gains {beyond}", "good" if gained else "plain"),
        Headline(f"{lost:,.0f}", "losses", beyond, "bad" if lost else "plain"),
    ]


def notes(findings: Findings) -> list[str]:
    """What a reader of the headlines should know: chance, gaps, and what was left out."""
    counts = _counts(findings)
    said = []
    chance, cells = counts.get("expected_by_chance", (0, 0))
    if cells:
        said.append(f"If nothing had changed, about {chance:.1f} of {cells:,.0f} cells would pass 3 standard errors.")
    early, final = counts.get("cells_before_last_epoch", (0, 0))
    if early:
        said.append(f"{early:,.0f} of {final:,.0f} cells come from an epoch before the planned last one.")
    unused, scores = counts.get("scores_unused", (0, 0))
    if unused:
        said.append(f"{unused:,.0f} of {scores:,.0f} scores have no base score to compare with, or are not finite.")
    checks = findings.study["checks"].to_pylist()
    return said + [f"Left out: {row['note']}." for row in checks if row["check"] == "left_out"]


def _counts(findings: Findings) -> dict[str, tuple[float, float]]:
    """check -> (count, out of how many)."""
    checks = findings.study["checks"].to_pylist()
    return {row["check"]: (row["value"], row["of"] or 0.0) for row in checks if row["value"] is not None}
