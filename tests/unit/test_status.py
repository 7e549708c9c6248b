"""`raysft status`: from a sweep, a storage or a job server; once or live; with the cluster gone."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from ray.dashboard.modules.job.pydantic_models import JobType
from ray.job_submission import JobDetails
from rich.console import Console
from typer.testing import CliRunner, Result

from raysft.cli import app
from raysft.cluster.submit import Submission
from raysft.console.jobs import job_facts, job_lines, job_notes, look_at_storages
from raysft.console.status import Observer
from raysft.console.watch import frame, watch
from raysft.spec.digests import keep_digests
from raysft.spec.plan import make_plan, with_storage
from raysft.spec.sweep import Sweep, load_sweep, resolved_yaml
from raysft.store.layout import SPEC_FILE, Storage, StorageError, open_storage
from raysft.store.lease import LEASE_FILE, Driver
from raysft.store.results import Cost, record_failure, result_path
from tests.unit.planted import plant

pytestmark = pytest.mark.unit

Content = dict[str, Any]
Write = Callable[[Content], Path]


def _call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def sweep(content: Content, write_sweep: Write) -> Sweep:
    """A sweep whose storage holds its spec, as after a run's start."""
    content["models"] = [{"name": "base", "hub": "x/base"}]
    loaded = load_sweep(write_sweep(content))
    open_storage(loaded.storage).write_bytes(resolved_yaml(loaded).encode(), SPEC_FILE)
    return loaded


@pytest.fixture
def storage(sweep: Sweep) -> Storage:
    return open_storage(sweep.storage)


def _plant_stage(sweep: Sweep, stage: str, count: int | None = None) -> None:
    works = [work for work in make_plan(sweep).works() if work.stage == stage]
    plant(open_storage(sweep.storage), works[:count], lambda _: Cost(30.0))


def _text(shown: Any, width: int = 160) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(shown)
    file = console.file
    assert isinstance(file, StringIO)
    return file.getvalue()


def test_a_storage_says_the_same_as_its_sweep(sweep: Sweep, tmp_path: Path) -> None:
    _plant_stage(sweep, "train", 3)
    by_storage = json.loads(_call("status", sweep.storage, "--json").stdout)
    by_sweep = json.loads(_call("status", tmp_path / "sweep.yaml", "--json").stdout)
    assert by_storage == by_sweep
    assert by_storage["stages"]["train"] == {"done": 3, "planned": 4}


def test_a_storage_that_was_moved_is_read_where_it_is_now(sweep: Sweep, tmp_path: Path) -> None:
    _plant_stage(sweep, "train")
    moved = tmp_path / "elsewhere"
    shutil.move(sweep.storage, moved)
    facts = json.loads(_call("status", moved, "--json").stdout)
    assert facts["storage"] == str(moved)
    assert facts["stages"]["train"] == {"done": 4, "planned": 4}


