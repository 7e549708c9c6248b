"""A sweep that runs as a job, watched: its metrics by HTTP, and Ray's dashboard by a browser.

The frontend that ships with Ray has no page for Train runs, and its page for metrics wants a Grafana and a Prometheus,
which are not here. So the browser finds the job on its pages, and the Train runs and our metrics where the dashboard's
server and Ray's agent serve them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from raysft.spec.plan import Plan, make_plan
from raysft.spec.sweep import Sweep, parse_sweep
from raysft.store.layout import open_storage
from tests.browser import ARGUMENTS, CHROMIUM, chromium, needs_browser
from tests.cluster.watched_sweep import sweep_content
from tests.ray_head import Head, fetch, ray_head

pytestmark = pytest.mark.end_to_end

INTERVAL_MS = 2000  # of Ray's reports; gauges that are not reported vanish after two of them
ENDS_WITHIN_S = 600

Tags = frozenset[tuple[str, str]]
Values = dict[tuple[str, Tags], float]


def scrape(head: Head) -> Values:
    """Our metrics as Prometheus would read them, by name and the tags that we gave them."""
    ours = ("sweep", "state", "stage", "kind", "model", "method", "of", "error", "cause", "le")
    return {
        (sample.name, frozenset((key, value) for key, value in sample.labels.items() if key in ours)): sample.value
        for family in text_string_to_metric_families(fetch(f"{head.metrics}/metrics"))
        for sample in family.samples
        if sample.name.startswith("ray_raysft_")
    }


def value(values: Values, name: str, **tags: str) -> float | None:
    """Of one of our metrics, for the watched sweep."""
    return values.get((f"ray_raysft_{name}", frozenset({"sweep": "watched", **tags}.items())))


class Scraper(threading.Thread):
    """Reads the endpoint every half second until told to stop."""

    def __init__(self, head: Head) -> None:
        super().__init__(daemon=True)
        self.head = head
        self.samples: list[Values] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.5):
            self.samples.append(scrape(self.head))


@dataclass
class Seen:
    """What was seen of the sweep: the scrapes, the browser's pages, the API's answers, the job at its end."""

    head: Head
    sweep: Sweep
    name: str
    samples: list[Values] = field(default_factory=list)
    pages: dict[str, str] = field(default_factory=dict)
    running: list[dict[str, Any]] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0

    @property
    def plan(self) -> Plan:
        return make_plan(self.sweep, open_storage(self.sweep.storage))

    @property
    def last(self) -> Values:
        """The last value of each, as a Prometheus still has it when gauges are gone."""
        return {key: number for sample in self.samples for key, number in sample.items()}

    def rows(self, table: str) -> list[dict[str, Any]]:
        return pq.read_table(Path(self.sweep.storage) / "tables" / f"{table}.parquet").to_pylist()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """The sweep, run once as a job on a head node that is there until the last test."""
    folder = tmp_path_factory.mktemp("watched")
    content = sweep_content(str(folder / "storage"))
    (folder / "sent").mkdir()
    (folder / "sent" / "watched.json").write_text(json.dumps(content))
    reports = {"RAY_metrics_report_interval_ms": str(INTERVAL_MS), "OMP_NUM_THREADS": "1"}
    with ray_head("--num-cpus=3", "--num-gpus=1", **reports) as head:
        scraper = Scraper(head)
        scraper.start()
        began = time.time()
        found = Seen(head, parse_sweep(content, "test"), _submit(folder / "sent", head), scraper.samples, began=began)
        _watch(found)
        scraper.stopped.set()
        scraper.join()
        yield found


def _submit(folder: Path, head: Head) -> str:
    words = [sys.executable, "-m", "raysft.cli", "submit", "watched.json", "--address", head.dashboard, "--detach"]
    for _ in range(30):  # the job server answers before the agent that starts jobs does
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=folder, env=environment)
        if "No available agent" not in done.stdout + done.stderr:
            break
        time.sleep(1)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()[1]


def _watch(seen: Seen) -> None:
    """Look until the job has ended, and once, while a trial runs, with the browser."""
    for _ in range(2 * ENDS_WITHIN_S):
        job = seen.head.json(f"/api/jobs/{seen.name}")
        if job["status"] not in ("PENDING", "RUNNING"):
            seen.ended = time.time()
            return
        if not seen.running:
            seen.running = _train_runs(seen.head, "RUNNING")
            if seen.running and CHROMIUM is not None:
                _browse(seen, job)
        time.sleep(0.5)
    raise AssertionError(f"{seen.name} did not end")


def _train_runs(head: Head, *states: str) -> list[dict[str, Any]]:
    try:
        runs = head.json("/api/train/v2/runs/v1")["train_runs"]
    except OSError:  # 500 before the first run
        return []
    return [run for run in runs if run["status"] in states]


def _browse(seen: Seen, job: dict[str, Any]) -> None:
    dashboard = seen.head.dashboard
    addresses = {
        "jobs": f"{dashboard}/#/jobs",
        "job": f"{dashboard}/#/jobs/{job['job_id']}",
        "train": f"{dashboard}/api/train/v2/runs/v1",
        "metrics": f"{seen.head.metrics}/metrics",
    }
    with ThreadPoolExecutor(len(addresses)) as browsers:  # at once, before the sweep has ended
        seen.pages = dict(zip(addresses, browsers.map(_page, addresses.values()), strict=True))


def _page(address: str) -> str:
    """What a browser makes of an address, once its scripts have run."""
    with tempfile.TemporaryDirectory() as profile:
        options = [
            "--headless",
            *ARGUMENTS,
            f"--user-data-dir={profile}",
            "--window-size=1600,1200",
            "--virtual-time-budget=6000",
        ]
        words = [chromium(), *options, "--dump-dom", address]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_the_last_gauges_are_what_the_storage_holds(seen: Seen) -> None:
    last, plan = seen.last, seen.plan
    states = Counter(row["state"] for row in seen.rows("trials") if row["kind"] == "fine-tuning")
    assert states == {"done": 4, "failed": 1}
    for state in ("done", "failed", "diverged", "running", "waiting"):
        assert value(last, "trials", state=state) == states[state], state
    for stage, (done, planned) in plan.count_by_stage().items():
        assert value(last, "results", stage=stage, state="committed") == done, stage
        assert value(last, "results", stage=stage, state="planned") == planned, stage
    measured = {(row["trial"], row["epoch"]) for row in seen.rows("scores") if row["trial"] is not None}
    assert value(last, "checkpoints", state="measured") == len(measured) == 8
    assert value(last, "checkpoints", state="planned") == sum(len(trial.measured) for trial in plan.trials) == 9
    for kind, count in {"pretrain": 1, "base": 1, "fine_tune": 4}.items():
        assert value(last, "units", kind=kind, state="done") == count, kind
    assert value(last, "units", kind="fine_tune", state="failed") == 1
    assert value(last, "queue_depth") == 0


def test_counters_and_histograms_are_those_of_the_tables(seen: Seen) -> None:
    last = seen.last
    [failure] = seen.rows("failures")
    assert value(last, "failures_total", error=failure["error"]) == 1
    assert not any(name == "ray_raysft_retries_total" for name, _ in last)
    training = seen.rows("training")
    assert value(last, "training_tokens_total", of="rows") == sum(row["tokens"] for row in training)
    supervised = sum(row["supervised_tokens"] for row in training)
    assert value(last, "training_tokens_total", of="supervised") == supervised > 0
    assert value(last, "trial_tokens_per_second_count") == 4
    assert value(last, "unit_seconds_count", kind="fine_tune") == 5
    costs = [row for row in seen.rows("costs") if row["stage"] == "train"]
    for method in ("full", "lora"):
        tokens = sum(row["tokens"] for row in training if row["method"] == method)
        seconds = sum(row["wall_s"] for row in costs if row["method"] == method)
        speed = value(last, "training_tokens_per_second", model="tiny", method=method)
        assert speed == pytest.approx(tokens / seconds, rel=0.01)


def test_while_it_runs_trials_wait_and_run(seen: Seen) -> None:
    states = ("waiting", "running", "done", "failed")
    counts = [
        [value(sample, "trials", state=state) or 0 for state in states]
        for sample in seen.samples
        if value(sample, "queue_depth") is not None
    ]
    assert counts
    assert all(sum(count) == 5 for count in counts)
    assert any(waiting == 5 for waiting, *_ in counts)
    assert any(running for _, running, *_ in counts)
    depths = [depth for sample in seen.samples if (depth := value(sample, "queue_depth")) is not None]
    assert max(depths) >= 5


def test_gpu_hours_are_used_up_and_the_end_is_foreseen(seen: Seen) -> None:
    used = [hours for sample in seen.samples if (hours := value(sample, "gpu_hours", state="used")) is not None]
    assert used == sorted(used)
    assert used[-1] * 3600 > sum(row["wall_s"] for row in seen.rows("costs"))  # one GPU each, and more than the results
    assert value(seen.last, "gpu_hours", state="left") == 0
    end = value(seen.last, "estimated_end")
    assert end is not None
    assert seen.began < end < seen.ended


def test_gauges_go_with_the_driver_and_counters_stay(seen: Seen) -> None:
    for _ in range(60):
        now = scrape(seen.head)
        if value(now, "queue_depth") is None:
            break
        time.sleep(0.5)
    assert value(now, "queue_depth") is None
    assert value(now, "trials", state="done") is None
    assert value(now, "training_tokens_total", of="rows") == value(seen.last, "training_tokens_total", of="rows")


def test_train_runs_are_named_as_the_units_in_the_log(seen: Seen) -> None:
    runs = {run["name"]: run for run in _train_runs(seen.head, "FINISHED", "ERRORED", "RUNNING", "ABORTED")}
    units = [unit for unit in seen.plan.units if unit.kind == "fine_tune"]
    log = seen.head.json(f"/api/jobs/{seen.name}/logs")["logs"]
    for unit in units:
        assert f"{unit}:" in log
        run = runs.pop(f"{unit} {unit.key}")
        assert run["job_details"]["submission_id"] == seen.name
        assert run["status"] == ("ERRORED" if "addition" in str(unit) else "FINISHED")
        [worker] = run["attempts"][0]["workers"]
        lines = Path(worker["log_file_path"]).read_text()
        assert f"{unit} {unit.key} begins: train 1, evaluate" in lines
        assert f"{unit} {unit.key} ended: " in lines
    assert runs == {}


@needs_browser
def test_the_browser_finds_the_job(seen: Seen) -> None:
    assert seen.name in seen.pages["jobs"]
    assert "RUNNING" in seen.pages["jobs"]
    assert seen.name in seen.pages["job"]


@needs_browser
def test_the_browser_finds_the_running_train_run(seen: Seen) -> None:
    assert seen.running[0]["name"] in seen.pages["train"]


@needs_browser
def test_the_browser_finds_our_metrics(seen: Seen) -> None:
    assert "ray_raysft_trials" in seen.pages["metrics"]


def test_prometheus_is_told_where_they_are(seen: Seen) -> None:
    port = seen.head.metrics.rpartition(":")[2]
    file = json.loads((seen.head.session / "prom_metrics_service_discovery.json").read_text())
    for [group] in (file, seen.head.json("/api/prometheus/sd")):
        assert any(target.endswith(f":{port}") for target in group["targets"])
