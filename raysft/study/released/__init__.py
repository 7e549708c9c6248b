"""The study of released scores: one CSV with a row for each model and a column for each benchmark."""

from raysft.study.released.run import ReleasedStudy, study_released
from raysft.study.released.selection import Choice

__all__ = ["Choice", "ReleasedStudy", "study_released"]
