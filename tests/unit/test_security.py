"""What lies in a storage or a model folder is data: no pickle in it is loaded, and no code in it runs unasked."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from raysft.cli import app
from raysft.corpus.kept_rows import kept_rows
from raysft.corpus.tokenize import TokenisedRows
from raysft.models.load import load_folder, model_shape
from raysft.models.methods import apply_method
from raysft.spec.keys import key_of
from raysft.spec.sweep import MethodSpec, ModelSpec, SpecError
from raysft.store.checkpoints import local_folder, write_folder
from raysft.store.layout import open_storage, rows_folder
from tests.invariants.tiny_models import tiny_base
from tests.unit.tokenizers_in_miniature import byte_level

pytestmark = pytest.mark.unit

PACKAGE = Path(__file__).parents[2] / "raysft"
ALLOWED = {
    # Reads the error that Tune itself left a moment ago in its own scratch folder on this machine: no storage.
    "cluster/deaths.py": ["import pickle", "pickle.loads"],
    "evaluation/sandbox/seal.py": ["exec"],  # in the sandbox: the programs of HumanEval and MBPP
}
PICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def _unsafe(source: str) -> Iterator[str]:
    """Each call or import in `source` by which stored bytes could become running code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"import {name.name}" for name in node.names if name.name.partition(".")[0] in PICKLING)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PICKLING:
            yield f"from {node.module} import"
        elif isinstance(node, ast.Call) and _may_be_unsafe(node):
            yield from _unsafe_call(ast.unparse(node.func), {word.arg: word.value for word in node.keywords})


def _may_be_unsafe(call: ast.Call) -> bool:
    """Told without writing the whole call out, which takes long for all calls of a package."""
    last = getattr(call.func, "attr", getattr(call.func, "id", ""))
    return last.endswith(("load", "loads", "eval", "exec", "pickle", "from_pretrained")) or any(
        word.arg in ("allow_pickle", "weights_only", "trust_remote_code") for word in call.keywords
    )


def _unsafe_call(name: str, words: dict[str | None, ast.expr]) -> Iterator[str]:
    said = {word: ast.literal_eval(value) for word, value in words.items() if isinstance(value, ast.Constant)}
    if name in ("torch.load", "pickle.load", "pickle.loads", "eval", "exec") or name.endswith(
        ("read_pickle", "to_pickle", "torch.jit.load")
    ):
        yield name
    for word, wrong in (("allow_pickle", True), ("weights_only", False), ("trust_remote_code", True)):
        if said.get(word) is wrong:
            yield f"{name}({word}={wrong})"
    if name.endswith(".from_pretrained"):
        if "trust_remote_code" not in words:
            yield f"{name} without trust_remote_code"
        if "Model" in name and said.get("use_safetensors") is not True:
            yield f"{name} without use_safetensors=True"


def test_no_source_file_loads_pickles_or_trusts_code() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 60
    found = {str(file.relative_to(PACKAGE)): list(_unsafe(file.read_text())) for file in files}
    assert {name: lines for name, lines in found.items() if lines and lines != ALLOWED.get(name)} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)",
        "AutoTokenizer.from_pretrained(path)",
        "AutoConfig.from_pretrained(path, trust_remote_code=True)",
        "exec(text)",
    ],
)
def test_the_look_at_the_sources_finds_what_it_is_for(source: str) -> None:
    assert list(_unsafe(source))


class Payload:
    """Unpickled, it makes a folder: what a pickle of somebody's can do."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return Path.mkdir, (self.mark,)  # type: ignore[return-value]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The folder that is there if a payload ran."""
    return tmp_path / "a payload ran"


def _pickled(path: Path, mark: Path) -> None:
    torch.save({"weights": Payload(mark)}, path)


