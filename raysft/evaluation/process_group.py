"""Ending a process and all that it started, for certain: what it held, such as a GPU's memory, is free afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

import psutil

_END_S = 60.0  # from SIGKILL to the end of a process and of those that it started
_LOOK_S = 0.02  # how often it is looked at whether they have ended


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads its group, and return when nothing of the group runs any more.

    Its children are not this process's to wait for, and may hold memory for a while after it is gone. TimeoutError if
    one of the group is still there after a minute.
    """
    # A leader that ended by itself may have been waited for, when that was seen a moment ago. Its number is the group's
    # as long as any of it is left, and is not given out again before all the numbers after it.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    deadline = time.monotonic() + _END_S
    while process.poll() is None or _runs(process.pid):
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {process.pid}, or one that it started, goes on after SIGKILL")
        time.sleep(_LOOK_S)


def _runs(group: int) -> bool:
    """Whether a process of the group runs; one that nobody waits for stays as a zombie, and holds nothing."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return any(_is_running_in(group, process) for process in psutil.process_iter())


def _is_running_in(group: int, process: psutil.Process) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
