"""Reading committed results in order, several at a time, out of packs where they are packed."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from raysft.spec.plan import Work
from raysft.store.layout import DamagedError, Storage
from raysft.store.packs import Packs, stamps
from raysft.store.results import NewerSchemaError, read_result, result_path

_BATCH = 16  # results of one task of a thread
_REMOTE_READERS = 32  # threads: reading an object is waiting
_LOCAL_READERS = 4


@dataclass(frozen=True)
class Wanted:
    """A committed result, and the columns of it that come into tables: none where only its metadata does."""

    work: Work
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """The columns of a result that are wanted, and what its metadata says of how it was made."""

    work: Work
    columns: tuple[str, ...]
    table: pa.Table
    facts: dict[str, Any]


@dataclass(frozen=True)
class Unread:
    """A result that is left out: its path and a line that says why."""

    path: str
    line: str
    newer: bool = False
