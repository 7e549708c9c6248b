"""Sizes before a run: parameters, adapters, checkpoints and memory, held against real models and published counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raysft.models import micro, output_layer
from raysft.models.load import Base
from raysft.models.methods import Tuned, apply_method
from raysft.spec.grid import expand
from raysft.spec.memory import LOGITS, PROCESS, Step, memory_needs, refuse_what_never_fits, step_memory, too_large
from raysft.spec.recipe import MicroRecipe
from raysft.spec.shape import FAMILIES, ModelShape, folder_shape, recipe_shape
from raysft.spec.size import checkpoint_bytes, decimal, retention, shape_of, trainable_parameters
from raysft.spec.sweep import MethodSpec, SpecError, load_sweep, parse_sweep

pytestmark = pytest.mark.unit

Content = dict[str, Any]
MASSIVE = Path(__file__).parents[2] / "sweeps" / "massive_sft.yaml"
REAL = ("llama", "mistral", "qwen3", "gemma2", "olmo2")
FULL = MethodSpec(name="full", kind="full")
LORA = MethodSpec(name="lora", kind="lora", rank=4)
# Refused where the output layer is the embedding.
OUTPUT = MethodSpec(name="output", kind="lora", targets=("v_proj", "lm_head"))
# Gradients pass through the layers above, of which none trains.
LOWEST = MethodSpec(name="lowest", kind="full", depth=(0.0, 0.0))

METHODS = [
    FULL,
    MethodSpec(name="middle", kind="full", depth=(0.4, 0.8)),
    MethodSpec(name="frozen-ends", kind="full", freeze_embeddings=True),
    LORA,
    MethodSpec(name="named", kind="lora", rank=3, targets=("q_proj", "down_proj", "o_proj")),
    MethodSpec(name="one", kind="lora", targets=("layers.2.self_attn.q_proj",)),
    OUTPUT,
    MethodSpec(name="lora-middle", kind="lora", depth=(0.4, 0.8)),
    MethodSpec(name="named-middle", kind="lora", depth=(0.4, 0.8), targets=("q_proj", "gate_proj")),
    MethodSpec(name="dora", kind="lora", dora=True),
]


def _config(family: str, layers: int = 5, **changes: Any) -> Any:
    sizes = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    head = {"head_dim": 16} if FAMILIES[family].head_dim else {}
    return AutoConfig.for_model(family, **{**sizes, **head, **changes})


def _saved_shape(config: Any, folder: Path) -> ModelShape:
    config.save_pretrained(folder)
    shape = folder_shape(folder)
    assert shape is not None
    return shape


def _tuned(
    family: str, method: MethodSpec, folder: Path, dtype: str = "float32", **changes: Any
) -> tuple[Tuned, ModelShape]:
    config = _config(family, **changes)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    original = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return apply_method(Base(family, model, None, original), method, 0), _saved_shape(config, folder)


@pytest.mark.parametrize("tied", [None, True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_real_model(family: str, tied: bool | None, tmp_path: Path) -> None:
    config = _config(family, layers=2, **({} if tied is None else {"tie_word_embeddings": tied}))
    model = AutoModelForCausalLM.from_config(config)
    assert _saved_shape(config, tmp_path).parameter_count() == model.num_parameters()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("OLMo-7B", 6_888_095_744),
        ("Llama-3-8B", 8_030_261_248),
        ("Mistral-7B", 7_241_732_096),
        ("Gemma-2-9B", 9_241_705_984),
        ("Qwen2.5-7B", 7_615_616_512),
        ("Yi-1.5-9B", 8_829_407_232),
        ("LLM-jp-3-7.2B", 7_292_063_744),
    ],
)
def test_shapes_of_the_papers_grid_give_the_published_counts(name: str, parameters: int) -> None:
    shape = shape_of(load_sweep(MASSIVE).model(name))
    assert shape is not None
    assert shape.parameter_count() == parameters


def test_biases_that_a_configuration_turns_on(tmp_path: Path) -> None:
    config = _config("llama", attention_bias=True, mlp_bias=True)
    assert _saved_shape(config, tmp_path).parameter_count() == AutoModelForCausalLM.from_config(config).num_parameters()


def test_a_recipe_has_the_sizes_of_what_it_pretrains() -> None:
    for family in ("llama", "qwen3", "gemma2", "olmo2"):
        recipe = MicroRecipe(family=family, corpus={"capitals": 1.0}, layers=2, width=96, heads=3, vocabulary=300)
        tokenizer = micro._train_tokenizer(["the capital of balore is tumi."], recipe.vocabulary)
        model = AutoModelForCausalLM.from_config(micro._config(recipe, tokenizer))
        assert recipe_shape(recipe).parameter_count() == model.num_parameters()


def test_a_configuration_that_says_too_little_is_unknown(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    sizes = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    for content in ({"model_type": "mixtral", **sizes, "vocab_size": 9}, {"model_type": "llama", **sizes}):
        file.write_text(json.dumps(content))
        assert folder_shape(tmp_path) is None
    file.write_text(json.dumps({"model_type": "x", "text_config": {"model_type": "llama", **sizes, "vocab_size": 9}}))
    nested = folder_shape(tmp_path)
    assert nested is not None
    assert (nested.vocabulary, nested.head_width, nested.key_width) == (9, 4, 8)


def test_a_damaged_configuration_is_a_mistake_of_one_line(content: Content, tmp_path: Path) -> None:
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        content["models"] = [{"name": "mine", "path": str(tmp_path)}]
        with pytest.raises(SpecError, match=r"^models\.mine\.path: .*config\.json: cannot be read \("):
            shape_of(parse_sweep(content, "test").models[0])


def test_given_sizes_go_before_found_ones(content: Content) -> None:
    sizes = {"family": "llama", "layers": 2, "hidden": 8, "intermediate": 8, "heads": 2, "vocabulary": 9}
    content["models"][0]["shape"] = {**sizes, "parameters": 12345}
    shape = shape_of(parse_sweep(content, "test").models[0])
    assert shape is not None
    assert (shape.parameter_count(), checkpoint_bytes(shape, FULL)) == (12345, 4 * 12345)
    content["models"][0]["shape"] = {**sizes, "family": "gpt5"}
    with pytest.raises(SpecError, match=r"models\.0\.shape\.family: Input should be 'llama', 'mistral'"):
        parse_sweep(content, "test")


@pytest.mark.parametrize(
    ("family", "method"),
    [(family, method) for family in REAL for method in METHODS] + [("qwen2", LORA), ("phi", LORA), ("phi3", LORA)],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_what_a_method_trains_is_what_the_real_one_does(family: str, method: MethodSpec, tmp_path: Path) -> None:
    changes: Content = {"tie_word_embeddings": False} if method == OUTPUT else {}
    tuned, shape = _tuned(family, method, tmp_path, **changes)
    assert trainable_parameters(shape, method) == sum(parameter.numel() for _, parameter in tuned.trainable())


@pytest.mark.parametrize(
    ("method", "tied"),
    [(method, tied) for method in METHODS for tied in (True, False) if not (tied and method == OUTPUT)],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_a_checkpoint_is_as_large_as_it_says(method: MethodSpec, tied: bool, tmp_path: Path) -> None:
    tuned, shape = _tuned("qwen3", method, tmp_path, tie_word_embeddings=tied)
    tuned.save(tmp_path / "checkpoint")
    (file,) = (tmp_path / "checkpoint").glob("*.safetensors")
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert checkpoint_bytes(shape, method) == file.stat().st_size - header


def test_a_depth_range_without_a_layer_is_refused() -> None:
    shape = ModelShape(family="llama", layers=2, hidden=8, intermediate=8, heads=2, vocabulary=9)
    with pytest.raises(SpecError, match=r"methods\.x\.depth: depth \[0\.4, 0\.6\] holds none of the model's 2 layers"):
        trainable_parameters(shape, MethodSpec(name="x", kind="full", depth=(0.4, 0.6)))


def test_what_each_policy_keeps(content: Content) -> None:
    content["grid"] = [
        {"sizes": [32], "epochs": [4], "measure": [1, 3], "schedules": ["constant"], "methods": ["full"]}
    ]
    sweep = parse_sweep(content, "test")
    trials, _ = expand(sweep)
    shape = shape_of(sweep.models[0])
    assert shape is not None
    one = 4 * shape.parameter_count()
    assert len(trials) == 2
    assert [retention(sweep, trials, "measured").checkpoints, retention(sweep, trials, "measured").bytes] == [
        6,
        6 * one,
    ]
    assert [retention(sweep, trials, "last").checkpoints, retention(sweep, trials, "last").bytes] == [2, 2 * one]
    none = retention(sweep, trials, "none")
    assert (none.checkpoints, none.bytes, none.bytes_meanwhile) == (0, 0, 2 * one)


def test_models_without_sizes_are_named_not_guessed(content: Content) -> None:
    content["models"].append({"name": "elsewhere", "hub": "a/b", "revision": "abc"})
    sweep = parse_sweep(content, "test")
    trials, _ = expand(sweep)
    kept = retention(sweep, trials, "last")
    assert kept.unknown == ("elsewhere",)
    assert kept.checkpoints == len(trials)
    assert {need.model for need in memory_needs(sweep, trials)} == {"tiny"}


def test_decimal_units() -> None:
    assert [decimal(count) for count in (12, 81.7e6, 999.7e6, 24.36e12)] == ["12 B", "81.7 MB", "1 GB", "24.4 TB"]


SMALL = ModelShape(
    family="llama", layers=5, hidden=48, intermediate=80, heads=4, kv_heads=2, head_dim=12, vocabulary=97
)
STEP = Step(tokens=256, length=64, supervised=128)


def test_state_is_sixteen_bytes_a_parameter_and_less_for_lora() -> None:
    parameters = SMALL.parameter_count()
    assert step_memory(SMALL, FULL, STEP).state == 16 * parameters
    trained = trainable_parameters(SMALL, LORA)
    assert step_memory(SMALL, LORA, STEP).state == 4 * parameters + 16 * trained


@pytest.mark.parametrize(("stage", "bytes_a_parameter"), [(1, 4 + 4 + 12 / 8), (2, 4 + 16 / 8), (3, 20 / 8)])
def test_zero_divides_state_over_workers(stage: int, bytes_a_parameter: float) -> None:
    memory = step_memory(SMALL, FULL, Step(256, 64, 128, workers=8, stage=stage))
    assert memory.state == bytes_a_parameter * SMALL.parameter_count()


def test_offload_leaves_the_optimiser_to_the_cpu() -> None:
    assert step_memory(SMALL, FULL, Step(256, 64, 128, workers=8, stage=2, offload=True)).optimizer == 0
    assert step_memory(SMALL, FULL, Step(256, 64, 128, workers=8, stage=3, offload=True)).state == 0


def test_logits_are_done_as_many_at_a_time_as_the_loss_does() -> None:
    assert LOGITS == output_layer.MOST_LOGITS


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "pure_bfloat16"])
@pytest.mark.parametrize("method", [FULL, LORA, LOWEST], ids=lambda method: str(method.name))
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "olmo", "phi"])
def test_activations_are_what_autograd_saves(family: str, method: MethodSpec, precision: str, tmp_path: Path) -> None:
    """The difference between five layers and one, so that embedding and output layer are not in it."""
    step = Step(tokens=64, length=32, supervised=0, precision=precision)
    estimates, saved = [], []
    for layers in (1, 5):
        tuned, shape = _tuned(
            family, method, tmp_path, layers=layers, dtype="bfloat16" if precision == "pure_bfloat16" else "float32"
        )
        saved.append(_saved_bytes(tuned.model.train(), 2, 32, autocast=precision == "bfloat16"))
        estimates.append(step_memory(shape, method, step).activations)
    assert estimates[1] - estimates[0] == pytest.approx(saved[1] - saved[0], rel=0.15)


def _saved_bytes(model: Any, rows: int, length: int, autocast: bool) -> int:
    """Bytes of the storages that autograd saves in a forward pass over padded rows, weights not counted."""
    known = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage
        return tensor

    ids = torch.full((rows, length), 5)
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(storage.nbytes() for storage in storages.values())


def test_checkpointing_and_a_smaller_micro_batch_need_less() -> None:
    whole = step_memory(SMALL, FULL, STEP).peak
    assert step_memory(SMALL, FULL, Step(256, 64, 128, checkpointing=True)).peak < whole
    assert step_memory(SMALL, FULL, Step(128, 64, 64)).peak < whole
    assert step_memory(SMALL, FULL, Step(256, 64, 128, accumulates=False)).peak < whole


def test_what_does_not_fit_is_named_with_its_trials(content: Content) -> None:
    content["resources"] = {"memory_per_worker": 0.62}
    sweep = parse_sweep(content, "test")
    trials, _ = expand(sweep)
    head, *lines = too_large(sweep, trials)
    assert head.startswith("Above the 620 MB of resources.memory_per_worker")
    assert [line.split(":")[0] for line in lines] == ["  tiny x full, 2 trials", "  tiny x lora, 2 trials"]
    refuse_what_never_fits(sweep, trials)  # a smaller token budget would do
    content["resources"] = {"memory_per_worker": 100}
    assert too_large(parse_sweep(content, "test"), trials) == []


def test_state_above_what_a_worker_has_is_refused(content: Content) -> None:
    content["resources"] = {"memory_per_worker": (PROCESS + 1e6) / 1e9}
    sweep = parse_sweep(content, "test")
    with pytest.raises(SpecError, match=r"resources\.memory_per_worker: found 601 MB, .* tiny x full take"):
        refuse_what_never_fits(sweep, expand(sweep)[0])