def test_a_storage_can_be_followed_without_the_files_of_its_sweep(
    content: Content, write_sweep: Write, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    tasks, model = here / "tasks", here / "model"
    for folder in (tasks, model):
        folder.mkdir(parents=True)
    (here / "rows.jsonl").write_text('{"instruction": "q", "response": "a"}\n')
    (here / "chat.jinja").write_text("{{ messages }}")
    (tasks / "own.yaml").write_text("task: own\ndataset_path: json\n")
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    content["models"] = [{"name": "own", "path": str(model)}]
    content["datasets"] = [{"name": "own", "path": str(here / "rows.jsonl")}]
    content["grid"][0]["sizes"] = ["all"]
    content["training"] |= {"template": "chat", "chat_template": str(here / "chat.jinja")}
    content["evaluation"] = {"tasks": ["own"], "include": [str(tasks)]}
    sweep = load_sweep(write_sweep(content))
    storage = open_storage(sweep.storage)
    plant(storage, make_plan(sweep).works())
    storage.write_bytes(resolved_yaml(sweep).encode(), SPEC_FILE)
    keep_digests(storage)
    shutil.rmtree(here)
    assert "no f" in _call("status", tmp_path / "sweep.yaml").stderr  # no file, no folder
    facts = json.loads(_call("status", sweep.storage, "--json").stdout)
    assert all(stage["done"] == stage["planned"] for stage in facts["stages"].values())
    shutil.move(sweep.storage, here)
    assert _call("plan", tmp_path / "sweep.yaml").exit_code == 2  # digests of a storage are for looking at it only


def test_actual_and_estimated_costs_stand_side_by_side(sweep: Sweep) -> None:
    _plant_stage(sweep, "train", 2)
    groups = {
        entry["group"]: entry for entry in json.loads(_call("status", sweep.storage, "--json").stdout)["cost"]["groups"]
    }
    assert groups["train"]["done_s"] == 60.0
    assert groups["train"]["results"] == {"done": 2, "read": 2, "left": 2, "unknown": 0}
    shown = _call("status", sweep.storage).stdout
    assert "60 core-s" in shown
    assert "modelled" in shown
    assert "models.base.shape" in shown


def test_failures_are_listed_with_their_cause_the_latest_first(sweep: Sweep, storage: Storage) -> None:
    first, second, third, *_ = [work for work in make_plan(sweep).works() if work.stage == "train"]
    for work, message, at in ((first, "old cause", "2024-01-01"), (second, "new cause", "2024-02-02")):
        record = record_failure(storage, work.stage, work.key, ValueError(message), work.subject.as_row())
        path = ("failures", work.stage, work.key, f"{record['attempt']}.json")
        storage.write_bytes(json.dumps({**record, "at": at}).encode(), *path)
    record_failure(storage, third.stage, third.key, ValueError("mended since"), third.subject.as_row())
    plant(storage, [third])
    facts = json.loads(_call("status", sweep.storage, "--json").stdout)
    assert [failure["message"] for failure in facts["failures"]] == ["new cause", "old cause"]
    shown = _call("status", sweep.storage).stdout
    assert shown.index("new cause") < shown.index("old cause")
    assert "mended since" not in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("{empty}",), "no sweep.yaml there, so no sweep was run with this storage"),
        (("{storage}", "--storage", "other"), "--storage belongs to a sweep's YAML"),
        (("http://127.0.0.1:1",), "http://127.0.0.1:1"),
        (("http://127.0.0.1:1", "--watch"), "--watch belongs to one sweep"),
        (("nowhere.yaml",), "nowhere.yaml: no such file"),
        (("gs2://bucket/sweep",), "gs2://bucket/sweep"),
    ],
)
def test_a_wrong_target_is_one_line(sweep: Sweep, tmp_path: Path, words: tuple[str, ...], expected: str) -> None:
    (tmp_path / "empty").mkdir()
    ended = _call("status", *(word.format(empty=tmp_path / "empty", storage=sweep.storage) for word in words))
    assert ended.exit_code == 2
    assert len(ended.stderr.strip().splitlines()) == 1
    assert expected in ended.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [("- a list", "expected a mapping of fields, found list"), ("a: [", "not YAML"), ("name: half", "storage")],
)
def test_a_spec_that_is_none_is_one_line(sweep: Sweep, storage: Storage, text: str, expected: str) -> None:
    storage.write_bytes(text.encode(), SPEC_FILE)
    ended = _call("status", sweep.storage)
    assert ended.exit_code == 2
    assert len(ended.stderr.strip().splitlines()) == 1
    assert expected in ended.stderr


def test_a_watch_follows_what_is_committed_and_ends_with_it(sweep: Sweep, storage: Storage) -> None:
    works = list(make_plan(sweep).works())
    console, slept = Console(file=StringIO(), width=160), []

    def sleep(seconds: float) -> None:
        assert len(slept) < 10
        plant(storage, works[len(slept) :: 3], lambda _: Cost(2.0))
        slept.append(seconds)

    watch(Observer(sweep), console, 0.5, sleep)
    assert slept == [0.5] * 3
    assert isinstance(console.file, StringIO)
    assert re.search(r"│ train +│ ━+ │ +4 │ +4 │ +│ +0 │", console.file.getvalue())


def test_a_watch_ends_with_ctrl_c_as_if_it_were_over(sweep: Sweep) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    console = Console(file=StringIO(), width=160)
    watch(Observer(sweep), console, 0.5, interrupted)
    assert isinstance(console.file, StringIO)
    assert "weight_change" in console.file.getvalue()