def test_the_payload_works_where_pickles_are_loaded(tmp_path: Path, mark: Path) -> None:
    _pickled(tmp_path / "pytorch_model.bin", mark)
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert mark.is_dir()


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "adapter_model.safetensors"])
def test_a_checkpoint_with_a_pickle_for_weights_is_refused(tmp_path: Path, mark: Path, kind: str, name: str) -> None:
    storage = open_storage(str(tmp_path / "storage"))
    write_folder(storage, "checkpoints/t/epoch-0001", lambda folder: _pickled(folder / name, mark), {})
    tuned = apply_method(tiny_base("llama"), MethodSpec(name=kind, kind=kind), 0)  # type: ignore[arg-type]
    with pytest.raises(Exception, match=r"safetensors|header|No such file|embed_tokens|lm_head"):
        tuned.load(local_folder(storage, "checkpoints/t/epoch-0001"))
    assert not mark.exists()


def test_rows_with_a_pickle_inside_are_refused(tmp_path: Path, mark: Path) -> None:
    storage, identity = open_storage(str(tmp_path / "storage")), {"dataset": "d"}

    def save(folder: Path) -> None:
        np.save(folder / "ids.npy", np.array([Payload(mark)], dtype=object), allow_pickle=True)

    def tokenise() -> TokenisedRows:
        raise AssertionError("the folder is complete")

    write_folder(storage, rows_folder(key_of("tokenise", identity)), save, {"dropped": 0})
    with pytest.raises(ValueError, match=r"objects|pickle"):
        kept_rows(storage, identity, tokenise)
    assert not mark.exists()


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A whole, loadable model folder."""
    folder = tmp_path / "model"
    tokenizer: PreTrainedTokenizerFast = byte_level()
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    return folder


def test_a_base_with_pickled_weights_alone_is_refused(
    model_folder: Path, mark: Path, content: dict[str, Any], write_sweep: Callable[[dict[str, Any]], Path]
) -> None:
    load_folder(str(model_folder), "float32")  # as it is, it loads
    (model_folder / "model.safetensors").unlink()
    _pickled(model_folder / "pytorch_model.bin", mark)
    with pytest.raises(SpecError, match=r"models\.m: .* cannot be loaded"):
        load_folder(str(model_folder), "float32", where="models.m")
    content["models"] = [{"name": "m", "path": str(model_folder)}]
    done = CliRunner().invoke(app, ["plan", str(write_sweep(content))])
    assert done.exit_code == 2
    assert "holds no .safetensors file; pickled weights are not read" in done.stderr
    assert not mark.exists()


def _with_code(folder: Path, mark: Path) -> None:
    """Make a folder one of a model that `transformers` does not know, which brings the code for itself."""
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "theirs", "auto_map": code}))
    (folder / "theirs.py").write_text(
        f"""from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({str(mark)!r}).mkdir(exist_ok=True)
class Config(LlamaConfig):
    model_type = "theirs"
class Model(LlamaForCausalLM):
    config_class = Config
"""
    )


def test_code_in_a_model_folder_runs_only_where_the_sweep_says_so(
    model_folder: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_code(model_folder, mark)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(mark.parent / "modules"))
    storage = open_storage(str(mark.parent / "storage"))
    with pytest.raises(SpecError, match=r"^models\.m: .* is run only where its entry says trust_remote_code: true"):
        model_shape(storage, ModelSpec(name="m", path=model_folder))
    with pytest.raises(SpecError, match=r"models\.m: .* cannot be loaded"):
        load_folder(str(model_folder), "float32", where="models.m")
    assert not mark.exists()
    trusted = ModelSpec(name="m", path=model_folder, trust_remote_code=True)
    assert model_shape(storage, trusted) == (2, 16)
    assert mark.is_dir()


def test_run_refuses_a_model_with_code_in_one_line(
    model_folder: Path, mark: Path, content: dict[str, Any], write_sweep: Callable[[dict[str, Any]], Path]
) -> None:
    _with_code(model_folder, mark)
    content["models"] = [{"name": "m", "path": str(model_folder)}]
    done = CliRunner().invoke(app, ["run", str(write_sweep(content))])
    assert done.exit_code == 2
    assert "models.m: " in done.stderr
    assert "trust_remote_code: true" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not mark.exists()
