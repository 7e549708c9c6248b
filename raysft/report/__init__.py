"""The page and its figures, made from the sweep's tables and the study's."""

from raysft.report.sweep_page import write_report

__all__ = ["write_report"]