def test_a_watch_outlives_a_storage_that_is_away_for_a_while(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    observer, looks = Observer(sweep), []
    look = observer.look

    def sometimes() -> Any:
        looks.append(1)
        if len(looks) == 2:
            raise StorageError("storage away: cannot read results")
        return look()

    def sleep(_: float) -> None:
        if len(looks) == 3:
            plant(observer.storage, make_plan(sweep).works())

    monkeypatch.setattr(observer, "look", sometimes)
    watch(observer, Console(file=StringIO(), width=160), 0.1, sleep)
    assert len(looks) == 4
    assert "storage away: cannot read results" in _text(frame(look(), "storage away: cannot read results"))


def test_a_sweep_is_over_when_all_that_is_left_failed(sweep: Sweep, storage: Storage) -> None:
    works = list(make_plan(sweep).works())
    plant(storage, works[1:])
    assert not Observer(sweep).look().is_over
    record_failure(storage, works[0].stage, works[0].key, ValueError("poison"), works[0].subject.as_row())
    progress = Observer(sweep).look()
    assert progress.is_over
    assert "poison" in _text(frame(progress))


def _driver(storage: Storage, started: datetime, seen: datetime) -> None:
    driver = Driver("id", "small", "digest", "a-host", 4711, started.isoformat(), seen.isoformat())
    storage.write_bytes(json.dumps(asdict(driver)).encode(), LEASE_FILE)


def test_a_live_driver_is_named_with_the_end_that_its_pace_comes_to(sweep: Sweep, storage: Storage) -> None:
    now = datetime.now(timezone.utc)
    works = [work for work in make_plan(sweep).works() if work.stage == "train"]
    plant(storage, works[:1], lambda _: Cost(300.0))
    _driver(storage, now - timedelta(seconds=600), now)
    progress = Observer(sweep).look()
    assert progress.is_driven
    left = progress.estimate.left_s["core"]
    done = 300.0  # core seconds within the 600 s of this driver: half a core was busy
    assert progress.ends_at is not None
    assert (progress.ends_at - now).total_seconds() == pytest.approx(left * 600 / done, rel=0.1)
    shown = _text(frame(progress))
    assert "Running: process 4711 on a-host" in shown
    assert "Estimated end: " in shown


def test_what_came_before_the_last_hour_or_driver_tells_no_pace(sweep: Sweep, storage: Storage) -> None:
    now = datetime.now(timezone.utc)
    works = [work for work in make_plan(sweep).works() if work.stage == "train"]
    plant(storage, works[:1], lambda _: Cost(300.0))
    before = now.timestamp() - 7200
    os.utime(storage.path(result_path("train", works[0].key)), (before, before))
    for started in (now - timedelta(hours=5), now - timedelta(hours=1)):
        _driver(storage, started, now)
        progress = Observer(sweep).look()
        assert progress.is_driven
        assert progress.ends_at is None


def test_a_driver_that_was_not_seen_for_long_is_dead(sweep: Sweep, storage: Storage) -> None:
    now = datetime.now(timezone.utc)
    _driver(storage, now - timedelta(hours=5), now - timedelta(hours=4))
    facts = json.loads(_call("status", sweep.storage, "--json").stdout)
    assert (facts["driver"]["live"], facts["driver"]["pid"], facts["estimated_end"]) == (False, 4711, None)
    assert "Not running: its driver, process 4711 on a-host" in _call("status", sweep.storage).stdout


def test_a_watch_goes_on_while_a_driver_may_mend_what_failed(sweep: Sweep, storage: Storage) -> None:
    works = list(make_plan(sweep).works())
    plant(storage, works[1:])
    record_failure(storage, works[0].stage, works[0].key, ValueError("poison"), works[0].subject.as_row())
    now = datetime.now(timezone.utc)
    _driver(storage, now, now)
    assert not Observer(sweep).look().is_over
    _driver(storage, now, now - timedelta(hours=1))
    assert Observer(sweep).look().is_over


def test_a_frame_says_how_many_more_failed(sweep: Sweep, storage: Storage) -> None:
    for index, work in enumerate(list(make_plan(sweep).works())[:8]):
        record_failure(storage, work.stage, work.key, ValueError(f"cause {index}"), work.subject.as_row())
    shown = _text(frame(Observer(sweep).look()))
    assert shown.count("cause ") == 5
    assert "and 3 more" in shown


def test_what_was_found_sound_is_not_opened_again(sweep: Sweep, storage: Storage) -> None:
    works = [work for work in make_plan(sweep).works() if work.stage == "train"]
    plant(storage, works[:2])
    plan = make_plan(sweep, storage)
    file = Path(storage.path(result_path("train", works[0].key)))
    file.write_bytes(b"PAR1 cut")
    plant(storage, works[2:])
    again = with_storage(plan, storage)
    assert again.count_by_stage()["train"] == (4, 4)
    assert make_plan(sweep, storage).count_by_stage()["train"] == (3, 4)


def test_the_jobs_of_a_server_with_how_far_their_sweeps_are(sweep: Sweep, tmp_path: Path) -> None:
    _plant_stage(sweep, "train")
    started = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)
    gone = str(tmp_path / "gone")
    submissions = [
        Submission("small-1a2b3c4d-2", "RUNNING", None, "small", sweep.storage, started, None),
        Submission("small-1a2b3c4d-1", "FAILED", 1, "small", sweep.storage, started, started),
        Submission("other-5e6f7081-1", "SUCCEEDED", 0, "other", gone, started, started),
    ]
    looks = look_at_storages(submissions)
    planned = sum(1 for _ in make_plan(sweep).works())
    facts = job_facts(submissions, looks)
    assert [entry["progress"] for entry in facts[:2]] == [{"done": 4, "planned": planned, "failed": 0}] * 2
    assert "no sweep.yaml there" in facts[2]["progress"]["unknown"]
    assert (facts[0]["started"], facts[0]["ended"]) == ("2026-01-02T03:04:00+00:00", None)
    assert json.dumps(facts)
    shown = list(job_lines(submissions, looks))
    assert shown[1] == f"  sweep small: 4 of {planned} results"
    assert shown[6].startswith("other-5e6f7081-1  succeeded, started 2026-01-02 ")
    assert shown[7:] == ["  sweep other: results unknown", f"  {gone}"]
    assert len(job_notes(looks)) == 1


