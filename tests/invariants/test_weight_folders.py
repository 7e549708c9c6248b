"""Checkpoints on disk: the numbers of those in memory, whatever shards, names and vocabularies; bad ones by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from raysft.cli import app
from raysft.models.load import Base
from raysft.models.methods import Tuned, apply_method
from raysft.probes.weights.change import weight_change
from raysft.probes.weights.files import INDEX
from raysft.probes.weights.folders import weight_change_of_folders
from raysft.probes.weights.measures import WeightsError
from raysft.spec.sweep import MethodSpec
from tests.invariants.tiny_models import tiny_base

pytestmark = pytest.mark.invariants

Row = dict[str, Any]
METHODS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "lora": {"kind": "lora", "rank": 4, "alpha": 6},
    "rslora": {"kind": "lora", "rank": 4, "alpha": 6, "rslora": True},
    "dora": {"kind": "lora", "rank": 4, "alpha": 6, "dora": True},
    "dora of an end": {"kind": "lora", "rank": 4, "alpha": 6, "dora": True, "targets": ("embed_tokens",)},
    "rank above": {"kind": "lora", "rank": 24, "alpha": 6, "targets": ("k_proj", "v_proj")},
    "ends": {"kind": "lora", "rank": 4, "alpha": 6, "targets": ("embed_tokens", "lm_head", "q_proj")},
}


def moved(base: Base, method: str = "full") -> Tuned:
    """A method applied, and everything that trains moved a little at random."""
    tuned = apply_method(base, MethodSpec(name="m", **METHODS[method]), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return tuned


def family(name: str, **sizes: Any) -> Base:
    """A tiny base of a family that stores fused projections."""
    torch.manual_seed(0)
    ids = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **ids, **sizes))
    return Base(name, model, None, {key: one.detach().clone() for key, one in model.named_parameters()})


WIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BASES: dict[str, Callable[[], Base]] = {
    "llama": lambda: tiny_base("llama"),
    "gemma2": lambda: tiny_base("gemma2"),
    "phi3": lambda: family("phi3", **WIDE, num_key_value_heads=2),
    "gpt2": lambda: family("gpt2", n_embd=32, n_layer=2, n_head=4),
    "gpt_neox": lambda: family("gpt_neox", **WIDE),
}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A llama's folder and that of a full fine-tuning of it."""
    return saved(tiny_base("llama"), "full", tmp_path)[:2]


def saved(base: Base, method: str, folder: Path, shards: str = "50GB") -> tuple[Path, Path, list[Row]]:
    """(base folder, checkpoint folder, rows measured in memory)."""
    base.model.save_pretrained(folder / "base", max_shard_size=shards)
    tuned = moved(base, method)
    tuned.model.save_pretrained(folder / "tuned", **({"max_shard_size": shards} if method == "full" else {}))
    rows = weight_change(tuned).to_pylist()
    tuned.detach()
    return folder / "base", folder / "tuned", rows


@pytest.mark.parametrize("method", ["full", "lora", "rslora", "dora"])
@pytest.mark.parametrize("name", BASES)
def test_folders_have_the_numbers_of_models_in_memory(name: str, method: str, tmp_path: Path) -> None:
    if (name, method) == ("gpt2", "dora"):
        pytest.skip("peft's DoRA does not fit transposed layers")
    base, tuned, rows = saved(BASES[name](), method, tmp_path)
    assert weight_change_of_folders(base, tuned).to_pylist() == rows


@pytest.mark.parametrize("method", ["rank above", "ends"])
def test_an_adapter_of_few_outputs_or_of_the_ends_has_the_numbers_of_memory(method: str, tmp_path: Path) -> None:
    base, tuned, rows = saved(tiny_base("llama"), method, tmp_path)
    saves_base = any(".base_layer." in name for name in load_file(tuned / "adapter_model.safetensors"))
    assert saves_base == (method == "ends"), "peft saves the weights of the ends beside their matrices"
    assert weight_change_of_folders(base, tuned).to_pylist() == rows


def test_dora_of_an_embedding_is_refused(tmp_path: Path) -> None:
    base = tiny_base("llama")
    base.model.save_pretrained(tmp_path / "base")
    moved(base, "dora of an end").model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(WeightsError, match=r"^DoRA of model\.embed_tokens\.weight, an embedding, is not measured$"):
        weight_change_of_folders(tmp_path / "base", tmp_path / "tuned")


