"""Lines in the log of a trial's process, which the dashboard shows, that say which unit begins and ends there."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Sequence

from raysft.measure import Report
from raysft.spec.plan import Unit, Work

_log = logging.getLogger(__name__)


def open_log() -> None:
    """Send the lines to this process's output, of which Ray makes a log file. Once for each process."""
    if not _log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        _log.addHandler(handler)
        _log.setLevel(logging.INFO)
        _log.propagate = False


def begins(unit: Unit, works: Sequence[Work]) -> None:
    """Say which unit begins, and how many results of which stage it is to commit."""
    stages = Counter(work.stage for work in works)
    _log.info("%s %s begins: %s", unit, unit.key, ", ".join(f"{stage} {count}" for stage, count in stages.items()))


def goes_on(unit: Unit, text: str) -> None:
    """Say how far a unit has come."""
    _log.info("%s %s: %s", unit, unit.key, text)


def ended(unit: Unit, report: Report, wall_s: float) -> None:
    """Say what a unit committed, in which time, and what failed."""
    spent = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report.seconds.items())
    _log.info("%s %s ended: %d results in %.1f s (%s)", unit, unit.key, report.committed, wall_s, spent)
    for failure in report.failures:
        _log.info("%s %s failed: %s: %s", unit, unit.key, failure["stage"], failure["message"])
