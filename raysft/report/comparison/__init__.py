"""Two studies side by side: what both have, and what only one of them has."""

from raysft.report.comparison.page import write_comparison
from raysft.report.comparison.sides import Side

__all__ = ["Side", "write_comparison"]