def test_weights_that_lie_there_twice_are_read_once(folders: tuple[Path, Path]) -> None:
    base, tuned = folders
    rows = weight_change_of_folders(base, tuned).to_pylist()
    for folder in folders:  # as Mistral's folders: their own layout, with names of its own and with equal ones
        weights = load_file(folder / "model.safetensors")
        save_file({"layers.0.attention.wq.weight": torch.ones(4, 4), **weights}, folder / "consolidated.safetensors")
    assert weight_change_of_folders(base, tuned).to_pylist() == rows


def test_shards_change_nothing(tmp_path: Path) -> None:
    base, tuned, rows = saved(tiny_base("qwen3"), "full", tmp_path, shards="20KB")
    assert len(list(tuned.glob("*.safetensors"))) > 2
    assert weight_change_of_folders(base, tuned).to_pylist() == rows


def test_a_checkpoint_in_bfloat16_is_marked(folders: tuple[Path, Path]) -> None:
    base, tuned = folders
    rewrite(tuned, lambda weights: {name: tensor.bfloat16() for name, tensor in weights.items()})
    model = level(weight_change_of_folders(base, tuned).to_pylist(), "model")
    assert (model["dtype"], model["low_precision"]) == ("bfloat16", True)


def level(rows: list[Row], name: str) -> Row:
    return next(row for row in rows if row["level"] == name)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Change the weights of a folder of one shard."""
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)


def configure(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("prefix", ["base_model.model.", "module.", "_orig_mod.", "language_model."])
def test_prefixes_change_nothing(prefix: str, folders: tuple[Path, Path]) -> None:
    base, tuned = folders
    rows = weight_change_of_folders(base, tuned).to_pylist()
    rewrite(tuned, lambda weights: {prefix + name: tensor for name, tensor in weights.items()})
    assert weight_change_of_folders(base, tuned).to_pylist() == rows


def test_a_fused_checkpoint_is_compared_with_an_unfused_base(folders: tuple[Path, Path]) -> None:
    base, tuned = folders
    rows = weight_change_of_folders(base, tuned).to_pylist()

    def fuse(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        fused = dict(weights)
        for layer in (0, 1):
            for whole, parts in (
                ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
                ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
            ):
                own = [fused.pop(f"model.layers.{layer}.{part}.weight") for part in parts]
                fused[f"model.layers.{layer}.{whole}.weight"] = torch.cat(own)
        return fused

    rewrite(tuned, fuse)
    assert weight_change_of_folders(base, tuned).to_pylist() == rows


def test_rows_that_both_vocabularies_have_are_compared(folders: tuple[Path, Path]) -> None:
    base, tuned = folders
    before = {row["tensor"]: row for row in weight_change_of_folders(base, tuned).to_pylist()}
    resized = ("model.embed_tokens.weight", "lm_head.weight")
    rewrite(
        tuned,
        lambda weights: {
            name: torch.cat([tensor, torch.full((5, 32), 7.0)]) if name in resized else tensor
            for name, tensor in weights.items()
        },
    )
    found = weight_change_of_folders(base, tuned).to_pylist()
    rows = {row["tensor"]: row for row in found}
    for name in ("embed_tokens.weight", "lm_head.weight"):
        assert rows[name]["rows_left_out"] == 5
        assert rows[name]["change_norm"] == before[name]["change_norm"]
        assert rows[name]["parameters"] == 97 * 32
    assert level(found, "model")["rows_left_out"] == 10


def test_an_output_layer_of_its_own_is_compared_with_the_embedding_it_was(tmp_path: Path) -> None:
    base, tuned, rows = saved(tiny_base("gemma2"), "full", tmp_path)
    assert "lm_head.weight" not in {row["tensor"] for row in rows}
    configure(tuned, tie_word_embeddings=False)
    rewrite(tuned, lambda weights: {**weights, "lm_head.weight": 2 * load_file(base / "model.safetensors")[EMBEDDING]})
    found = {row["tensor"]: row for row in weight_change_of_folders(base, tuned).to_pylist()}
    assert found["lm_head.weight"]["relative_change"] == pytest.approx(1, rel=1e-6)


EMBEDDING = "model.embed_tokens.weight"


def test_a_tied_output_layer_that_is_stored_all_the_same_counts_once(tmp_path: Path) -> None:
    base, tuned, rows = saved(tiny_base("gemma2"), "full", tmp_path)
    rewrite(tuned, lambda weights: {**weights, "lm_head.weight": weights[EMBEDDING].clone()})
    configure(tuned, tie_word_embeddings=True)
    assert weight_change_of_folders(base, tuned).to_pylist() == rows


@pytest.mark.parametrize("silent", ["base", "tuned", "both"])
def test_a_configuration_that_does_not_speak_of_tying_means_what_its_family_does(tmp_path: Path, silent: str) -> None:
    base, tuned, rows = saved(tiny_base("gemma2"), "full", tmp_path)
    rewrite(tuned, lambda weights: {**weights, "lm_head.weight": weights[EMBEDDING].clone()})
    configure(tuned, tie_word_embeddings=True)
    for folder in (base, tuned):
        if silent in (folder.name, "both"):
            path = folder / "config.json"
            content = json.loads(path.read_text())
            content.pop("tie_word_embeddings", None)
            path.write_text(json.dumps(content))
    assert weight_change_of_folders(base, tuned).to_pylist() == rows


def test_modules_that_an_adapter_saves_whole_are_compared_whole(tmp_path: Path) -> None:
    base, tuned, _ = saved(tiny_base("llama"), "lora", tmp_path)
    path = tuned / "adapter_model.safetensors"
    head = load_file(base / "model.safetensors")["lm_head.weight"]
    save_file({**load_file(path), "base_model.model.lm_head.weight": 1.5 * head}, path)
    found = {row["tensor"]: row for row in weight_change_of_folders(base, tuned).to_pylist()}
    assert found["lm_head.weight"]["relative_change"] == pytest.approx(0.5, rel=1e-6)


def test_scalings_of_single_modules_are_those_of_the_adapter(tmp_path: Path) -> None:
    base, tuned, rows = saved(tiny_base("llama"), "lora", tmp_path)
    path = tuned / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "alpha_pattern": {"q_proj": 18}}))
    for before, after in zip(rows, weight_change_of_folders(base, tuned).to_pylist(), strict=True):
        if before["level"] == "tensor":
            factor = 3 if before["module"] == "q_proj" else 1
            assert after["change_norm"] == pytest.approx(factor * before["change_norm"])


def drop(name: str) -> Callable[[Path, Path], None]:
    return lambda base, tuned: rewrite(
        tuned, lambda weights: {key: tensor for key, tensor in weights.items() if key != name}
    )


def reshape(base: Path, tuned: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(tuned, lambda weights: {**weights, name: weights[name][:40]})


def poison(base: Path, tuned: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(tuned, lambda weights: {**weights, name: weights[name] * torch.nan})


def another_width(base: Path, tuned: Path) -> None:
    rewrite(tuned, lambda weights: {**weights, EMBEDDING: weights[EMBEDDING][:, :16]})


def scaled(base: Path, tuned: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(
        tuned,
        lambda weights: {**weights, name: weights[name].to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1)},
    )


def index(base: Path, tuned: Path, **files: str) -> None:
    names = dict.fromkeys(load_file(tuned / "model.safetensors"), "model.safetensors")
    (tuned / INDEX).write_text(json.dumps({"weight_map": {**names, **files}}))


def truncate(base: Path, tuned: Path) -> None:
    path = tuned / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_json(base: Path, tuned: Path) -> None:
    (tuned / "config.json").write_text("{")


def deeper(base: Path, tuned: Path) -> None:
    extra = "model.layers.2.mlp.up_proj.weight"
    rewrite(tuned, lambda weights: {**weights, extra: weights["model.layers.1.mlp.up_proj.weight"].clone()})


BAD: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "a tensor is missing": (
        drop("model.layers.0.mlp.up_proj.weight"),
        r"tuned: its base is another model than .*base: .*tuned lacks 1 of the 21 tensors of .*base, "
        r"layers\.0\.mlp\.up_proj\.weight first",
    ),
    "more layers": (deeper, r"base lacks 1 of the 22 tensors of .*tuned, layers\.2\.mlp\.up_proj\.weight first"),
    "another shape": (reshape, r"layers\.1\.mlp\.up_proj\.weight is 40 x 32 here and 48 x 32 there"),
    "another width of the vocabulary": (another_width, r"embed_tokens\.weight is 97 x 16 here and 97 x 32 there"),
    "not finite": (poison, r"layers\.1\.mlp\.up_proj\.weight: holds weights that are not finite"),
    "a shard is missing": (
        lambda base, tuned: index(base, tuned, extra="model-2.safetensors"),
        r"index\.json: names model-2\.safetensors, which is not there",
    ),
    "a shard holds less": (
        lambda base, tuned: index(base, tuned, extra="model.safetensors"),
        r"model\.safetensors: holds no extra, which model\.safetensors\.index\.json says is there",
    ),
    "a shard outside": (
        lambda base, tuned: index(base, tuned, extra="../base/model.safetensors"),
        r"names \.\./base/model\.safetensors, which is not in the folder itself",
    ),
    "truncated": (truncate, r"model\.safetensors: not a readable safetensors file"),
    "quantised": (
        scaled,
        r"model\.safetensors: holds model\.layers\.0\.mlp\.up_proj\.weight_scale_inv, so its weights are quantised",
    ),
    "no weights": (lambda base, tuned: (tuned / "model.safetensors").unlink(), r"holds no \.safetensors file"),
    "no folder": (lambda base, tuned: shutil.rmtree(tuned), r"tuned: no such folder"),
    "no JSON": (
        no_json,
        r"config\.json: not readable JSON",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_one_line(case: str, folders: tuple[Path, Path]) -> None:
    spoil, message = BAD[case]
    spoil(*folders)
    with pytest.raises(WeightsError, match=message) as caught:
        weight_change_of_folders(*folders)
    assert "\n" not in str(caught.value)


def adapted(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> tuple[Path, Path]:
    """The folders of a base and of a LoRA of it whose matrices are changed."""
    base, tuned, _ = saved(tiny_base("llama"), "lora", folder)
    path = tuned / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)
    return base, tuned


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: {key.replace("layers.1.", "layers.9."): one for key, one in own.items()}, r"adapts layers\.9\."),
        (lambda own: {**own, Q: own[Q][:, :16]}, r"q_proj\.weight is 32 x 16 here and 32 x 32 there"),
        (lambda own: {key: one for key, one in own.items() if key != Q}, r"holds no lora_A of .*layers\.0.*q_proj"),
        (lambda own: {**own, Q: own[Q] * torch.nan}, r"q_proj\.weight: its LoRA matrices hold values that are not"),
        (
            lambda own: {**own, "base_model.model.score.weight": own[Q].clone()},
            r"holds score\.weight, which the base .* does not",
        ),
        (lambda own: {}, r"tuned: holds no weights to compare with those of .*base"),
    ],
    ids=[
        "another module",
        "another width",
        "a matrix is missing",
        "not finite",
        "a module that is not there",
        "nothing",
    ],
)
def test_a_bad_adapter_is_one_line(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        weight_change_of_folders(*adapted(tmp_path, change))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa_niter_4 changes the base itself"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights lora_ga changes the base itself"),
        ({"kasa_config": {"beta": 1e-4}}, "kasa_config changes the base itself"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(fields: Row, message: str, tmp_path: Path) -> None:
    base, tuned = adapted(tmp_path, lambda own: own)
    path = tuned / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(WeightsError, match=message):
        weight_change_of_folders(base, tuned)


def test_the_command_prints_layers_and_writes_the_table(folders: tuple[Path, Path], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    out = tmp_path / "change.parquet"
    done = CliRunner().invoke(app, ["weights", *map(str, folders), "--out", str(out)])
    assert done.exit_code == 0, done.output
    rows = pq.read_table(out).to_pylist()
    assert rows == weight_change_of_folders(*folders).to_pylist()
    for row in rows:
        if row["level"] in ("layer", "model"):
            assert f"{row['relative_change']:.3g}" in done.output
    quick = CliRunner().invoke(app, ["weights", *map(str, folders), "--norms"])
    assert (quick.exit_code, quick.output) == (0, done.output.replace(f"Wrote {out}\n", ""))


def test_the_command_says_in_one_line_what_is_wrong(folders: tuple[Path, Path]) -> None:
    poison(*folders)
    for arguments, message in (
        ([str(folders[0]), "nowhere"], "nowhere: no such folder"),
        ([*map(str, folders)], "not finite"),
    ):
        done = CliRunner().invoke(app, ["weights", *arguments])
        assert done.exit_code == 2
        assert message in done.output
        assert done.output.startswith("raysft: ")
        assert done.output.count("\n") == 1


@pytest.mark.parametrize(("named", "is_said"), [("somebody/other-model", True), ("models/base", False), ("", False)])
def test_the_command_says_that_an_adapter_names_another_base(named: str, is_said: bool, tmp_path: Path) -> None:
    base, tuned, _ = saved(tiny_base("llama"), "lora", tmp_path)
    path = tuned / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": named}))
    done = CliRunner().invoke(app, ["weights", str(base), str(tuned)])
    assert done.exit_code == 0, done.output
    assert (f"is an adapter of {named}; whether that is" in done.output) == is_said
