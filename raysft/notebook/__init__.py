"""Tables of a sweep and of its study for a notebook or a REPL: `raysft.load`."""

from raysft.notebook.loading import load
from raysft.notebook.names import UnknownNameError
from raysft.notebook.table import Columns, Table
from raysft.notebook.tables import Tables

__all__ = ["Columns", "Table", "Tables", "UnknownNameError", "load"]
