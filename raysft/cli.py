"""The `raysft` command. Ray and torch are imported by the commands that need them, so that the others are quick."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from raysft.spec.memory import memory_needs, too_large
from raysft.spec.plan import Plan, is_up_to_date, make_plan, nothing_missing
from raysft.spec.size import POLICIES, decimal, retention
from raysft.spec.sweep import Sweep, load_sweep
from raysft.store.layout import REPORT_FILE, Storage, StorageError, open_storage
from raysft.store.results import read_failures

app = typer.Typer(
    help="Supervised fine-tuning in bulk: one YAML, a Ray cluster, Arrow tables and a report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False, soft_wrap=True)

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP", help="The sweep's YAML.", show_default=False)]
StorageOption = Annotated[str | None, typer.Option("--storage", help="Use this storage in place of the YAML's.")]
AddressOption = Annotated[str | None, typer.Option("--address", help="Ray cluster; RAY_ADDRESS, or one of its own.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


@contextmanager
def user_errors() -> Iterator[None]:
    """End with one line and exit code 2 for what a user can mend."""
    try:
        yield
    except ValueError as error:
        if type(error).__module__.partition(".")[0] != "raysft":
            raise
        typer.echo(f"raysft: {error}", err=True)
        raise typer.Exit(2) from error


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The YAML to write.")] = Path("sweep.yaml"),
) -> None:
    """Write a short, commented sweep for your own model folders and data files."""
    if file.exists():
        typer.echo(f"raysft: {file} is there already, and is left as it is", err=True)
        raise typer.Exit(2)
    text = (Path(__file__).parent / "spec" / "starter.yaml").read_text(encoding="utf-8")
    file.write_text(text.replace("{file}", str(file)), encoding="utf-8")
    console.print(f"Wrote {file}. Name your models and data in it, then: raysft plan {file}")


@app.command()
def plan(sweep: SweepFile, storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """Show a sweep's trials and checkpoints, why there are so many, and what of it is done. Touches no network."""
    with user_errors():
        loaded = load_sweep(sweep, storage)
        made = make_plan(loaded, _readable_storage(loaded))
        if as_json:
            typer.echo(json.dumps(_plan_facts(made), indent=1))
            return
        _print_plan(made)


@app.command()
def run(
    sweep: SweepFile,
    storage: StorageOption = None,
    address: AddressOption = None,
    dashboard: Annotated[bool, typer.Option(help="Start Ray's dashboard with a cluster of its own.")] = False,
) -> None:
    """Run what is missing of a sweep, then bring tables, study and report up to date. Run again to resume.

    Exit code 0: all done; 1: some trials failed (they are in the failures table); 2: a mistake in the sweep.
    """
    with user_errors():
        loaded = load_sweep(sweep, storage)
        opened = open_storage(loaded.storage)
        made = make_plan(loaded, opened)
        if is_up_to_date(made, opened):  # said without the seconds that importing Ray and torch takes
            console.print(nothing_missing(made))
            console.print(f"Report: {opened.path(REPORT_FILE)}")
            return
        from raysft.cluster.pipeline import run_everything

        total = len(made.missing_units())
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal or not total) as bar:
            task = bar.add_task(loaded.name, total=total)
            result = run_everything(loaded, address, dashboard, console.print, lambda _: bar.advance(task))
    for line in result.failures:
        typer.echo(f"failed: {line}", err=True)
    console.print(f"Report: {result.report}")
    raise typer.Exit(1 if result.failures else 0)


JobsOption = Annotated[str, typer.Option("--address", help="Job server of the cluster, as http://HEAD:8265.")]


@app.command()
def submit(
    sweep: SweepFile,
    address: JobsOption,
    working_dir: Annotated[Path, typer.Option(help="Sent to the cluster; the sweep and its files are in it.")] = Path(),
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the log.")] = False,
    storage: StorageOption = None,
) -> None:
    """Run a sweep as a job of a cluster, follow its log, and end with its exit code. Submit again to resume."""
    with user_errors():
        loaded = load_sweep(sweep, storage)
        from raysft.cluster.submit import JobServer

        server = JobServer(address)
        options = [] if storage is None else ["--storage", storage]
        name = server.submit(loaded, sweep, working_dir, *options)
        console.print(f"Submitted {name} to {address}")
        if detach:
            console.print(f"Follow it: ray job logs --address {address} --follow {name}")
            return
        raise typer.Exit(server.follow(name, lambda text: typer.echo(text, nl=False)))


