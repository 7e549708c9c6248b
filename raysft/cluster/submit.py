"""A sweep as a Ray job: one live submission for each sweep, under a name that says which it is, followed to its end.

Protocol. A submission is named `<sweep>-<digest of the storage>-<attempt>`. The job server takes a name once, so of two
that submit at the same time one is refused; and no new attempt is made while an earlier one lives. Submitting again
after the end of one resumes: the job plans anew from the storage.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import raysft
from raysft.cluster.address import check_job_server
from raysft.spec.keys import text_digest
from raysft.spec.sweep import SpecError, Sweep, resolved_yaml
from raysft.store.results import package_versions

# Not sent with the working directory, beside what its .gitignore names.
_EXCLUDED = [".git", ".venv", "**/__pycache__", "results"]

_LOOK_EVERY_S = 1.0
_NOT_YET = datetime.max.replace(tzinfo=timezone.utc)  # of a job that waits: the latest of all


@dataclass(frozen=True)
class Submission:
    """One attempt at a sweep. `sweep` and `storage` are those it was submitted with; times are of the job, in UTC."""

    name: str
    status: str
    exit_code: int | None
    sweep: str = ""
    storage: str = ""
    started: datetime | None = None
    ended: datetime | None = None

    @property
    def is_live(self) -> bool:
        return not JobStatus(self.status).is_terminal()


class JobServer:
    """The job server of a cluster, as `http://HEAD:8265`. SpecError if it cannot be reached."""

    def __init__(self, address: str) -> None:
        self.address = address
        check_job_server(address)
        try:
            self._client = JobSubmissionClient(address)
        except (KeyError, OSError, RuntimeError, ValueError) as error:  # also what a server of another kind leads to
            raise SpecError(f"no job server at {address} ({' '.join(str(error).split())})") from error

    def submissions(self, sweep: Sweep) -> list[Submission]:
        """All attempts at a sweep that the cluster remembers, the latest last."""
        prefix = submission_prefix(sweep)
        found = [job for job in self._client.list_jobs() if (job.submission_id or "").startswith(prefix)]
        return [_submission(job) for job in sorted(found, key=lambda job: _attempt(job.submission_id))]

    def all_submissions(self) -> list[Submission]:
        """Every attempt at any sweep that the cluster remembers, the latest first."""
        found = [_submission(job) for job in self._client.list_jobs() if "sweep_digest" in (job.metadata or {})]
        return sorted(found, key=lambda one: one.started or _NOT_YET, reverse=True)

    def live(self, sweep: Sweep) -> Submission | None:
        """The attempt that runs or is about to."""
        return next((one for one in self.submissions(sweep) if one.is_live), None)

    def submit(self, sweep: Sweep, file: Path, working_dir: Path, *options: str) -> str:
        """Send this package and the folder `working_dir`, in which `file` is, and run it; the submission's name.

        `options` are those of `raysft run`. SpecError if a submission of the sweep lives, or the file is not in there.
        """
        live = self.live(sweep)
        if live is not None:
            raise SpecError(
                f"{sweep.name} runs already as {live.name} at {self.address}; follow it there, or `raysft cancel` it"
            )
        if not file.resolve().is_relative_to(working_dir.resolve()):
            raise SpecError(f"--working-dir: {file} is not in {working_dir}, and only what is in it is sent")
        before = self.submissions(sweep)
        name = f"{submission_prefix(sweep)}{_attempt(before[-1].name) + 1 if before else 1}"
        inside = str(file.resolve().relative_to(working_dir.resolve()))
        words = ["python", "-u", "-c", "from raysft.cli import job; job('run')", inside, *options]
        try:
            return str(
                self._client.submit_job(
                    entrypoint=shlex.join(words),
                    submission_id=name,
                    runtime_env={
                        "working_dir": str(working_dir),
                        "py_modules": [str(Path(raysft.__file__).parent)],
                        "excludes": _EXCLUDED,
                    },
                    metadata=_metadata(sweep),
                )
            )
        except (RuntimeError, ValueError) as error:
            raise SpecError(f"{name} could not be submitted ({' '.join(str(error).split())})") from error

    def follow(self, name: str, say: Callable[[str], Any]) -> int:
        """Hand the log on until the job ends; its exit code, or 1 if it has none."""

        async def tail() -> None:
            async for text in self._client.tail_job_logs(name):
                say(text)

        try:
            asyncio.run(tail())
        except RuntimeError as error:  # the connection, not the job
            say(f"the log cannot be followed any longer ({error}); waiting for the end of {name}\n")
        while not (info := self._client.get_job_info(name)).status.is_terminal():
            time.sleep(_LOOK_EVERY_S)
        if info.status == JobStatus.SUCCEEDED:
            return 0
        return info.driver_exit_code or 1

    def cancel(self, sweep: Sweep) -> str:
        """Stop the live submission and wait for its end; its name. SpecError if none lives."""
        live = self.live(sweep)
        if live is None:
            raise SpecError(f"no submission of {sweep.name} lives at {self.address}")
        self._client.stop_job(live.name)
        while not self._client.get_job_status(live.name).is_terminal():
            time.sleep(_LOOK_EVERY_S)
        return live.name


def submission_prefix(sweep: Sweep) -> str:
    """What the names of all submissions of a sweep begin with: its name, and a digest of its storage."""
    return f"{sweep.name}-{text_digest(sweep.storage)[:8]}-"


def _attempt(name: str | None) -> int:
    last = (name or "").rpartition("-")[2]
    return int(last) if last.isdigit() else 0


def _submission(job: JobDetails) -> Submission:
    metadata = job.metadata or {}
    return Submission(
        name=job.submission_id or "",
        status=job.status.value,
        exit_code=job.driver_exit_code,
        sweep=metadata.get("sweep", ""),
        storage=metadata.get("storage", ""),
        started=_time(job.start_time),
        ended=_time(job.end_time),
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, timezone.utc) if milliseconds else None


def _metadata(sweep: Sweep) -> dict[str, str]:
    """What the dashboard shows of the job."""
    versions = package_versions()
    return {
        "sweep": sweep.name,
        "storage": sweep.storage,
        "sweep_digest": text_digest(resolved_yaml(sweep)),
        "raysft": versions["raysft"],
    }
