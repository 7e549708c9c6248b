"""Lint: defects of a sweep's tables, or of released scores, that make conclusions wrong whatever the statistic."""

from raysft.study.lint.run import lint_findings, lint_table

__all__ = ["lint_findings", "lint_table"]
