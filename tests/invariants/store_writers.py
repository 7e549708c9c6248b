"""A process that dies while it publishes a checkpoint: `python -m tests.invariants.store_writers URI FOLDER`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from raysft.store.checkpoints import write_folder
from raysft.store.layout import open_storage


def save(folder: Path) -> None:
    """Three files; on a local storage the writer stops after the second, and waits for its end."""
    for name in ("a.bin", "b.bin"):
        (folder / name).write_bytes(b"of the dead" * 1000)
    if "://" not in sys.argv[1]:
        (Path(sys.argv[1]) / "in the middle").touch()
        time.sleep(60)
    (folder / "c.bin").write_bytes(b"of the dead" * 1000)


if __name__ == "__main__":
    write_folder(open_storage(sys.argv[1]), sys.argv[2], save, {})
