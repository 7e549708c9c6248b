"""What is told from the errors that Ray reports, and who is tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from raysft.cluster import retries as retries_module
from raysft.cluster.deaths import NodeLostError, ProcessDiedError, StorageLostError, death_of, own_error
from raysft.cluster.retries import Retries
from raysft.spec.plan import Unit, make_plan
from raysft.spec.sweep import parse_sweep
from raysft.store.layout import Storage, StorageAccessError, StorageError, open_storage
from raysft.store.results import read_failures
from raysft.trial import InterruptedTrainingError

pytestmark = pytest.mark.unit

GONE = RayActorError(preempted=True)
RESET = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")
BAD_ROW = ValueError("row 7 of the data has no text")


def _raised(error: BaseException) -> UserExceptionWithTraceback:
    """As Train hands on what a rank raised."""
    return UserExceptionWithTraceback(error, "Traceback of another process")


def _in_trial(error: Exception) -> RayTaskError:
    """As Tune reports what its trainable raised."""
    return RayTaskError("step", "Traceback of another process", error).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (None, ProcessDiedError, "see the logs of the Ray session"),
        (ActorDiedError(), ProcessDiedError, "died unexpectedly"),
        (GONE, NodeLostError, "error before finishing"),
        (_in_trial(InterruptedTrainingError("its node goes")), NodeLostError, "its node goes"),
        (_in_trial(StorageAccessError("storage x: refused")), StorageLostError, "storage x: refused"),
        (_in_trial(MemoryError("no room")), ProcessDiedError, "no room"),
        (_in_trial(WorkerGroupError("", {0: _raised(RESET), 1: GONE})), NodeLostError, "error before finishing"),
        (_in_trial(WorkerGroupError("", {0: _raised(RESET)})), ProcessDiedError, "Connection reset"),
    ],
)
def test_a_death_has_its_cause(error: BaseException | None, kind: type[Exception], words: str) -> None:
    death = death_of(error)
    assert type(death) is kind
    assert words in str(death)
    assert "Traceback" not in str(death)


@pytest.mark.parametrize(
    ("failures", "own"),
    [
        ({0: _raised(RESET), 1: _raised(BAD_ROW)}, BAD_ROW),
        ({0: _raised(BAD_ROW), 1: WorkerHealthCheckFailedError("gone", GONE)}, None),
        ({0: _raised(RESET)}, None),
        ({0: _raised(RESET), 1: _raised(StorageAccessError("refused"))}, None),
    ],
)
def test_of_a_group_the_error_counts_that_began_it(failures: dict[int, Exception], own: Exception | None) -> None:
    error = WorkerGroupError("", failures)
    assert own_error(error) is own
    assert own_error(error) is own  # asking changes nothing


@pytest.fixture
def units(content: dict[str, Any]) -> list[Unit]:
    return list(make_plan(parse_sweep(content, "test")).units)


def _retries(storage: Storage, units: list[Unit]) -> Retries:
    return Retries(storage, {unit.key: list(unit.works) for unit in units}, max_retries=2)


def test_lost_nodes_do_not_use_up_the_retries(units: list[Unit], tmp_path: Path) -> None:
    storage, unit = open_storage(str(tmp_path)), units[0]
    retries = _retries(storage, units)
    again = [retries.judge(unit, error).again for error in (GONE, None, GONE, None, GONE, None)]
    assert again == [True, True, True, True, True, False]
    assert retries.judge(units[1], None).again  # of another unit, which has its own
    errors = [record["error"] for record in read_failures(storage, unit.works[0].stage, unit.works[0].key)]
    assert errors == ["NodeLostError", "ProcessDiedError"] * 3


def test_one_that_takes_all_its_nodes_down_is_given_up(units: list[Unit], tmp_path: Path) -> None:
    retries = _retries(open_storage(str(tmp_path)), units)
    assert [retries.judge(units[0], GONE).again for _ in range(21)] == [True] * 20 + [False]


def test_nothing_starts_while_the_storage_is_away_and_then_all_is_recorded(
    units: list[Unit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries_module, "_LOOK_EVERY_S", 0.0)
    root, unit = tmp_path / "storage", units[0]
    storage = open_storage(str(root))
    retries = _retries(storage, units)
    root.write_text("not a folder")
    refused = _in_trial(StorageAccessError("refused"))
    assert [retries.judge(unit, refused).again for _ in range(5)] == [True] * 5
    assert not retries.is_storage_there()
    root.unlink()
    assert retries.is_storage_there()
    assert len(read_failures(storage, unit.works[0].stage, unit.works[0].key)) == 5
    # What the storage takes from others, and not from this trial, is the trial's own.
    assert [retries.judge(unit, refused).again for _ in range(3)] == [True, True, False]


def test_a_storage_that_stays_away_ends_the_run(
    units: list[Unit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries_module, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(retries_module, "_PATIENCE_S", 0.0)
    root = tmp_path / "storage"
    retries = _retries(open_storage(str(root)), units)
    root.write_text("not a folder")
    assert retries.judge(units[0], _in_trial(StorageAccessError("refused"))).again
    with pytest.raises(StorageError, match="cannot write there"):
        retries.is_storage_there()
