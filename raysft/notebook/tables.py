"""All tables of one sweep or study, by name. What imports the study is imported when a matrix is asked for."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from raysft.notebook.names import unknown
from raysft.notebook.table import Table

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


class Tables(Mapping[str, Table]):
    """The tables of a sweep and of its study, as attributes and by name; `where` says where they lie.

    Nothing is read before it is used. `tables["gain_matrix"]` is the study's table of that name, and
    `tables.gain_matrix()` the same as a matrix.
    """

    def __init__(self, where: str, tables: Mapping[str, Table]) -> None:
        self.where = where
        self._tables = dict(tables)

    def gain_matrix(self, variant: str | None = None, value: str = "gain", model: str | None = None) -> pd.DataFrame:
        """What training on each dataset (rows) did to each task (columns), at the last measured epoch.

        Args:
            variant: of `variants`; may be left out where there is one.
            value: column of the table `gains`, such as `gain` or `score` (on the task's own scale), `scaled_gain`, `z`.
            model: base model; by default the mean over all of the mean over seeds, as in the study.

        Returns:
            A pandas DataFrame, NaN where nothing was measured.

        Raises:
            UnknownNameError: a variant, value or model that is not there, or no variant where there are several.
        """
        from raysft.notebook import gains

        return gains.gain_matrix(self["gains"], variant, value, model)

    def gain_array(self, variant: str | None = None, value: str = "gain") -> xr.DataArray:
        """The same with an axis for the base models: a DataArray of dimensions model, dataset, task; means over seeds.

        ImportError without xarray; otherwise as `gain_matrix`.
        """
        from raysft.notebook import gains

        return gains.gain_array(self["gains"], variant, value)

    @property
    def variants(self) -> list[str]:
        """Groups of trials that a gain is averaged over: the method, and whatever else differs within it."""
        from raysft.notebook import gains

        return gains.variants(self["gains"])

    def __getitem__(self, name: str) -> Table:
        if name not in self._tables:
            raise unknown(self.where, "table", name, self._tables)
        return self._tables[name]

    def __getattr__(self, name: str) -> Table:
        if name.startswith("_"):  # what copying, pickling and notebooks look for
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._tables})

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._tables)

    def __repr__(self) -> str:
        return f"Tables of {self.where}: {', '.join(self._tables)}"

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><td style='text-align: left'>{html.escape(name)}</td><td>{len(table):,}</td>"
            f"<td style='text-align: left'>{html.escape(', '.join(table.columns))}</td></tr>"
            for name, table in self._tables.items()
        )
        head = "<tr><th>table</th><th>rows</th><th>columns</th></tr>"
        return f"<p>Tables of {html.escape(self.where)}</p><table>{head}{''.join(rows)}</table>"
