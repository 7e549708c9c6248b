"""The lines of Python that stand under each figure and redraw it from its CSV, with pandas, seaborn and matplotlib.

They run as they are in the folder of the report. A colour, a font or a selection is what a reader would change in them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

_HEAD = """
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

table = pd.read_csv("data/{name}.csv", keep_default_na=False, na_values=[""])  # a name may be None or NA
"""


def _code(name: str, body: str) -> str:
    return (_HEAD.format(name=name) + textwrap.dedent(body).strip() + "\nplt.show()\n").lstrip()


def heat_code(name: str, row: str, column: str, value: str, panel: Sequence[str] = (), centred: bool = True) -> str:
    """A heat map of `value`, one figure for each combination of the `panel` columns."""
    options = 'cmap="vlag", center=0' if centred else 'cmap="crest"'
    if not panel:
        body = f"""
        matrix = table.pivot_table(index="{row}", columns="{column}", values="{value}")
        sns.heatmap(matrix, {options}, annot=True, fmt=".2f", cbar_kws={{"label": "{value}"}})
        """
        return _code(name, body)
    body = f"""
    for names, part in table.groupby({list(panel)!r}):
        matrix = part.pivot_table(index="{row}", columns="{column}", values="{value}")
        plt.figure()
        sns.heatmap(matrix, {options}, cbar_kws={{"label": "{value}"}}).set_title(", ".join(map(str, names)))
    """
    return _code(name, body)


def points_code(name: str, x: str, y: str, options: str, log: bool = False) -> str:
    """A scatter plot; `options` are further arguments of seaborn's relplot."""
    body = f'grid = sns.relplot(table, x="{x}", y="{y}", {options})'
    return _code(name, body + ('\ngrid.set(xscale="log")' if log else ""))


def lines_code(name: str, x: str, y: str, options: str, log_base: int | None = None) -> str:
    """Lines with their points; `options` are further arguments of seaborn's relplot."""
    body = f'grid = sns.relplot(table, x="{x}", y="{y}", kind="line", marker="o", {options})'
    return _code(
        name, body + (f'\ngrid.set_axis_labels("{x}")\nplt.xscale("log", base={log_base})' if log_base else "")
    )


def interval_code(name: str, label: str, value: str, low: str, high: str, colour: str) -> str:
    """Horizontal intervals, one row for each label."""
    body = f"""
    for names, part in table.groupby("{colour}"):
        error = [part["{value}"] - part["{low}"], part["{high}"] - part["{value}"]]
        plt.errorbar(part["{value}"], part["{label}"], xerr=error, fmt="o", capsize=3, label=names)
    plt.axvline(0, color="grey")
    plt.xlabel("{value}")
    plt.legend()
    """
    return _code(name, body)


def tree_code(name: str, matrix: str) -> str:
    """A square matrix of correlations with its dendrogram; `matrix` makes it of `table`."""
    body = f"""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    matrix = {matrix}
    matrix = matrix.loc[matrix.notna().any(), matrix.notna().any()].fillna(0)  # what never varies has no r
    distance = (1 - matrix).clip(lower=0).to_numpy()
    tree = linkage(squareform(distance * (distance > 1e-12), checks=False), method="average")
    sns.clustermap(matrix, row_linkage=tree, col_linkage=tree, cmap="vlag", vmin=-1, vmax=1)
    """
    return _code(name, body)


def plain_code(name: str, body: str) -> str:
    """Any other figure: `body` draws `table`."""
    return _code(name, body)
