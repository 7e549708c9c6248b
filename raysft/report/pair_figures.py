"""The figure of one method against another on the same models and datasets: LoRA against full."""

from __future__ import annotations

from matplotlib.ticker import MaxNLocator

from raysft.report.findings import Findings
from raysft.report.hover import dots_of
from raysft.report.listing import number
from raysft.report.plot import INK, NEUTRAL, PAPER, Absent, Plot, panels, short
from raysft.report.redraw import plain_code

_CLEAR = 0.05


def methods_compared(findings: Findings) -> Plot | Absent:
    """Mean paired difference of gains by task with its interval, a panel for each pair of variants."""
    name, title = "methods_compared", "One method against another"
    table = findings.study["pairs"]
    rows = [row for row in table.to_pylist() if row["mean_difference"] is not None]
    if not rows:
        return Absent(name, title, "no two kinds of fine-tuning were measured on the same models and datasets")
    tasks = sorted({row["task"] for row in rows}, reverse=True)
    pairs = sorted({(row["first"], row["second"]) for row in rows})
    figure, axes = panels(1, len(pairs), 4.6, 1.1 + 0.3 * len(tasks), sharey=True)
    hover = []
    for panel, pair in zip(axes[0], pairs, strict=True):
        dots = []
        panel.axvline(0, color=NEUTRAL, linewidth=1)
        for row in rows:
            if (row["first"], row["second"]) != pair:
                continue
            y, by = tasks.index(row["task"]), row["scale"] or 1.0
            clear = row["q"] is not None and row["q"] < _CLEAR
            if row["low"] is not None and row["high"] is not None:
                panel.plot([row["low"] / by, row["high"] / by], [y, y], color=INK, linewidth=1.3)
            mean = row["mean_difference"] / by
            panel.plot(mean, y, marker="o", markersize=6, color=INK, markerfacecolor=INK if clear else PAPER)
            dots.append((mean, float(y), _said(row)))
        panel.set_yticks(range(len(tasks)), [short(task) for task in tasks])
        panel.set(title=short(f"{pair[0]} - {pair[1]}"), xlabel="difference of gains (share of the scale)")
        panel.set_ylim(-0.6, len(tasks) - 0.4)
        panel.xaxis.set_major_locator(MaxNLocator(5))
        hover.append(dots_of(panel, dots))
    caption = (
        "Mean difference of gains of pairs that agree in all but the method, with its 95% interval, errors clustered "
        f"by model and by dataset; right of zero the first is ahead. Filled: q < {_CLEAR} over the tasks."
    )
    code = plain_code(
        name,
        """
        for names, part in table.groupby(["first", "second"], dropna=False):
            middle, low, high = (part[column] / part["scale"] for column in ("mean_difference", "low", "high"))
            plt.errorbar(middle, part["task"], xerr=[middle - low, high - middle], fmt="o", capsize=3, label=names)
        plt.axvline(0, color="grey")
        plt.xlabel("difference of gains (share of the scale)")
        plt.legend()
        """,
    )
    return Plot(name, title, caption, figure, table, (), code, tuple(hover))


def _said(row: dict[str, float]) -> str:
    interval = f" [{row['low']:+.3f}, {row['high']:+.3f}]" if row["low"] is not None and row["high"] is not None else ""
    tests = ", ".join(
        f"{test} = {number(row[test])}" for test in ("p", "q", "t_p", "wilcoxon_p") if row[test] is not None
    )
    return f"{row['task']}: {row['mean_difference']:+.3f}{interval}\n{row['n']} pairs{', ' if tests else ''}{tests}"
