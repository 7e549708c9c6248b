"""Pushing exports to the hub, through `huggingface_hub`: endpoint and token are its own (`HF_ENDPOINT`, `HF_TOKEN`).

Protocol. A repository is looked at first: one that exists and whose `raysft.json` does not name the same subject is
refused. What it holds with the same content is not sent. The rest goes up in one commit on top of the one that was
seen; large files go before it, and one that is there already, of a push that was cut off, is not sent again. An attempt
that the network or the service broke is made anew from the look on, a few times. A card that was edited on the hub
stays.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is httpx's, or its successor's
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from raysft.export.folders import CARD, RECORD
from raysft.export.mistakes import ExportError, HubError
from raysft.export.uploads import Upload, git_blob
from raysft.spec.mistakes import shown
from raysft.store.layout import one_line

ATTEMPTS = 4  # of a repository; within each, huggingface_hub repeats single requests
_PAUSE_S = 2.0  # before the second attempt, then twice as long each time
_LONGEST_PAUSE_S = 60.0
_PASSING = frozenset({408, 409, 412, 429, 500, 502, 503, 504})  # 412: somebody else committed meanwhile

_NETWORK = (HTTPError, ConnectionError, TimeoutError)

T = TypeVar("T")


@dataclass(frozen=True)
class Remote:
    """A repository as it was seen: `sha` of its last commit, and its files; no `record` where nothing was committed."""

    exists: bool = False
    sha: str | None = None
    files: Mapping[str, RepoFile] | None = None
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Pushed:
    """What a push did to a repository, or would do: names of the files to send and delete, and bytes to send.

    `card_kept`: its card was edited on the hub, and stays.
    """

    repository: str
    state: Literal["new", "there"]
    send: tuple[str, ...]
    delete: tuple[str, ...]
    bytes: int
    files: int
    card_kept: bool = False


class Hub:
    """The hub, as the environment names it; `endpoint` in place of that."""

    def __init__(self, endpoint: str | None = None) -> None:
        self.api = HfApi(endpoint=endpoint, library_name="raysft")

    def compare(self, upload: Upload) -> Pushed:
        """What a push would do. ExportError where it would be refused, or the hub does not answer."""
        return self._patiently(upload.repository, lambda: self._compared(upload)[0])

    def push(self, upload: Upload, private: bool = True) -> Pushed:
        """Send what is missing; a new repository is made `private` or not. ExportError where that cannot be done."""
        return self._patiently(upload.repository, lambda: self._push(upload, private))

    def _compared(self, upload: Upload) -> tuple[Pushed, Upload, Remote]:
        remote = self._look(upload)
        there = remote.files or {}
        kept = _card_is_edited(remote)
        if kept and remote.record is not None:
            upload = upload.with_card_of(remote.record)
        send = tuple(name for name in upload.files if not _is_same(upload, name, there.get(name)))
        earlier = (remote.record or {}).get("files", {})
        wanted = {*upload.files, CARD}
        delete = tuple(name for name in earlier if name in there and name not in wanted)
        size = sum(upload.entry(name)["bytes"] for name in send)
        state: Literal["new", "there"] = "there" if remote.exists else "new"
        return Pushed(upload.repository, state, send, delete, size, len(upload.files), kept), upload, remote

    def _push(self, upload: Upload, private: bool) -> Pushed:
        pushed, upload, remote = self._compared(upload)
        where: dict[str, Any] = {"repo_id": upload.repository, "repo_type": upload.repo_type}
        if not remote.exists:
            self.api.create_repo(**where, private=private)
        if pushed.send or pushed.delete:
            operations: list[CommitOperationAdd | CommitOperationDelete] = [
                *(CommitOperationAdd(name, _content(upload.files[name])) for name in pushed.send),
                *(CommitOperationDelete(name) for name in pushed.delete),
            ]
            message = f"{upload.record['made_by']}: {len(pushed.send)} files"
            self.api.create_commit(**where, operations=operations, commit_message=message, parent_commit=remote.sha)
        return pushed

    def _look(self, upload: Upload) -> Remote:
        where: dict[str, Any] = {"repo_id": upload.repository, "repo_type": upload.repo_type}
        try:
            sha = self.api.repo_info(**where).sha
            found = self.api.list_repo_tree(**where, recursive=True, revision=sha)
            files = {file.path: file for file in found if isinstance(file, RepoFile)}
        except RepositoryNotFoundError:
            return Remote()
        except RevisionNotFoundError:  # made, and nothing committed to it
            return Remote(exists=True)
        record = self._record(upload, sha) if RECORD in files else None
        _check_own(upload, files, record)
        return Remote(True, sha, files, record)

    def _record(self, upload: Upload, sha: str | None) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory() as scratch:
            path = hf_hub_download(
                upload.repository,
                RECORD,
                repo_type=upload.repo_type,
                revision=sha,
                local_dir=scratch,
                endpoint=self.api.endpoint,
            )
            try:
                record = json.loads(Path(path).read_bytes())
                {name: entry["sha256"] for name, entry in record["files"].items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ExportError(f"{upload.repository}: its {RECORD} is none of raysft's; left as it is") from error
            return dict(record)

    def _patiently(self, repository: str, do: Callable[[], T]) -> T:
        pause = _PAUSE_S
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return do()
            except ExportError:
                raise
            except (HTTPError, OSError, RuntimeError, ValueError) as error:
                cause = _cause(error)
                if attempt == ATTEMPTS or not _passes(cause):
                    refused = HubError if _is_of_all(cause) else ExportError
                    raise refused(f"{repository}: {_said(cause, self.api.endpoint)}") from error
                time.sleep(min(_asked_pause(cause) or pause, _LONGEST_PAUSE_S))
                pause *= 2
        raise AssertionError("the last attempt returns or raises")


def _check_own(upload: Upload, files: Mapping[str, RepoFile], record: Mapping[str, Any] | None) -> None:
    """Refuse a repository that holds anything else."""
    if record is None:
        if others := sorted(set(files) - {".gitattributes"}):
            found = f"it holds {shown(others[0], 80)}"
            raise ExportError(f"{upload.repository}: exists and was not made by raysft ({found}); left as it is")
        return
    if (record.get("kind"), record.get("identity")) != (upload.record["kind"], upload.record["identity"]):
        found = shown(record.get("identity"), 160)
        raise ExportError(f"{upload.repository}: holds the export of something else ({found}); left as it is")


def _card_is_edited(remote: Remote) -> bool:
    """Whether the card there is not the one that was sent last."""
    if remote.record is None or remote.files is None or CARD not in remote.files:
        return False
    sent = remote.record["files"].get(CARD) or {}
    there = remote.files[CARD]
    return sent.get("sha256") != there.lfs.sha256 if there.lfs else sent.get("blob") != there.blob_id


def _is_same(upload: Upload, name: str, there: RepoFile | None) -> bool:
    if there is None:
        return False
    if there.lfs is not None:
        return bool(upload.entry(name)["sha256"] == there.lfs.sha256)
    return git_blob(upload.files[name]) == there.blob_id


def _content(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def _cause(error: BaseException) -> BaseException:
    """The error of the hub or the network in a chain of causes, or the error itself."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, _NETWORK):
            return found
        found = found.__cause__ or found.__context__
    return error


