"""Commands that make tables, statistics, pages and recommendations of what was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from raysft.cli.shared import JsonOption, StorageOption, SweepFile, console, user_errors
from raysft.spec.sweep import SpecError, Sweep, load_sweep
from raysft.store.layout import Storage, StorageError, open_storage


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


def recommend(
    model: Annotated[
        str, typer.Option(help="Base model to tune: a name in the study or the sweep's YAML, or a local model folder.")
    ],
    sweep: Annotated[
        Path | None, typer.Argument(metavar="[SWEEP]", help="The sweep's YAML.", show_default=False)
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            help="A sweep's storage (a folder, s3:// or gs://), or a study of released scores; default SWEEP's storage."
        ),
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
        from raysft.console.recommend import Asked, facts, make_recommendation, print_recommendation
        from raysft.console.study_folder import study_folder

        with study_folder(sweep, study) as folder:
            asked = Asked(model, folder, sweep, datasets, tasks, variant, level, properties, save)
            found = make_recommendation(asked, lambda line: typer.echo(line, err=True))
        if as_json:
            typer.echo(json.dumps(facts(found), indent=1))
            return
        print_recommendation(console, found, asked)


def _only(what: str, **others: object) -> None:
    """Refuse the options that belong to the other form of a command."""
    for name, value in others.items():
        if value is not None:
            option = "the sweep" if name == "sweep" else f"--{name.replace('_', '-')}"
            raise SpecError(f"study: {option} does not go with {what}, found {value}")


def _with_tables(sweep: Sweep) -> Storage:
    storage = open_storage(sweep.storage)
    if not storage.exists("tables", "trials.parquet"):
        raise StorageError(f"{storage.path('tables')}: no tables yet; `raysft reduce` makes them")
    return storage
