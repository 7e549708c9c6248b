"""The command line as a user meets it: help, one-line mistakes with exit code 2, JSON that parses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from raysft.cli import app, job
from tests.unit.synthetic_tables import Sweep as Axes
from tests.unit.synthetic_tables import synthetic_tables, write_tables

pytestmark = pytest.mark.unit

Content = dict[str, Any]
Write = Callable[[Content], Path]
SWEEPS = Path(__file__).parents[2] / "sweeps"


def _call(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_every_command_has_help() -> None:
    names = ("init", "plan", "run", "embed", "status", "reduce", "study", "report", "export", "doctor")
    assert all(name in _call("--help").stdout for name in names)
    for name in names:
        shown = _call(name, "--help")
        assert shown.exit_code == 0
        assert len(shown.stdout) > 200


@dataclass(frozen=True)
class PapersPlan:
    """What `raysft plan` says of the paper's whole grid: to a program, to people, and with what imported."""

    facts: dict[str, Any]
    shown: str
    heavy: list[str]


@pytest.fixture(scope="module")
def papers_plan() -> PapersPlan:
    """Made once, and as JSON by a process of its own: it takes seconds."""
    plan = "import sys; from raysft.cli import app; app(['plan', sys.argv[1], '--json'], standalone_mode=False); "
    heavy = "print([name for name in ('torch', 'transformers', 'ray', 'lm_eval') if name in sys.modules])"
    command = [sys.executable, "-c", plan + heavy, str(SWEEPS / "massive_sft.yaml")]
    facts, _, found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rpartition("[")
    return PapersPlan(json.loads(facts), _call("plan", SWEEPS / "massive_sft.yaml").stdout, json.loads(f"[{found}"))


def test_plan_of_the_papers_grid(papers_plan: PapersPlan) -> None:
    assert (papers_plan.facts["trials"], papers_plan.facts["checkpoints"]) == (341, 1070)
    assert "1070 fine-tuned checkpoints" in papers_plan.shown


def test_plan_weighs_the_checkpoints_of_the_papers_grid(papers_plan: PapersPlan) -> None:
    facts, shown = papers_plan.facts, papers_plan.shown
    kept = {policy["keep"]: policy for policy in facts["checkpoint_storage"]}
    assert [policy["unknown"] for policy in kept.values()] == [[], [], []]
    assert (kept["measured"]["checkpoints"], round(kept["measured"]["bytes"] / 1e12, 1)) == (1070, 24.4)
    assert (kept["last"]["checkpoints"], round(kept["last"]["bytes"] / 1e12, 1)) == (341, 6.1)
    assert len(facts["worker_memory"]) == 24
    assert "24.4 TB" in shown
    assert "last (chosen)" in shown


def test_a_plan_needs_no_torch(papers_plan: PapersPlan) -> None:
    """Nor anything else that takes long to import."""
    assert papers_plan.heavy == []


def test_plan_names_what_does_not_fit_a_worker(content: Content, write_sweep: Write) -> None:
    content["resources"] = {"memory_per_worker": 0.62}
    shown = _call("plan", write_sweep(content)).stdout
    assert "Above the 620 MB of resources.memory_per_worker" in shown
    assert "tiny x full, 2 trials: " in shown


def _break_dataset(content: Content, text: str) -> None:
    path = Path(content["storage"]).parent / "rows.jsonl"
    path.write_text(text)
    content["datasets"] = [{"name": "mine", "path": str(path)}]
    content["grid"][0]["sizes"] = ["all"]


def _storage_in_a_file(content: Content) -> None:
    file = Path(content["storage"]).parent / "file"
    file.write_text("")
    content["storage"] = str(file / "below")


