"""What a benchmark ran on and with: the part of every result file that says how to read the numbers."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from raysft.store.results import git_revision, package_versions


def circumstances(*packages: str) -> dict[str, Any]:
    """Command, hardware, load at the start and versions (of `packages` too), free of the paths of this machine."""
    versions = {**package_versions(), **{name: _version(name) for name in packages}}
    return {
        "command": " ".join(["python", *(_without_folder(argument) for argument in sys.argv)]),
        "hardware": {
            "cpu": _cpu_model(),
            "cpu_cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "machine": platform.machine(),
        },
        "load_at_start": round(os.getloadavg()[0], 2),
        "versions": versions,
        "git_revision": git_revision(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _without_folder(argument: str) -> str:
    """A path outside the project as its last part alone."""
    path = Path(argument)
    return path.name if path.is_absolute() else argument
