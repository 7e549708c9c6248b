"""`kill -9` of a training, inside an epoch and on its boundary, then the same trial in a new process, to its end.

Whatever the kill left behind, the end is that of an undisturbed run to the last bit, and nothing is committed twice.
So it is when the process was not dead but stood still, and comes back when another has done its work: a zombie.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.chaos.killable import (
    assert_same_outcome,
    child,
    finish,
    kill_at,
    measured_epochs,
    stamps_of,
    storage_of,
    unit_of,
    wait_until_still,
    write_sweep,
)

pytestmark = pytest.mark.chaos

# Three epochs of four steps: 6 is inside the second, 4 and 8 are boundaries.
# For each method the kills in turn: when, with how many steps done, the step of the newest state, the measured epochs.
KILLS = {
    "full": [("stepped", 6, 5, [1]), ("kept", 8, 8, [1, 2])],
    "lora": [("writing", 6, 5, [1]), ("stepped", 8, 7, [1, 2])],
}


@pytest.mark.parametrize("method", KILLS)
def test_a_killed_training_ends_as_if_undisturbed(method: str, tmp_path: Path) -> None:
    straight, killed = (write_sweep(tmp_path / name, method) for name in ("straight", "killed"))
    assert finish(straight) == 0
    for part in ("models", "results/pretrain"):
        shutil.copytree(straight.parent / "storage" / part, killed.parent / "storage" / part)

    began, stamps = 0, stamps_of(killed)
    for moment, steps, kept, measured in KILLS[method]:
        assert kill_at(killed, moment, steps) == began
        assert storage_of(killed).names("checkpoints", unit_of(killed).key)[-1] == f"resume-{kept:08d}-0of1"
        assert measured_epochs(killed) == measured
        assert stamps.items() <= stamps_of(killed).items(), "something finished was written again"
        began, stamps = kept, stamps_of(killed)

    assert finish(killed) == began
    assert stamps.items() <= stamps_of(killed).items(), "something finished was written again"
    assert_same_outcome(killed, straight)
    assert storage_of(killed).names("checkpoints", unit_of(killed).key) == ["epoch-0001", "epoch-0002", "epoch-0003"]


def test_what_a_zombie_writes_changes_nothing(tmp_path: Path) -> None:
    """It stood still in the second epoch; another process did the trial meanwhile, from the zombie's own last state."""
    sweep = write_sweep(tmp_path / "straight", "full")
    with child(sweep, "stepped", "6") as zombie:
        wait_until_still(zombie, "stepped", 6)
        finish(sweep)
        done = stamps_of(sweep)
        content = {path: Path(path).read_bytes() for path in done}
        said, _ = zombie.communicate("go on\n")
    assert zombie.returncode == 0, said[-4000:]
    assert stamps_of(sweep) == done
    assert {path: Path(path).read_bytes() for path in done} == content
    assert storage_of(sweep).names("failures") == []
