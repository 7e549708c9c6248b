"""A picture of `raysft status --watch`: one frame of a real sweep while it runs.

    python benchmarks/status_picture.py docs/images/status-watch.svg

Runs a sweep in a folder of its own until a third of its benchmarks are scored, keeps the frame of that moment and ends
the sweep. The name of the machine is left out of the picture.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import typer
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from raysft.console.status import Observer, Progress
from raysft.console.watch import frame
from raysft.spec.sweep import load_sweep

QUICKSTART = Path(__file__).parent.parent / "sweeps" / "quickstart.yaml"
WIDTH = 100  # characters
LONGEST_S = 3600


def picture(file: Path, sweep: Path = QUICKSTART, share: float = 1 / 3) -> None:
    """Write FILE as SVG when this share of the benchmarks of a sweep is scored."""
    with tempfile.TemporaryDirectory() as folder:
        storage = f"{folder}/{sweep.stem}"
        command = [sys.executable, "-m", "raysft.cli", "run", str(sweep), "--storage", storage]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            progress = _when(Observer(load_sweep(sweep, storage)), share, running)
        finally:
            running.terminate()
            running.wait(timeout=120)
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(frame(_nameless(progress)))
    svg = console.export_svg(title="raysft status --watch", code_format=_without_web_fonts(CONSOLE_SVG_FORMAT))
    file.write_text(svg, encoding="utf-8")


def _when(observer: Observer, share: float, running: subprocess.Popen[bytes]) -> Progress:
    end = time.monotonic() + LONGEST_S
    while time.monotonic() < end:
        progress = observer.look()
        done, planned = progress.plan.count_by_stage()["evaluate"]
        if done >= share * planned:
            return progress
        if running.poll() is not None:
            raise RuntimeError(f"the sweep ended with exit code {running.returncode} before its picture was taken")
        time.sleep(1)
    raise TimeoutError(f"{share:.0%} of the benchmarks were not scored within {LONGEST_S} s")


def _nameless(progress: Progress) -> Progress:
    return progress if progress.driver is None else replace(progress, driver=replace(progress.driver, host="head"))


def _without_web_fonts(template: str) -> str:
    """Rich's template loads its font from the web; the reader's own monospace font will do."""
    return re.sub(r"@font-face \{\{.*?\}\}\s*", "", template, flags=re.DOTALL)


if __name__ == "__main__":
    typer.run(picture)
