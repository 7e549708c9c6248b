"""The command that examines the machine."""

from __future__ import annotations

import json

import typer
from rich.table import Table

from raysft.cli.shared import AddressOption, JsonOption, StorageOption, console


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
