"""What the commands share: the console, the options of several of them, and how a user's mistake ends one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from raysft.spec.mistakes import shown

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
