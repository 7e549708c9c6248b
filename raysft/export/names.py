"""Names of exported folders: readable, the same for ever, and valid as names of repositories."""

from __future__ import annotations

import re

from raysft.spec.grid import Trial

LONGEST = 96  # characters of a repository's name on the hub
_KEY = 8  # digits of a key: they tell apart what the readable words do not


def checkpoint_name(sweep: str, trial: Trial, epoch: int) -> str:
    """`SWEEP-MODEL-DATASET-METHOD-SIZE-sSEED-eEPOCH-KEY`; words in front are cut where that is too long."""
    size = "all" if trial.size is None else str(trial.size)
    words = (sweep, trial.model, trial.dataset, trial.method, size, f"s{trial.seed}")
    return _safe("-".join(words), f"e{epoch}-{trial.key[:_KEY]}")


def base_name(sweep: str, model: str, key: str) -> str:
    """`SWEEP-MODEL-base-KEY`."""
    return _safe(f"{sweep}-{model}", f"base-{key[:_KEY]}")


def tables_name(sweep: str) -> str:
    """`SWEEP-tables`."""
    return _safe(sweep, "tables")


def _safe(words: str, end: str) -> str:
    """The hub takes letters, digits, `-`, `_` and `.`, no two of `-` and `.` in a row and none of them at an end."""
    clean = re.sub(r"[-.]{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", "-", words)).strip("-.")
    return f"{clean[: LONGEST - len(end) - 1].rstrip('-.')}-{end}"
