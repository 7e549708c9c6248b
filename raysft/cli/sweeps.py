"""Commands that plan, run and watch a sweep. Those that need Ray or torch import them: the others are quick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from raysft.cli.shared import AddressOption, JsonOption, StorageOption, SweepFile, console, user_errors
from raysft.console.plan import plan_facts, print_plan
from raysft.spec.cost import estimate
from raysft.spec.judge_cost import judge_facts, judge_lines
from raysft.spec.mistakes import shown
from raysft.spec.plan import is_up_to_date, make_plan, nothing_missing
from raysft.spec.sweep import SpecError, Sweep, load_sweep
from raysft.store.layout import REPORT_FILE, Storage, open_storage

JobsOption = Annotated[str, typer.Option("--address", help="Job server of the cluster, as http://HEAD:8265.")]


def init(
    file: Annotated[Path, typer.Argument(help="The YAML to write.")] = Path("sweep.yaml"),
) -> None:
    """Write a short, commented sweep for your own model folders and data files."""
    if file.exists():
        typer.echo(f"raysft: {file} is there already, and is left as it is", err=True)
        raise typer.Exit(2)
    text = (Path(__file__).parents[1] / "spec" / "starter.yaml").read_text(encoding="utf-8")
    try:
        file.write_text(text.replace("{file}", str(file)), encoding="utf-8")
    except OSError as error:
        typer.echo(f"raysft: {shown(file)}: cannot be written ({error.strerror})", err=True)
        raise typer.Exit(2) from error
    console.print(f"Wrote {file}. Name your models and data in it, then: raysft plan {file}")


def plan(sweep: SweepFile, storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """Show a sweep's trials and checkpoints, why there are so many, and what of it is done. Touches no network."""
    with user_errors():
        loaded = load_sweep(sweep, storage)
        readable = _readable_storage(loaded)
        made = make_plan(loaded, readable)
        costs = estimate(made, readable)
        if as_json:
            typer.echo(json.dumps({**plan_facts(made, costs), "judge": judge_facts(made)}, indent=1))
            return
        print_plan(console, made, costs, compared=readable is not None)
        for line in judge_lines(made, readable):
            console.print(line)


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
        from raysft.cluster.address import check_cluster

        check_cluster(address)
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


def cancel(sweep: SweepFile, address: JobsOption, storage: StorageOption = None) -> None:
    """Stop the job that runs a sweep; what it committed stays, and submitting again goes on from there."""
    with user_errors():
        loaded = load_sweep(sweep, storage)
        from raysft.cluster.submit import JobServer

        console.print(f"Stopped {JobServer(address).cancel(loaded)}")


def embed(sweep: SweepFile, storage: StorageOption = None, address: AddressOption = None) -> None:
    """Stream hidden states of finished checkpoints and estimate their dimensions; `run` does this at its end."""
    with user_errors():
        loaded = load_sweep(sweep, storage)
        from raysft.cluster.address import check_cluster

        check_cluster(address)  # before the seconds that the next import takes
        from raysft.cluster.pipeline import run_geometry_only

        failures = run_geometry_only(loaded, address, console.print)
    for line in failures:
        typer.echo(f"failed: {line}", err=True)
    raise typer.Exit(1 if failures else 0)


def status(
    target: Annotated[
        str,
        typer.Argument(
            metavar="SWEEP|STORAGE|URL",
            help="A sweep's YAML, a storage, or a cluster's job server as http://HEAD:8265.",
            show_default=False,
        ),
    ],
    storage: StorageOption = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew until all is done, or Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks of --watch.")] = 5.0,
) -> None:
    """Show done, failed and missing work and what it costs, from the storage alone: no cluster is needed.

    A storage is read as the sweep it was last run with. Of a job server, its submissions are listed.
    """
    with user_errors():
        if target.startswith(("http://", "https://")):
            _show_jobs(target, storage, as_json, watch)
            return
        from raysft.console.status import observe, status_facts, status_lines

        observer = observe(target, storage)
        if watch:
            from raysft.console.watch import watch as keep_watching

            keep_watching(observer, console, every)
            return
        progress = observer.look()
        if as_json:
            typer.echo(json.dumps(status_facts(progress), indent=1))
            return
        for part in status_lines(progress):
            console.print(part)


def _readable_storage(sweep: Sweep) -> Storage | None:
    """The sweep's storage to compare with; None for a remote one, which a plan does not wait for."""
    return open_storage(sweep.storage) if "://" not in sweep.storage else None


def _show_jobs(address: str, storage: str | None, as_json: bool, watch: bool) -> None:
    """The submissions of a job server, and how far their sweeps are."""
    if storage is not None or watch:
        option = "--watch" if watch else "--storage"
        raise SpecError(f"{option} belongs to one sweep: give its YAML or its storage, found the job server {address}")
    from raysft.cluster.submit import JobServer
    from raysft.console.jobs import job_facts, job_lines, job_notes, look_at_storages

    found = JobServer(address).all_submissions()
    looks = look_at_storages(found)
    if as_json:
        typer.echo(json.dumps(job_facts(found, looks), indent=1))
        return
    for line in (*job_lines(found, looks), *job_notes(looks)):
        console.print(line)