BAD: dict[str, tuple[Callable[[Content], Any], str]] = {
    "unknown field": (lambda c: c.update(modles=[]), "modles: unknown field; valid: name, storage, models"),
    "wrong type": (lambda c: c["training"].update(batch_size="many"), "training.batch_size"),
    "duplicated axis value": (
        lambda c: c["grid"][0].update(seeds=[1, 1]),
        "grid.0.seeds: an axis holds each value once",
    ),
    "missing file": (
        lambda c: c.update(datasets=[{"name": "mine", "path": "none.json"}]),
        "datasets.mine.path: no file",
    ),
    "row without response": (
        lambda c: _break_dataset(c, '{"instruction": "q", "response": ""}'),
        "datasets.mine: rows.jsonl, row 1: no response",
    ),
    "row without instruction": (
        lambda c: _break_dataset(c, '{"instruction": "q", "response": "a"}\n{"response": "a"}'),
        "datasets.mine: rows.jsonl, row 2: no instruction",
    ),
    "empty dataset": (lambda c: _break_dataset(c, ""), "datasets.mine: rows.jsonl: no rows"),
    "unknown model folder": (
        lambda c: c.update(models=[{"name": "mine", "path": "/no/such/model"}]),
        "models.mine.path: no folder /no/such/model",
    ),
    "unknown skill": (
        lambda c: c["datasets"][0].update(generated={"skill": "flying"}),
        "datasets.capitals.generated: ",
    ),
    "size above the rows": (
        lambda c: c["grid"][0].update(sizes=[999]),
        "999 rows asked of dataset capitals, which has 64",
    ),
    "worker too small for the model": (
        lambda c: c.update(resources={"memory_per_worker": 0.5}),
        "resources.memory_per_worker: found 500 MB, where weights, gradients and optimiser of tiny x full take",
    ),
    "storage that cannot be written": (_storage_in_a_file, "cannot write there"),
    "missing likelihood texts": (
        lambda c: c["probes"].update(log_likelihood={"texts": "none.txt"}),
        "probes.log_likelihood.texts: no file",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_ends_with_one_line_before_any_worker_starts(content: Content, write_sweep: Write, name: str) -> None:
    change, expected = BAD[name]
    change(content)
    assert expected in refused(write_sweep(content))


def refused(sweep: Path) -> str:
    """The one line with which `raysft run` ends."""
    ended = _call("run", sweep)
    assert ended.exit_code == 2
    [line] = ended.stderr.strip().splitlines()
    assert line.startswith("raysft: ")
    return line


def test_status_of_nothing_done(content: Content, write_sweep: Write) -> None:
    path = write_sweep(content)
    facts = json.loads(_call("status", path, "--json").stdout)
    assert {stage["done"] for stage in facts["stages"].values()} == {0}
    assert facts["stages"]["train"]["planned"] == 4
    assert "missing" in _call("status", path).stdout


def test_a_truncated_result_is_named_by_plan_and_status(content: Content, write_sweep: Write) -> None:
    folder = Path(content["storage"]) / "results" / "train"
    folder.mkdir(parents=True)
    (folder / "abc.parquet").write_bytes(b"PAR1 half a file")
    for command in ("plan", "status"):
        assert "results/train/abc.parquet: truncated" in _call(command, write_sweep(content)).stdout
    assert (folder / "abc.parquet").read_bytes() == b"PAR1 half a file"


def test_reports_need_tables(content: Content, write_sweep: Write) -> None:
    for command in ("study", "report"):
        ended = _call(command, write_sweep(content))
        assert ended.exit_code == 2
        assert "no tables yet; `raysft reduce` makes them" in ended.stderr


@pytest.mark.parametrize("command", ["study", "report"])
def test_the_threshold_of_the_map_can_be_given(content: Content, write_sweep: Write, command: str) -> None:
    """As it is in the map of another study, so that distances of both compare."""
    tables = synthetic_tables(Axes(models=["m"], datasets=["a"], epochs=1, layers=1, texts=5))
    write_tables(tables, Path(content["storage"]) / "tables")
    path = write_sweep(content)
    assert _call(command, path, "--clip-below", -57.5).exit_code == 0
    points = pq.read_table(Path(content["storage"]) / "study" / "tables" / "map.parquet")
    assert set(points["clipped_below"].to_pylist()) == {-57.5}
    for wrong in ("nan", "3", "low"):
        ended = _call(command, path, "--clip-below", wrong)
        assert ended.exit_code == 2
        assert "--clip-below" in ended.stderr


def test_init_writes_a_sweep_that_reads_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert _call("init", path).exit_code == 0
    assert "models.base.path: no folder" in _call("plan", path).stderr
    text = path.read_text()
    assert _call("init", path).exit_code == 2
    assert path.read_text() == text


def test_a_ray_job_keeps_a_relative_storage_out_of_rays_own_copy(
    content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, home = tmp_path / "_ray_pkg_0123", tmp_path / "home"
    copy.mkdir()
    home.mkdir()
    (copy / "sweep.json").write_text(json.dumps({**content, "storage": "results/mine"}))
    monkeypatch.chdir(copy)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("sys.argv", ["jobs/plan.py", "sweep.json", "--json"])
    with pytest.raises(SystemExit) as ended:
        job("plan")
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["storage"] == str(home / "raysft" / "results" / "mine")


def test_doctor_names_what_would_not_work() -> None:
    ended = _call("doctor", "--json", "--storage", "/proc/raysft", "--address", "127.0.0.1:1")
    findings = {entry["about"]: entry for entry in json.loads(ended.stdout)}
    assert ended.exit_code == 1
    assert "cannot be reached" in findings["ray cluster"]["problem"]
    assert "cannot write" in findings["storage"]["problem"]
    assert findings["torch"]["found"] != "not installed"
