"""What this machine has, and what would not work on it and why."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from raysft.evaluation.sandbox.pool import SandboxError, protections
from raysft.store.layout import StorageError, open_storage
from raysft.store.results import package_versions


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: what was looked at, what was found, and the problem if there is one."""

    about: str
    found: str
    problem: str = ""


def examine(storage: str | None = None, address: str | None = None) -> list[Finding]:
    """Look at versions, devices, memory, disk, Ray, and a storage if one is named."""
    machine = [_devices(), _memory(), _disk(Path.cwd()), _shared_memory(), _programs(), _vllm()]
    findings = [_python(), *_packages(), *machine, _ray(address)]
    if storage is not None:
        findings.append(_storage(storage))
    return findings


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    known = (3, 10) <= sys.version_info[:2] <= (3, 13)
    return Finding("python", version, "" if known else "raysft is tested on 3.10 to 3.13")


def _packages() -> list[Finding]:
    return [
        Finding(name, version, f"pip install {name}" if version == "not installed" else "")
        for name, version in package_versions().items()
        if name != "python"
    ]


def _devices() -> Finding:
    cores = os.cpu_count() or 1
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding("devices", f"{cores} CPU cores, {len(names)} GPU: {', '.join(sorted(set(names)))}")
    reason = "torch is a CPU build" if torch.version.cuda is None else "torch has CUDA but sees no GPU"
    return Finding("devices", f"{cores} CPU cores, no GPU ({reason})")


def _memory() -> Finding:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    total = pages * size / 2**30
    return Finding("memory", f"{total:.1f} GiB", "two trials at a time need about 4 GiB" if total < 4 else "")


def _disk(folder: Path) -> Finding:
    usage = shutil.disk_usage(folder)
    free = usage.free / 2**30
    share = usage.free / usage.total
    problem = "Ray stops spilling objects when a disk is 95% full" if share < 0.05 or free < 2 else ""
    return Finding("disk", f"{free:.1f} GiB free of {usage.total / 2**30:.1f} GiB at {folder}", problem)


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("shared memory", "no /dev/shm: Ray's object store goes to the temporary folder")
    free = shutil.disk_usage(folder).free / 2**30
    return Finding("shared memory", f"{free:.1f} GiB", "Ray's object store will be slow" if free < 0.3 else "")


def _programs() -> Finding:
    """No problem where it cannot be done: few sweeps ask for it, and those that do are told."""
    try:
        found = protections()
    except SandboxError as error:
        return Finding("sandbox for evaluation.run_code", f"none ({error})")
    refused = f"; run_code: true is refused: {found.problem}" if found.problem else ""
    return Finding("sandbox for evaluation.run_code", f"{found}{refused}")


def _vllm() -> Finding:
    """No problem where it is missing: few sweeps ask for it, and those that do are told."""
    try:
        found = metadata.version("vllm")
    except metadata.PackageNotFoundError:
        found = "none beside raysft: pip install 'raysft[vllm]', or name an interpreter under evaluation.vllm.python"
    return Finding("vLLM for evaluation.backend", found)


def _ray(address: str | None) -> Finding:
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        return Finding("ray cluster", "none named (RAY_ADDRESS is not set): a run starts one on this machine")
    host, _, port = address.removeprefix("ray://").removeprefix("http://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=3):
            return Finding("ray cluster", f"{address} answers")
    except (OSError, ValueError) as error:
        problem = f"cannot be reached ({error}); start one with `ray start --head`, or unset RAY_ADDRESS"
        return Finding("ray cluster", address, problem)


def _storage(uri: str) -> Finding:
    try:
        open_storage(uri).check_writable()
    except StorageError as error:
        return Finding("storage", uri, str(error))
    return Finding("storage", f"{uri} can be written")


def as_rows(findings: list[Finding]) -> list[dict[str, Any]]:
    """Findings as plain data."""
    return [{"about": entry.about, "found": entry.found, "problem": entry.problem} for entry in findings]