@app.command()
def cancel(sweep: SweepFile, address: JobsOption, storage: StorageOption = None) -> None:
    """Stop the job that runs a sweep; what it committed stays, and submitting again goes on from there."""
    with user_errors():
        loaded = load_sweep(sweep, storage)
        from raysft.cluster.submit import JobServer

        console.print(f"Stopped {JobServer(address).cancel(loaded)}")


@app.command()
def embed(sweep: SweepFile, storage: StorageOption = None, address: AddressOption = None) -> None:
    """Stream hidden states of finished checkpoints and estimate their dimensions; `run` does this at its end."""
    with user_errors():
        loaded = load_sweep(sweep, storage)
        from raysft.cluster.pipeline import run_geometry_only

        failures = run_geometry_only(loaded, address, console.print)
    for line in failures:
        typer.echo(f"failed: {line}", err=True)
    raise typer.Exit(1 if failures else 0)


@app.command()
def status(sweep: SweepFile, storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """Show done, failed and missing work, from the storage alone: no cluster is needed."""
    with user_errors():
        loaded = load_sweep(sweep, storage)
        opened = open_storage(loaded.storage)
        made = make_plan(loaded, opened)
        failures = _open_failures(made, opened)
        if as_json:
            typer.echo(json.dumps({**_plan_facts(made), "failures": failures}, indent=1))
            return
        table = Table("stage", "done", "failed", "missing")
        for stage, (done, planned) in made.count_by_stage().items():
            failed = sum(failure["stage"] == stage for failure in failures)
            table.add_row(stage, str(done), str(failed or ""), str(planned - done - failed or ""))
        console.print(table)
        for failure in failures:
            console.print(f"{failure['subject']}: {failure['stage']}: {failure['message']} ({failure['log']})")
        _print_damaged(made)


@app.command()
def reduce(sweep: SweepFile, storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """Assemble all committed results into tables/*.parquet."""
    with user_errors():
        loaded = load_sweep(sweep, storage)
        from raysft.reduce import reduce_sweep

        reduced = reduce_sweep(loaded, open_storage(loaded.storage))
        if as_json:
            typer.echo(json.dumps({"rows": reduced.rows, "unreadable": reduced.unreadable}, indent=1))
            return
        table = Table("table", "rows")
        for name, rows in reduced.rows.items():
            table.add_row(name, f"{rows:,}")
        console.print(table)
        for line in reduced.unreadable:
            console.print(f"left out: {line}")


@app.command()
def study(sweep: SweepFile, storage: StorageOption = None) -> None:
    """Compute the statistics of the tables into study/ (run `reduce` first)."""
    with user_errors():
        loaded = load_sweep(sweep, storage)
        from raysft.publish import make_study

        opened = _with_tables(loaded)
        make_study(opened)
        console.print(f"Study: {opened.path('study')}")


@app.command()
def report(sweep: SweepFile, storage: StorageOption = None) -> None:
    """Draw the study as one HTML page, with figures and their data beside it (run `reduce` first)."""
    with user_errors():
        loaded = load_sweep(sweep, storage)
        from raysft.publish import make_report

        opened = _with_tables(loaded)
        make_report(opened, loaded.name)
        console.print(f"Report: {opened.path('report', 'report.html')}")


@app.command()
def doctor(storage: StorageOption = None, address: AddressOption = None, as_json: JsonOption = False) -> None:
    """Print versions, devices, disk and Ray's state, and what would not work and why."""
    from raysft.cluster.doctor import as_rows, examine

    findings = examine(storage, address)
    if as_json:
        typer.echo(json.dumps(as_rows(findings), indent=1))
    else:
        table = Table("", "found", "problem")
        for entry in findings:
            table.add_row(entry.about, entry.found, entry.problem)
        console.print(table)
    raise typer.Exit(1 if any(entry.problem for entry in findings) else 0)


def _readable_storage(sweep: Sweep) -> Storage | None:
    """The sweep's storage to compare with; None for a remote one, which a plan does not wait for."""
    return open_storage(sweep.storage) if "://" not in sweep.storage else None


def _with_tables(sweep: Sweep) -> Storage:
    storage = open_storage(sweep.storage)
    if not storage.exists("tables", "trials.parquet"):
        raise StorageError(f"{storage.path('tables')}: no tables yet; `raysft reduce` makes them")
    return storage


def _plan_facts(made: Plan) -> dict[str, Any]:
    return {
        "sweep": made.sweep.name,
        "storage": made.sweep.storage,
        "trials": len(made.trials),
        "checkpoints": sum(len(trial.measured) for trial in made.trials),
        "blocks": [vars(block) for block in made.blocks],
        "stages": {
            stage: {"done": done, "planned": planned} for stage, (done, planned) in made.count_by_stage().items()
        },
        "checkpoint_storage": [asdict(retention(made.sweep, made.trials, keep)) for keep in POLICIES],
        "worker_memory": [
            {"model": need.model, "method": need.method, "trials": need.trials, "bytes": round(need.bytes)}
            for need in memory_needs(made.sweep, made.trials)
        ],
        "missing_units": [str(unit) for unit in made.missing_units()],
        "damaged": list(made.damaged),
    }


def _print_plan(made: Plan) -> None:
    blocks = Table("block", "is", "trials", "checkpoints", "of them new", title=made.sweep.name)
    for block in made.blocks:
        counts = (str(block.trials), str(block.checkpoints), str(block.new_checkpoints))
        blocks.add_row(block.name, block.factors, *counts)
    console.print(blocks)
    checkpoints = sum(len(trial.measured) for trial in made.trials)
    console.print(f"{len(made.trials)} trials, {checkpoints} fine-tuned checkpoints to measure")
    stages = Table("stage", "done", "missing")
    for stage, (done, planned) in made.count_by_stage().items():
        stages.add_row(stage, str(done), str(planned - done))
    console.print(stages)
    _print_sizes(made)
    looked = "" if _readable_storage(made.sweep) else " (not looked at: a plan uses no network; see `raysft status`)"
    console.print(f"{len(made.missing_units())} units of work are missing in {made.sweep.storage}{looked}")
    moving = ", ".join(_moving_revisions(made.sweep))
    if moving:
        console.print(f"Revision main moves with the hub; pin a commit, so that the sweep can be repeated: {moving}")
    _print_damaged(made)


def _print_sizes(made: Plan) -> None:
    """What the checkpoints take under each policy, and what a training step needs of a worker."""
    table = Table("checkpoints.keep", "checkpoints", "storage")
    for keep in POLICIES:
        kept = retention(made.sweep, made.trials, keep)
        size = decimal(kept.bytes) if kept.bytes_meanwhile else "unknown"
        if kept.bytes_meanwhile > kept.bytes:
            size += f", {decimal(kept.bytes_meanwhile)} until the run ends"
        chosen = " (chosen)" if keep == made.sweep.checkpoints.keep else ""
        table.add_row(keep + chosen, f"{kept.checkpoints:,}", size)
    console.print(table)
    unknown = retention(made.sweep, made.trials, "last").unknown
    if unknown:
        console.print(f"Not in it, size unknown for (their `shape` would tell): {', '.join(unknown)}")
    largest = max(memory_needs(made.sweep, made.trials), key=lambda need: need.bytes, default=None)
    if largest is not None:
        console.print(
            f"A training step needs up to {decimal(largest.bytes)} of a worker ({largest.model} x {largest.method})"
        )
    for line in too_large(made.sweep, made.missing_trials()):
        console.print(line)


def _moving_revisions(sweep: Sweep) -> list[str]:
    """Hub names without a pinned revision: their key says `main`, whatever main was when they were loaded."""
    models = [f"models.{model.name}" for model in sweep.models if model.hub and model.revision == "main"]
    return models + [f"datasets.{data.name}" for data in sweep.datasets if data.hub and data.revision == "main"]


def _print_damaged(made: Plan) -> None:
    for path in made.damaged:
        console.print(f"{path}: truncated; `raysft run` moves it aside and redoes it")


def _open_failures(made: Plan, storage: Storage) -> list[dict[str, Any]]:
    """The latest failure of each work that is not done."""
    recorded = {(stage, key) for stage in storage.names("failures") for key in storage.names("failures", stage)}
    latest = []
    for work in made.works():
        if not made.is_done(work) and (work.stage, work.key) in recorded:
            failure = read_failures(storage, work.stage, work.key)[-1]
            latest.append({**failure, "subject": str(work.subject)})
    return latest


def job(command: str) -> None:
    """Main of the scripts in `jobs/`: `command` with the words that follow.

    A Ray job runs in a copy of its working directory that Ray throws away, so a relative storage is taken from
    ~/raysft on the head node instead, where the next submission finds it again.
    """
    sweep, *options = sys.argv[1:] or ["--help"]
    if "_ray_pkg_" in str(Path.cwd()):
        sweep = str(Path(sweep).resolve())
        home = Path.home() / "raysft"
        home.mkdir(exist_ok=True)
        os.chdir(home)
    app([command, sweep, *options])


if __name__ == "__main__":
    app()
