"""raysft: supervised fine-tuning in bulk. One YAML, a Ray cluster, Arrow tables, a study and a report."""

__version__ = "0.1.0"
