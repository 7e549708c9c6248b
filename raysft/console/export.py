"""`raysft export`: what is chosen, what became of each folder, and what a push sends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from raysft.console.push import check_push, push_and_print
from raysft.console.status import stored_sweep
from raysft.export.markdown import with_error
from raysft.export.mistakes import ExportError
from raysft.export.run import Options, Selection, check_options, export, selected, sizes
from raysft.export.selection import Choice, best_metric
from raysft.spec.digests import given, kept_digests
from raysft.spec.mistakes import shown
from raysft.spec.size import decimal
from raysft.spec.sweep import Sweep, load_sweep
from raysft.store.layout import open_storage


@dataclass(frozen=True)
class Push:
    """Where to upload the exports; only with `send` is anything sent."""

    organisation: str
    send: bool
    public: bool


def export_and_print(
    console: Console, target: str, storage: str | None, out: Path, choice: Choice, options: Options, push: Push | None
) -> bool:
    """Export what `choice` takes of a sweep's YAML or storage into `out`; whether all of it could be.

    Raises:
        ExportError, SpecError, StorageError: what a user can mend, before anything is written.
    """
    if push is not None:
        check_push(push.organisation, push.send)
    with _sweep(target, storage) as sweep, selected(sweep, open_storage(sweep.storage), choice) as selection:
        check_options(sweep, options)
        _print_selection(console, selection, choice.best)
        outcomes = []
        for outcome in export(selection, out, options):
            console.print(f"{outcome.name}: {outcome.state or f'not exported: {outcome.why}'}")
            outcomes.append(outcome)
        console.print(f"Exported into {out}")
    whole = all(outcome.state is not None for outcome in outcomes)
    if push is None:
        return whole
    names = [outcome.name for outcome in outcomes if outcome.state is not None]
    return push_and_print(console, out, names, push.organisation, push.send, push.public) and whole


def names(option: str, text: str | None) -> tuple[str, ...] | None:
    """Names by comma. ExportError where there is none."""
    if text is None:
        return None
    found = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not found:
        raise ExportError(f"--{option}: no name in {text!r}")
    return found


def bases(entries: Sequence[str]) -> Mapping[str, str]:
    """`MODEL=REFERENCE` entries by model."""
    found = {}
    for entry in entries:
        model, equals, reference = entry.partition("=")
        if not equals or not model or not reference.strip():
            raise ExportError(f"--base {shown(entry, 80)}: MODEL=ORG/NAME[@REVISION], or MODEL=FOLDER, is wanted")
        found[model] = reference.strip()
    return found


@contextmanager
def _sweep(target: str, storage: str | None) -> Iterator[Sweep]:
    """The sweep of a YAML, or the one that a storage was last run with, whose files need not be on this machine."""
    if "://" not in target and not Path(target).is_dir():
        yield load_sweep(Path(target), storage)
        return
    if storage is not None:
        raise ExportError(f"--storage belongs to a sweep's YAML, found the storage {shown(target)}")
    with given(kept_digests(open_storage(target))):
        yield stored_sweep(target)


def _print_selection(console: Console, selection: Selection, best: str | None) -> None:
    weights = sizes(selection)
    table = Table()
    table.add_column("checkpoint", no_wrap=True)
    table.add_column("size", justify="right")
    metric = None if best is None else best_metric(selection.records.tables["scores"], best)
    if metric is not None:
        table.add_column(f"{best}, {metric}", justify="right")
    for one, size in zip(selection.checkpoints, weights, strict=True):
        scores = selection.records.scores(one.trial.key, one.epoch)
        found = [
            with_error(score.value, score.stderr) for score in scores if (score.task, score.metric) == (best, metric)
        ]
        table.add_row(one.name, "damaged" if size is None else decimal(size), *found)
    console.print(table)
    total = decimal(sum(size or 0 for size in weights))
    console.print(f"{len(weights)} checkpoint{'' if len(weights) == 1 else 's'}, {total}")
