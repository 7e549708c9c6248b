"""Digests of a sweep's local files, which a run leaves in its storage.

Keys are made of them: with them a storage can be compared with its sweep on a machine that has none of the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from raysft.store.layout import Storage, StorageError, one_line

DIGESTS_FILE = "digests.json"

_found: dict[str, str] = {}
_given: dict[str, str] = {}


def digest_of(name: str, compute: Callable[[], str]) -> str:
    """The digest that was given for a file, folder or task, or the one that `compute` finds here."""
    if name in _given:
        return _given[name]
    _found[name] = digest = compute()
    return digest


@contextmanager
def given(digests: Mapping[str, str]) -> Iterator[None]:
    """Inside, these digests stand for what they are of, whatever this machine holds."""
    _given.update(digests)
    try:
        yield
    finally:
        _given.clear()


def keep_digests(storage: Storage) -> None:
    """Leave all digests that this process made in a storage."""
    storage.write_bytes(json.dumps(_found, indent=1, sort_keys=True).encode(), DIGESTS_FILE)


def kept_digests(storage: Storage) -> dict[str, str]:
    """The digests of a storage's last run; none of a storage that is older than this file."""
    if not storage.exists(DIGESTS_FILE):
        return {}
    try:
        content = json.loads(storage.read_bytes(DIGESTS_FILE))
    except ValueError as error:
        raise StorageError(f"{DIGESTS_FILE}: not JSON ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise StorageError(f"{DIGESTS_FILE}: expected an object, found {type(content).__name__}")
    return {str(name): str(digest) for name, digest in content.items()}