def _passes(error: BaseException) -> bool:
    """Whether another attempt may fare better."""
    if isinstance(error, HfHubHTTPError):
        return _status(error) in _PASSING
    offline = type(error).__module__.startswith("huggingface_hub")  # as it was told to be
    return isinstance(error, (*_NETWORK, RuntimeError)) and not offline


def _is_of_all(error: BaseException) -> bool:
    """Whether every other repository would meet it too."""
    status = _status(error)
    if status is None:
        return isinstance(error, _NETWORK)
    return status in (401, 403, 408, 429) or status >= 500


def _status(error: BaseException) -> int | None:
    """The HTTP status of an answer; None where there was none."""
    answer = error.response if isinstance(error, HfHubHTTPError) else None
    return None if answer is None else int(answer.status_code)


def _asked_pause(error: BaseException) -> float | None:
    """Seconds that the service asks to be left alone for."""
    if not isinstance(error, HfHubHTTPError) or error.response is None:
        return None
    asked = error.response.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else None


def _said(error: BaseException, endpoint: str) -> str:
    """What went wrong, in words a user can act on."""
    status = _status(error)
    message = shown(getattr(error, "server_message", None) or one_line(error), 200)
    if status == 401:
        return f"the hub does not accept the token (401: {message}); set HF_TOKEN, or run `hf auth login`"
    if status == 403:
        return f"the token may not write there (403: {message}); it needs write access to that user or organisation"
    if status is not None:
        return f"the hub refused ({status}: {message})"
    return f"{endpoint} does not answer ({message})" if isinstance(error, _NETWORK) else f"cannot be pushed ({message})"