STORAGE = f"/no/such/storage/{'of-a-very-long-name/' * 6}of-a-sweep"


class _Jobs:
    """A job server's client that remembers two submissions of this package and a job of somebody else's."""

    def __init__(self, address: str) -> None:
        self.address = address

    def list_jobs(self) -> list[JobDetails]:
        metadata = {"sweep": "small", "storage": STORAGE, "sweep_digest": "0123"}
        common = {"type": JobType.SUBMISSION, "entrypoint": "python"}
        return [
            JobDetails(submission_id="small-1-1", status="SUCCEEDED", start_time=1000, metadata=metadata, **common),
            JobDetails(submission_id="theirs", status="RUNNING", start_time=2000, **common),
            JobDetails(submission_id="small-1-2", status="PENDING", metadata=metadata, **common),
        ]


def test_of_a_job_server_only_sweeps_are_shown_the_latest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysft.cluster.submit.check_job_server", lambda _: None)
    monkeypatch.setattr("raysft.cluster.submit.JobSubmissionClient", _Jobs)
    facts = json.loads(_call("status", "http://127.0.0.1:8265", "--json").stdout)
    assert [entry["submission"] for entry in facts] == ["small-1-2", "small-1-1"]
    assert [entry["started"] for entry in facts] == [None, "1970-01-01T00:00:01+00:00"]
    shown = _call("status", "http://127.0.0.1:8265").stdout
    assert shown.count("Progress cannot be read from here") == 1
    lines = shown.splitlines()  # of 80 columns, where nothing says how wide a terminal is
    assert lines[0] == "small-1-2  pending"
    assert lines[3].startswith("small-1-1  succeeded, started 1970-01-01 ")
    assert lines.count(f"  {STORAGE}") == 2
