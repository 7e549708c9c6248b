"""`raysft export --push`: what would be sent, or what was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import get_token
from huggingface_hub.utils.tqdm import disable_progress_bars
from rich.console import Console

from raysft.export.folders import read_record
from raysft.export.hub import Hub, Pushed
from raysft.export.mistakes import ExportError, HubError
from raysft.export.uploads import check_organisation, prepare
from raysft.spec.size import decimal

_ORDER = ("base", "checkpoint", "adapter", "tables")  # what others name goes first


def check_push(organisation: str, send: bool) -> None:
    """ExportError for no name of an organisation, or no token to send with."""
    check_organisation(organisation)
    if send and get_token() is None:
        raise ExportError("--push: no token; set HF_TOKEN, or run `hf auth login`")


def push_and_print(
    console: Console, out: Path, names: Sequence[str], organisation: str, send: bool, public: bool
) -> bool:
    """Push exports in `out` to repositories of `organisation`, or say what that would send; whether all could be.

    Raises:
        HubError: the hub does not answer, or does not take the token.
    """
    if not console.is_terminal:
        disable_progress_bars()
    hub, whole, bytes_to_send = Hub(), True, 0
    for name in sorted(names, key=lambda name: _ORDER.index(read_record(out / name)["kind"])):
        try:
            upload = prepare(out, name, organisation)
            pushed = hub.push(upload, private=not public) if send else hub.compare(upload)
        except HubError:
            raise
        except ExportError as error:
            console.print(f"{organisation}/{name}: not pushed: {error}")
            whole = False
            continue
        bytes_to_send += pushed.bytes
        console.print(_line(pushed, send))
    if send:
        console.print(f"Pushed {decimal(bytes_to_send)} to {hub.api.endpoint}")
    else:
        kind = "public" if public else "private"
        console.print(
            f"Nothing was sent: --yes sends {decimal(bytes_to_send)} to {hub.api.endpoint}; new repositories are {kind}"
        )
    return whole


def _line(pushed: Pushed, sent: bool) -> str:
    words = [f"{pushed.repository}: {'new' if pushed.state == 'new' else 'exists'}"]
    if pushed.send or pushed.delete:
        count = f"{len(pushed.send)} of {pushed.files} files, {decimal(pushed.bytes)}"
        words.append(f"{'sent' if sent else 'would send'} {count}")
        words += [f"{'deleted' if sent else 'would delete'} {len(pushed.delete)}"] if pushed.delete else []
    else:
        words.append(f"complete, all {pushed.files} files are there")
    words += ["its card was edited there and stays"] if pushed.card_kept else []
    return ", ".join(words)
