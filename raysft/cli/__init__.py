"""The `raysft` command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from raysft.cli.checkpoints import export, weights
from raysft.cli.machine import doctor
from raysft.cli.studies import recommend, reduce, report, study
from raysft.cli.sweeps import cancel, embed, init, plan, run, status, submit

_PANELS = {
    "A sweep": (init, plan, run, status),
    "On a cluster": (submit, cancel),
    "Steps of `run`, each by itself": (embed, reduce, study, report),
    "What comes of it": (recommend, export, weights),
    "The machine": (doctor,),
}

app = typer.Typer(
    help="Supervised fine-tuning in bulk: one YAML, a Ray cluster, Arrow tables and a report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)


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
