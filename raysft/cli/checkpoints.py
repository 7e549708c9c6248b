"""Commands about checkpoints: how far their weights went, and how they leave the storage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raysft.cli.shared import StorageOption, console, user_errors
from raysft.spec.sweep import SpecError

Axis = Annotated[str | None, typer.Option(help="By comma, or `every`.")]


def weights(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="A local model folder.", show_default=False)],
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A model tuned from it, or a peft adapter.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Write every tensor's measures to this Parquet file.")] = None,
    norms: Annotated[
        bool, typer.Option("--norms", help="Norms, mean change and what is unchanged alone: several times faster.")
    ] = False,
) -> None:
    """Show how far a checkpoint's weights are from its base's, layer by layer, read from files without loading them."""
    with user_errors():
        from raysft.console.weights import other_base, print_weight_change, write_weight_change
        from raysft.probes.weights.folders import weight_change_of_folders

        change = weight_change_of_folders(base, checkpoint, norms_only=norms)
        print_weight_change(console, change)
        if named := other_base(base, checkpoint):
            console.print(f"{checkpoint} is an adapter of {named}; whether that is {base} is not known")
        if out is not None:
            write_weight_change(change, out)
            console.print(f"Wrote {out}")


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
