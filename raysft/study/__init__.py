"""Statistics on the tables: gains, similarities, correlations, depth profiles and a map of models."""

from raysft.study.run import Study, run_study

__all__ = ["Study", "run_study"]
