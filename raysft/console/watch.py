"""`raysft status --watch`: a live table of a sweep, read anew from its storage every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raysft.console.costs import cost_table
from raysft.console.status import Observer, Progress, driver_lines
from raysft.store.layout import StorageError

_FAILURES = 5  # the latest, in a frame


def watch(observer: Observer, console: Console, every_s: float, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show a sweep until nothing is left of it, or until Ctrl-C.

    A storage that cannot be read for a while is said and asked again; StorageError if it could not be read at first.
    """
    progress = observer.look()
    with Live(frame(progress), console=console, auto_refresh=False) as live:
        try:
            while not progress.is_over:
                sleep(every_s)
                try:
                    progress, problem = observer.look(), ""
                except StorageError as error:
                    problem = str(error)
                live.update(frame(progress, problem), refresh=True)
        except KeyboardInterrupt:
            return


def frame(progress: Progress, problem: str = "") -> RenderableType:
    """One picture of a sweep; `problem` says why it is not a newer one."""
    return Group(*_parts(progress), *([Text(problem, style="red")] if problem else []))


def _parts(progress: Progress) -> Iterator[RenderableType]:
    sweep = progress.plan.sweep
    yield Text.assemble((sweep.name, "bold"), f"  {len(progress.plan.trials):,} trials  {sweep.storage}")
    yield from map(Text, driver_lines(progress))
    yield _bars(progress)
    yield cost_table(progress.estimate, actual=True)
    for failure in progress.failures[:_FAILURES]:
        yield Text(f"{failure['subject']}: {failure['stage']}: {failure['message']}", style="red", overflow="ellipsis")
    more = len(progress.failures) - _FAILURES
    if more > 0:
        yield Text(f"and {more:,} more; `raysft status` lists them", style="red")


def _bars(progress: Progress) -> Table:
    failed = progress.failed
    table = Table("stage", "", "done", "of", "failed", "missing")
    for column in table.columns[2:]:
        column.justify = "right"
    for stage, done, planned in progress.stages():
        lost = failed.get(stage, 0)
        bar = ProgressBar(total=planned, completed=done, width=32)
        counts = (f"{done:,}", f"{planned:,}", f"{lost:,}" if lost else "", f"{planned - done - lost:,}")
        table.add_row(stage, bar, *counts)
    return table
