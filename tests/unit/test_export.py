"""Exported folders on a made storage: what is in them, what a second export copies, and what it leaves alone."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from raysft.cli import app
from raysft.spec.digests import keep_digests
from raysft.spec.sweep import Sweep, parse_sweep
from tests.conftest import SMALL
from tests.made_storage import MACHINE, make_storage

pytestmark = pytest.mark.unit

Content = dict[str, Any]
Export = Callable[..., Result]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage: two datasets x full and LoRA, two epochs each."""
    path = tmp_path_factory.mktemp("made") / "storage"
    make_storage(parse_sweep({**SMALL, "storage": str(path)}, "sweep"))
    return path


@pytest.fixture
def sweep(content: Content, made: Path) -> Sweep:
    """The sweep, and its storage to break."""
    shutil.copytree(made, content["storage"])
    return parse_sweep(content, "sweep")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "release"


@pytest.fixture
def call(sweep: Sweep, out: Path) -> Export:
    """`raysft export STORAGE --out OUT` and more words."""

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, ["export", sweep.storage, "--out", str(out), *words], env={"COLUMNS": "200"})

    return run


def folders(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def one(out: Path, part: str) -> Path:
    [found] = [path for path in out.iterdir() if part in path.name]
    return found


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its inode, which a copy would change, and its content."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes()) for path in files}


def test_a_full_checkpoint_is_a_folder_with_its_tokenizer(call: Export, out: Path, sweep: Sweep) -> None:
    assert call("--datasets", "capitals", "--methods", "full", "--no-tables").exit_code == 0
    [folder] = out.iterdir()
    assert folder.name.startswith("small-tiny-capitals-full-32-s0-e2-")
    names = {path.name for path in folder.iterdir()}
    weights = {"config.json", "generation_config.json", "model.safetensors"}
    assert names == weights | {"tokenizer.json", "tokenizer_config.json", "README.md", "raysft.json"}
    assert MACHINE not in "".join(path.read_text() for path in folder.iterdir())
    stored = next(Path(sweep.storage).glob(f"checkpoints/{record(folder)['identity']['trial']}/epoch-0002"))
    copied, original = folder / "model.safetensors", stored / "model.safetensors"
    assert copied.read_bytes() == original.read_bytes()
    assert not copied.samefile(original), "an export does not depend on the storage"
    assert not copied.is_symlink()


def record(folder: Path) -> Content:
    found: Content = json.loads((folder / "raysft.json").read_bytes())
    return found


def test_an_adapter_names_its_base_which_is_exported_beside_it(call: Export, out: Path) -> None:
    assert call("--datasets", "capitals", "--methods", "lora", "--no-tables").exit_code == 0
    assert len(folders(out)) == 2
    config = json.loads((one(out, "lora") / "adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == f"./{one(out, 'base').name}"
    assert (one(out, "base") / "model.safetensors").read_bytes().startswith(b"base ")
    assert "peft's own card" not in (one(out, "lora") / "README.md").read_text()


def test_an_adapter_names_what_the_user_says(call: Export, out: Path) -> None:
    assert (
        call("--datasets", "capitals", "--methods", "lora", "--no-tables", "--base", "tiny=an-org/a-base@v2").exit_code
        == 0
    )
    [folder] = out.iterdir()
    config = json.loads((folder / "adapter_config.json").read_bytes())
    assert (config["base_model_name_or_path"], config["revision"]) == ("an-org/a-base", "v2")
    assert "base_model: an-org/a-base" in (folder / "README.md").read_text()


def test_again_copies_nothing(call: Export, out: Path) -> None:
    assert call("--models", "every").exit_code == 0
    before = contents(out)
    again = call("--models", "every")
    assert again.exit_code == 0
    assert contents(out) == before
    assert again.stdout.count(": there") == len(folders(out)) == 6


def test_exports_of_other_selections_join_those_that_are_there(call: Export, out: Path) -> None:
    call("--datasets", "capitals", "--methods", "full", "--epochs", "1")
    before = contents(out)
    call("--datasets", "addition", "--epochs", "1,last")
    assert len(folders(out)) == 1 + 4 + 1 + 1  # of the first; of the second, their base, and the tables
    assert contents(out).items() >= before.items()


def test_an_export_that_lost_a_file_is_made_again(call: Export, out: Path) -> None:
    call("--datasets", "capitals", "--methods", "full", "--no-tables")
    weights = one(out, "full") / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (weights.unlink, lambda: weights.write_bytes(b"half")):
        broken()
        assert ": replaced" in call("--datasets", "capitals", "--methods", "full", "--no-tables").stdout
        assert weights.read_bytes() == whole
    assert len(folders(out)) == 1


def test_a_damaged_checkpoint_is_one_line_and_the_others_go_on(call: Export, out: Path, sweep: Sweep) -> None:
    damaged = sorted(Path(sweep.storage).glob("checkpoints/*/epoch-0002/model.safetensors"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    ended = call("--methods", "full", "--no-tables")
    assert ended.exit_code == 1
    [line] = [line for line in ended.stdout.splitlines() if "not exported" in line]
    assert line.endswith("/epoch-0002/model.safetensors: damaged, its SHA-256 is not the manifest's")
    assert len(folders(out)) == 1
    damaged.unlink()
    ended = call("--methods", "full", "--no-tables")
    assert "no such file, the manifest says" in ended.stdout
    assert "damaged" in ended.stdout.partition("checkpoints,")[0], "the table says so before anything is written"


def test_a_folder_of_somebody_else_is_left_alone(call: Export, out: Path) -> None:
    call("--datasets", "capitals", "--methods", "full", "--no-tables")
    folder = one(out, "full")
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    ended = call("--datasets", "capitals", "--no-tables")
    assert ended.exit_code == 1
    assert "was not made by raysft (raysft.json is missing); it is left as it is" in ended.stdout
    assert folders(folder) == ["thesis.txt"]
    assert one(out, "lora").is_dir(), "the others go on"


def test_a_card_that_was_edited_stays_and_another_follows_the_tables(call: Export, out: Path, sweep: Sweep) -> None:
    call("--methods", "full", "--no-tables")
    edited, other = (one(out, part) / "README.md" for part in ("capitals", "addition"))
    edited.write_text(edited.read_text() + "\nLicence: mine.\n")
    ended = call("--methods", "full", "--no-tables", "--license", "mit")
    assert edited.read_text().endswith("Licence: mine.\n")
    assert "license: mit" in other.read_text()
    assert "its edited card kept" in ended.stdout
    assert ": card renewed" in ended.stdout
    assert ": there\n" in call("--methods", "full", "--no-tables", "--license", "mit").stdout


def test_one_exporter_at_a_time(call: Export, out: Path) -> None:
    scratch = out / ".exporting"
    scratch.mkdir(parents=True)
    descriptor = os.open(scratch, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    ended = call("--models", "every")
    os.close(descriptor)
    assert ended.exit_code == 2
    assert "another raysft export is writing there" in ended.stderr
    (scratch / "left by a kill").mkdir()
    assert call("--models", "every").exit_code == 0
    assert not scratch.exists()


def test_an_out_that_cannot_be_made_is_one_line(call: Export, out: Path) -> None:
    out.write_text("a file")
    ended = call("--models", "every")
    assert ended.exit_code == 2
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "cannot be written" in ended.stderr


def test_the_tables_leave_machines_out(call: Export, out: Path) -> None:
    call("--datasets", "capitals", "--methods", "full")
    data = one(out, "tables") / "data"
    assert {path.stem for path in data.iterdir()} == {"trials", "training", "scores", "costs", "failures"}
    text = (one(out, "tables") / "README.md").read_text()
    for path in data.iterdir():
        table = pq.read_table(path)
        assert not {"host", "log", "message"} & set(table.column_names)
        text += str(table.to_pylist())
    assert "a-host-of-nobody" not in text
    assert MACHINE not in text
    scores = pq.read_table(data / "scores.parquet")
    assert scores.num_rows == 2 * (1 + 4 * 2)
    assert scores.schema.field("stderr").metadata[b"meaning"] == b"standard error of the score over the task's items"


def test_a_chat_template_of_the_training_goes_along(content: Content, tmp_path: Path, out: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    content["training"] |= {"template": "chat", "chat_template": str(template)}
    sweep = parse_sweep(content, "sweep")
    make_storage(sweep)
    words = ["export", sweep.storage, "--out", str(out), "--methods", "full", "--no-tables"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert {(path / "chat_template.jinja").read_text() for path in out.iterdir()} == {"{{ messages }}"}
    shutil.rmtree(out)
    template.unlink()
    assert f"training.chat_template: no file {template}" in CliRunner().invoke(app, words).stderr


def test_a_chat_template_that_changed_is_not_exported(content: Content, tmp_path: Path, out: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    content["training"] |= {"template": "chat", "chat_template": str(template)}
    storage = make_storage(parse_sweep(content, "sweep"))
    keep_digests(storage)
    for change in (lambda: template.write_text("{{ other }}"), template.unlink):
        change()
        ended = CliRunner().invoke(app, ["export", storage.uri, "--out", str(out), "--methods", "full", "--no-tables"])
        assert ended.exit_code == 1
        assert ended.stdout.count("not exported: training.chat_template: ") == 2
        assert list(out.iterdir()) == []


def test_a_manifest_that_names_a_file_outside_is_refused(call: Export, sweep: Sweep, out: Path) -> None:
    for path in Path(sweep.storage).glob("checkpoints/*/epoch-0002/manifest.json"):
        manifest = json.loads(path.read_bytes())
        outside = path.parent / "../../../outside.txt"
        outside.write_text("x")
        manifest["files"]["../../../outside.txt"] = {"bytes": 1, "sha256": "0"}
        path.write_text(json.dumps(manifest))
    ended = call("--models", "every", "--no-tables")
    assert "which is no file of a folder" in ended.stdout
    assert [name for name in folders(out) if "base" not in name] == []


def test_export_is_of_a_yaml_too(
    content: Content, write_sweep: Callable[[Content], Path], sweep: Sweep, out: Path
) -> None:
    words = ["export", str(write_sweep(content)), "--out", str(out), "--methods", "full"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert len(folders(out)) == 3


def test_without_tables_it_says_how_to_make_them(call: Export, sweep: Sweep) -> None:
    shutil.rmtree(Path(sweep.storage) / "tables")
    ended = call("--models", "every")
    assert ended.exit_code == 2
    assert "no tables yet; `raysft reduce` makes them" in ended.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--license", "../mit"], "--license ../mit: an identifier is wanted, such as apache-2.0 or mit"),
        (["--base", "gpt=x/y"], "--base gpt: no such model in the sweep; valid: tiny"),
        (["--base", "tiny"], "--base tiny: MODEL=ORG/NAME[@REVISION], or MODEL=FOLDER, is wanted"),
        (["--push", "a/b"], "--push a/b: the name of a user or organisation on the hub is wanted"),
        (["--datasets", ","], "--datasets: no name in ','"),
        (["--storage", "x"], "--storage belongs to a sweep's YAML, found the storage "),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(call: Export, out: Path, words: list[str], said: str) -> None:
    ended = call("--models", "every", *words)
    assert ended.exit_code == 2
    assert ended.stderr.startswith(f"raysft: {said}")
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stdout == ""
    assert not out.exists()
