"""The `raysft` command. Ray and torch are imported by the commands that need them, so that the others are quick."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from raysft.console.plan import plan_facts, print_plan
from raysft.spec.cost import estimate
from raysft.spec.judge_cost import judge_facts, judge_lines
from raysft.spec.mistakes import shown
from raysft.spec.plan import is_up_to_date, make_plan, nothing_missing
from raysft.spec.sweep import SpecError, Sweep, load_sweep
from raysft.store.layout import REPORT_FILE, Storage, StorageError, open_storage

app = typer.Typer(
    help="Supervised fine-tuning in bulk: one YAML, a Ray cluster, Arrow tables and a report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Names, paths and messages are printed as they are: `[/INST]` is no closing tag of rich, and `:x:` no emoji.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)

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
        typer.echo(f"raysft: {shown(error, 4000)}", err=True)
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
    try:
        file.write_text(text.replace("{file}", str(file)), encoding="utf-8")
    except OSError as error:
        typer.echo(f"raysft: {shown(file)}: cannot be written ({error.strerror})", err=True)
        raise typer.Exit(2) from error
    console.print(f"Wrote {file}. Name your models and data in it, then: raysft plan {file}")


@app.command()
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
        from raysft.cluster.address import check_cluster

        check_cluster(address)  # before the seconds that the next import takes
        from raysft.cluster.pipeline import run_geometry_only

        failures = run_geometry_only(loaded, address, console.print)
    for line in failures:
        typer.echo(f"failed: {line}", err=True)
    raise typer.Exit(1 if failures else 0)


@app.command()
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


@app.command()
def reduce(sweep: SweepFile, storage: StorageOption = None, as_json: JsonOption = False) -> None:
    """Assemble all committed results into tables/*.parquet."""
    with user_errors():
        loaded = load_sweep(sweep, storage)
        from raysft.reduce import reduce_sweep

        reduced = reduce_sweep(loaded, open_storage(loaded.storage))
        if as_json:
            found = {"rows": reduced.rows, "unreadable": reduced.unreadable, "newer": reduced.newer}
            typer.echo(json.dumps(found, indent=1))
            return
        table = Table("table", "rows")
        for name, rows in reduced.rows.items():
            table.add_row(name, f"{rows:,}")
        console.print(table)
        for line in (*reduced.unreadable, *reduced.newer):
            console.print(f"left out: {line}")


def _no_nan(value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan; valid: nats, at most 0")
    return value


ClipOption = Annotated[
    float | None,
    typer.Option(
        "--clip-below",
        max=0.0,
        callback=_no_nan,
        help="Nats below which the map cuts log-likelihoods off, in place of their 2% quantile: `clipped_below` of the "
        "map that distances are to compare with.",
    ),
]


@app.command()
def study(
    sweep: Annotated[
        Path | None, typer.Argument(metavar="[SWEEP]", help="The sweep's YAML.", show_default=False)
    ] = None,
    storage: StorageOption = None,
    clip_below: ClipOption = None,
    released: Annotated[Path | None, typer.Option(help="Study this CSV of released scores instead of a sweep.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the study of released scores.")] = None,
    models: Annotated[str | None, typer.Option(help="Released: base models, by comma; default every one.")] = None,
    datasets: Annotated[str | None, typer.Option(help="Released: training sets; default the single ones.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Released: benchmarks; default the paper's twelve.")] = None,
    methods: Annotated[str | None, typer.Option(help="Released: full, lora; default every one.")] = None,
    sizes: Annotated[str | None, typer.Option(help="Released: training rows; default 1000.")] = None,
    schedules: Annotated[str | None, typer.Option(help="Released: schedules; default cosine.")] = None,
    epochs: Annotated[str | None, typer.Option(help="Released: epochs, or `last`, the default.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Released: ROLE=NAME where a column has a name of its own; may be repeated."),
    ] = None,
) -> None:
    """Compute the statistics of the tables into study/ (run `reduce` first), or those of a CSV of released scores.

    With --released, every choice takes names by comma or `every`, and what was chosen is printed.
    """
    with user_errors():
        axes = {"models": models, "datasets": datasets, "tasks": tasks, "methods": methods}
        axes |= {"sizes": sizes, "schedules": schedules, "epochs": epochs}
        if released is not None:
            _only("--released", sweep=sweep, storage=storage, clip_below=clip_below)
            from raysft.console.released import study_and_print

            study_and_print(console, released, out, axes, column or [])
            return
        if sweep is None:
            raise SpecError("study: a sweep's YAML, or --released CSV --out DIR, is wanted")
        _only("a sweep", out=out, column=column, **axes)
        loaded = load_sweep(sweep, storage)
        from raysft.publish import make_study

        opened = _with_tables(loaded)
        make_study(opened, clip_below)
        console.print(f"Study: {opened.path('study')}")


@app.command()
def report(
    sweep: Annotated[
        Path | None, typer.Argument(metavar="[SWEEP]", help="The sweep's YAML.", show_default=False)
    ] = None,
    storage: StorageOption = None,
    clip_below: ClipOption = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Set two studies side by side: YAML, storage, or folder of released scores."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the page of --compare.")] = Path("comparison"),
    released: Annotated[
        Path | None, typer.Option(help="Draw the study in this folder, which `raysft study --released` made.")
    ] = None,
) -> None:
    """Draw the study as one HTML page, with figures and their data beside it (run `reduce` first)."""
    with user_errors():
        if released is not None:
            if sweep is not None or storage is not None or clip_below is not None or compare is not None:
                raise SpecError("--released: takes a folder alone, found another study beside it")
            from raysft.publish import report_released

            console.print(f"Report: {report_released(released)}")
            return
        if compare is not None:
            if sweep is not None or storage is not None or clip_below is not None:
                raise SpecError(
                    "--compare: takes two studies and --out alone, found a sweep, --storage or --clip-below too"
                )
            from raysft.publish import make_comparison

            console.print(f"Comparison: {make_comparison(*compare, out)}")
            return
        if sweep is None:
            raise SpecError("report: a sweep's YAML, --released DIR, or --compare A B, is wanted")
        loaded = load_sweep(sweep, storage)
        from raysft.publish import make_report

        opened = _with_tables(loaded)
        make_report(opened, loaded.name, clip_below)
        console.print(f"Report: {opened.path('report', 'report.html')}")


@app.command()
def recommend(
    model: Annotated[
        str, typer.Option(help="Base model to tune: a name in the study or the sweep's YAML, or a local model folder.")
    ],
    sweep: Annotated[
        Path | None, typer.Argument(metavar="[SWEEP]", help="The sweep's YAML.", show_default=False)
    ] = None,
    study: Annotated[
        Path | None, typer.Option(help="A sweep's storage, or a study of released scores; default SWEEP's storage.")
    ] = None,
    datasets: Annotated[str | None, typer.Option(help="Of the study's datasets, by comma; default every one.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Of its tasks, by comma; default every one.")] = None,
    variant: Annotated[
        str | None, typer.Option(help="Kind of trial, such as full or lora; default the main one.")
    ] = None,
    level: Annotated[float, typer.Option(help="Of the prediction intervals.")] = 0.9,
    properties: Annotated[
        Path | None, typer.Option(help="Parquet file with the model's data_properties, instead of forward passes.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write what the forward passes measure to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Rank datasets by what a model that was not trained should gain from them, from forward passes alone."""
    with user_errors():
        from raysft.console.recommend import Asked, facts, make_recommendation, print_recommendation, study_folder

        folder = study_folder(sweep, study)
        asked = Asked(model, folder, sweep, datasets, tasks, variant, level, properties, save)
        found = make_recommendation(asked, lambda line: typer.echo(line, err=True))
        if as_json:
            typer.echo(json.dumps(facts(found), indent=1))
            return
        print_recommendation(console, found, asked)


@app.command()
def weights(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="A local model folder.", show_default=False)],
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A model tuned from it, or a peft adapter.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Write every tensor's measures to this Parquet file.")] = None,
) -> None:
    """Show how far a checkpoint's weights are from its base's, layer by layer, read from files without loading them."""
    with user_errors():
        from raysft.console.weights import print_weight_change, write_weight_change
        from raysft.probes.weights.folders import weight_change_of_folders

        change = weight_change_of_folders(base, checkpoint)
        print_weight_change(console, change)
        if out is not None:
            write_weight_change(change, out)
            console.print(f"Wrote {out}")


Axis = Annotated[str | None, typer.Option(help="By comma, or `every`.")]


@app.command()
def export(
    target: Annotated[
        str, typer.Argument(metavar="SWEEP|STORAGE", help="A sweep's YAML, or a storage.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for the exports.", show_default=False)],
    models: Axis = None,
    datasets: Axis = None,
    methods: Axis = None,
    sizes: Axis = None,
    seeds: Axis = None,
    epochs: Annotated[
        str | None, typer.Option(help="Numbers by comma, `last` (the default without --best), or `every`.")
    ] = None,
    trial: Annotated[
        str | None, typer.Option(help="By comma: keys of trials, or their first digits, or names of exports.")
    ] = None,
    best: Annotated[str | None, typer.Option(metavar="TASK", help="Of those, the best on this task.")] = None,
    top: Annotated[int, typer.Option(help="With --best: how many.")] = 1,
    base: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=REFERENCE",
            help="What adapters name as their base: ORG/NAME, ORG/NAME@REVISION or a folder; may be repeated.",
        ),
    ] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the exports, as the hub names it.")] = None,
    tables: Annotated[bool, typer.Option(help="Export the tables too, as a dataset.")] = True,
    push: Annotated[
        str | None, typer.Option(metavar="ORG", help="Say what would be sent to the hub, into repositories of ORG.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --push: send it.")] = False,
    public: Annotated[bool, typer.Option("--public", help="With --push: new repositories are public.")] = False,
    storage: StorageOption = None,
) -> None:
    """Write checkpoints as folders that transformers and peft load, with model cards, and push them to the hub.

    What is chosen is printed first. Exit code 1: some could not be exported or pushed, and the others are.
    """
    with user_errors():
        from raysft.console.export import Push, bases, export_and_print, names
        from raysft.export.run import Options
        from raysft.export.selection import Choice

        if push is None and (yes or public):
            raise SpecError(f"--{'yes' if yes else 'public'} belongs to --push ORG")
        axes = {"models": models, "datasets": datasets, "methods": methods, "sizes": sizes, "seeds": seeds}
        chosen = {axis: names(axis, text) for axis, text in (axes | {"epochs": epochs}).items()}
        choice = Choice(**chosen, trials=names("trial", trial), best=best, top=top)
        options = Options(license, bases(base or []), tables)
        pushed = None if push is None else Push(push, yes, public)
        whole = export_and_print(console, target, storage, out, choice, options, pushed)
    raise typer.Exit(0 if whole else 1)


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


def _only(what: str, **others: object) -> None:
    """Refuse the options that belong to the other form of a command."""
    for name, value in others.items():
        if value is not None:
            option = "the sweep" if name == "sweep" else f"--{name.replace('_', '-')}"
            raise SpecError(f"study: {option} does not go with {what}, found {value}")


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


def _with_tables(sweep: Sweep) -> Storage:
    storage = open_storage(sweep.storage)
    if not storage.exists("tables", "trials.parquet"):
        raise StorageError(f"{storage.path('tables')}: no tables yet; `raysft reduce` makes them")
    return storage


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
