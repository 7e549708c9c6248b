"""Measures of updates: known answers, LoRA against the merged difference, blocks of any size, pooled levels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from raysft.models.methods import Tuned, apply_method
from raysft.probes.weights import dense_update as dense
from raysft.probes.weights.change import weight_change
from raysft.probes.weights.dense_update import dense_update, frobenius_norm
from raysft.probes.weights.low_rank import low_rank_update
from raysft.probes.weights.measures import Measured, WeightsError, weight_change_table
from raysft.probes.weights.rows import Layout, TensorRows
from raysft.spec.sweep import MethodSpec
from tests.invariants.tiny_models import tiny_base

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
}


def rows(tensor: torch.Tensor) -> TensorRows:
    return TensorRows(tensor, Layout(tuple(tensor.shape)))


def drawn(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def change(update: torch.Tensor, dtype: torch.dtype = torch.float64, **options: Any) -> Measured:
    base = drawn(*update.shape, seed=99)
    return dense_update(
        "layers.0.mlp.up_proj.weight", rows(base.to(dtype)), rows((base + update).to(dtype)), CPU, **options
    )


def test_a_rank_one_update_has_known_measures() -> None:
    left, right = torch.zeros(30, 1, dtype=torch.float64), torch.ones(1, 20, dtype=torch.float64)
    left[:10] = -2.0
    found = change(left @ right)
    assert found.change_norm == pytest.approx(2 * math.sqrt(200))
    assert found.stable_rank == pytest.approx(1)
    assert found.singular_values == pytest.approx([2 * math.sqrt(200), *[0.0] * 7], abs=1e-6)
    assert found.mean_absolute_change == pytest.approx(2 / 3)
    assert found.zero_fraction == pytest.approx(2 / 3)


def test_a_multiple_of_an_orthogonal_matrix_has_full_stable_rank() -> None:
    found = change(0.1 * torch.linalg.qr(drawn(16, 16)).Q)
    assert found.stable_rank == pytest.approx(16)
    assert found.singular_values == pytest.approx([0.1] * 8)


def test_nothing_moved() -> None:
    found = change(torch.zeros(12, 20, dtype=torch.float64))
    assert (found.change_norm, found.zero_fraction, found.stable_rank) == (0, 1, None)
    assert found.singular_values == [0] * 8
    assert found.left is None


@pytest.mark.parametrize("sizes", [(400, 90), (90, 400), (12, 5), (700, 1)])
def test_the_size_of_a_block_changes_nothing(sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    update = 1e-3 * drawn(*sizes)
    whole, small = change(update, torch.float32), change(update, torch.float32, block=7 * sizes[1])
    monkeypatch.setattr(dense, "_HELD", 0)  # and nor does reading the difference again for every pass
    streamed = change(update, torch.float32, block=1)
    for other in (small, streamed):
        for name in ("base_norm", "change_norm", "mean_absolute_change"):
            assert getattr(other, name) == pytest.approx(getattr(whole, name), rel=1e-7), name
        assert other.zero_fraction == whole.zero_fraction
        assert other.singular_values == pytest.approx(whole.singular_values, rel=1e-5)
        assert other.sketch is not None
        assert whole.sketch is not None
        torch.testing.assert_close(other.sketch, whole.sketch, rtol=1e-5, atol=1e-7)
        assert other.left is not None
        assert whole.left is not None
        torch.testing.assert_close(overlap(other.left, whole.left), torch.ones(()).double(), rtol=0, atol=1e-3)


def overlap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How much of the span of the columns of `a` lies in that of `b`."""
    found = [torch.linalg.svd(side.double(), full_matrices=False) for side in (a, b)]
    bases = [vectors[:, sizes / sizes[0] > 1e-6] for vectors, sizes, _ in found]
    shared: torch.Tensor = torch.linalg.matrix_norm(bases[0].T @ bases[1]) ** 2 / bases[0].shape[1]
    return shared


def test_norms_of_float_weights_are_those_of_double_precision() -> None:
    base, update = drawn(300, 200).float(), (1e-4 * drawn(300, 200, seed=1)).float()
    tuned = base + update
    found = dense_update("x", rows(base), rows(tuned), CPU)
    exact = tuned.double() - base.double()
    assert found.change_norm == pytest.approx(float(torch.linalg.matrix_norm(exact)), rel=1e-7)
    assert found.mean_absolute_change == pytest.approx(float(exact.abs().mean()), rel=1e-6)
    assert found.base_norm == pytest.approx(float(torch.linalg.matrix_norm(base.double())), rel=1e-7)
    assert found.base_norm == frobenius_norm("x", rows(base), CPU)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0], ids=["flat", "slow", "power law"])
def test_singular_values_are_within_the_stated_tolerance(decay: float) -> None:
    left, right = torch.linalg.qr(drawn(900, 500)).Q, torch.linalg.qr(drawn(500, 500, seed=1)).Q
    update = drawn(900, 500, seed=2)
    if decay:
        update = left * torch.arange(1, 501).double() ** -decay @ right
    exact = torch.linalg.svdvals(update)[:8]
    found = torch.tensor(change(1e-3 * update, torch.float32).singular_values).double() / 1e-3
    assert (found <= exact * (1 + 1e-3)).all()
    assert (found >= exact * (0.97 if decay == 0 else 0.995)).all()


def test_a_weight_that_is_not_finite_is_refused_by_name() -> None:
    bad = drawn(8, 8)
    bad[3, 3] = math.nan
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj\.weight: holds weights that are not finite"):
        change(bad)


def test_low_rank_measures_are_those_of_the_product() -> None:
    a, b = drawn(4, 300), drawn(200, 4, seed=1)
    update = 1.7 * b @ a
    found = low_rank_update("x", a, b, 1.7, 1.0)
    exact = torch.linalg.svdvals(update)
    assert found.change_norm == pytest.approx(float(torch.linalg.matrix_norm(update)), rel=1e-10)
    assert found.singular_values == pytest.approx(exact[:4].tolist(), rel=1e-10)
    assert found.stable_rank == pytest.approx(float((exact**2).sum() / exact[0] ** 2), rel=1e-10)
    assert found.mean_absolute_change == pytest.approx(float(update.abs().mean()), rel=0.02)


@pytest.mark.parametrize("sizes", [(5, 300), (300, 5), (12, 10)], ids=["outputs", "inputs", "both"])
def test_a_rank_above_the_outputs_or_inputs_is_measured_as_the_product(sizes: tuple[int, int]) -> None:
    outputs, inputs = sizes
    a, b = drawn(16, inputs), drawn(outputs, 16, seed=1)
    found = low_rank_update("layers.0.mlp.up_proj.weight", a, b, 0.5, 1.0)
    exact = change(0.5 * b @ a)
    assert found.change_norm == pytest.approx(exact.change_norm, rel=1e-10)
    assert found.singular_values == pytest.approx(exact.singular_values, rel=1e-8)
    for ours, theirs in ((found.left, exact.left), (found.right, exact.right)):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(overlap(ours, theirs), torch.ones(()).double(), rtol=0, atol=1e-3)


def test_few_rows_of_a_low_rank_update_are_not_estimated() -> None:
    a, b = drawn(3, 50), drawn(40, 3, seed=1)
    assert low_rank_update("x", a, b, 0.5, 1.0).mean_absolute_change == pytest.approx(float((0.5 * b @ a).abs().mean()))


def test_unequal_rows_of_a_low_rank_update_are_estimated_within_a_few_percent() -> None:
    worst = 0.0
    for seed in range(10):
        b = drawn(3000, 8, seed=seed) * torch.exp(drawn(3000, 1, seed=100 + seed))
        a = drawn(8, 200, seed=200 + seed) * torch.exp(0.5 * drawn(1, 200, seed=300 + seed))
        exact = float((b @ a).abs().mean())
        worst = max(worst, abs(low_rank_update("x", a, b, 1.0, 1.0).mean_absolute_change / exact - 1))
    assert worst < 0.03


def test_lora_of_an_embedding_is_measured_as_if_merged() -> None:
    tuned = moved({"targets": ("embed_tokens", "lm_head")})
    tensors = {row["tensor"]: row for row in weight_change(tuned).to_pylist() if row["level"] == "tensor"}
    original = {name: tuned.base.original[name].double() for name in ("model.embed_tokens.weight", "lm_head.weight")}
    tuned.model.double().merge_adapter()
    for name, module in tuned.lora_modules():
        row = tensors.pop(f"{name}.weight".removeprefix("model."))
        merged = module.get_base_layer().weight.detach() - original[f"{name}.weight"]
        assert row["change_norm"] == pytest.approx(float(torch.linalg.matrix_norm(merged)), rel=1e-10)
        assert row["singular_values"][:4] == pytest.approx(torch.linalg.svdvals(merged)[:4].tolist(), rel=1e-8)
    assert not tensors


def test_dora_of_an_embedding_is_refused() -> None:
    tuned = moved({"targets": ("embed_tokens",), "dora": True})
    with pytest.raises(WeightsError, match=r"^DoRA of model\.embed_tokens\.weight, an embedding, is not measured$"):
        weight_change(tuned)


def moved(options: dict[str, Any], family: str = "llama") -> Tuned:
    """A LoRA of a tiny model whose matrices are all drawn at random."""
    tuned = apply_method(tiny_base(family), MethodSpec(name="m", kind="lora", rank=4, alpha=6, **options), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return tuned


@pytest.mark.parametrize("method", METHODS)
def test_adapters_are_measured_as_if_merged(method: str) -> None:
    tuned = moved(METHODS[method])
    tensors = {row["tensor"]: row for row in weight_change(tuned).to_pylist() if row["level"] == "tensor"}
    modules = dict(tuned.lora_modules())
    assert len(tensors) == len(modules) == 14
    for name, module in modules.items():
        row = tensors[f"{name}.weight".removeprefix("model.")]
        weight = module.get_base_layer().weight.double()
        module.double()
        module.merge()
        merged = module.get_base_layer().weight.detach() - weight
        rel = 1e-10 if method != "dora" else 1e-6  # peft keeps DoRA's norms of its own
        assert row["change_norm"] == pytest.approx(float(torch.linalg.matrix_norm(merged)), rel=rel)
        values = torch.linalg.svdvals(merged)[: len(row["singular_values"])]
        assert row["singular_values"] == pytest.approx(values.tolist(), rel=1e-5, abs=1e-8)
        assert (row["zero_fraction"], row["dtype"], row["low_precision"]) == (None, "float32", False)


def test_levels_pool_the_tensors_below_them() -> None:
    tuned = apply_method(tiny_base("qwen3"), MethodSpec(name="full", kind="full"), 0)
    with torch.no_grad():
        for index, parameter in enumerate(tuned.model.parameters()):
            parameter.add_(0.01 * (1 + index % 3) * drawn(*parameter.shape, seed=index).float())
    found = weight_change(tuned).to_pylist()
    tensors = [row for row in found if row["level"] == "tensor"]
    levels = {row["level"] for row in found}
    assert levels == {"tensor", "layer", "outside", "module", "model"}
    assert sum(row["parameters"] for row in tensors) == sum(one.numel() for one in tuned.model.parameters())

    def pooled(chosen: list[dict[str, Any]]) -> float:
        parts = [math.sqrt(sum(row[name] ** 2 for row in chosen)) for name in ("change_norm", "base_norm")]
        return parts[0] / parts[1]

    for row in found:
        below = [
            one
            for one in tensors
            if row["level"] == "model"
            or (row["level"] in ("layer", "outside") and one["layer"] == row["layer"])
            or (row["level"] == "module" and one["module"] == row["module"] and one["layer"] is not None)
        ]
        if row["level"] != "tensor":
            assert row["relative_change"] == pytest.approx(pooled(below))
            assert row["tensors"] == len(below)
            absolute = sum(one["mean_absolute_change"] * one["parameters"] for one in below) / row["parameters"]
            assert row["mean_absolute_change"] == pytest.approx(absolute)
    layer = next(row for row in found if row["level"] == "layer" and row["layer"] == 1)
    by_module = [row["relative_change"] for row in tensors if row["layer"] == 1]
    assert layer["mean_relative_change"] == pytest.approx(sum(by_module) / len(by_module))


def test_low_precision_weights_are_marked() -> None:
    tuned = apply_method(tiny_base("llama"), MethodSpec(name="full", kind="full"), 0)
    assert not any(row["low_precision"] for row in weight_change(tuned).to_pylist())
    for name, tensor in tuned.base.original.items():
        tuned.base.original[name] = tensor.bfloat16()
    tuned.model.bfloat16()
    found = weight_change(tuned).to_pylist()
    assert all(row["low_precision"] for row in found)
    assert {row["dtype"] for row in found} == {"bfloat16"}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_are_low_precision(dtype: torch.dtype) -> None:
    name, base = "layers.0.mlp.up_proj.weight", drawn(8, 8).float()
    found = dense_update(name, rows(base), rows(base.to(dtype)), CPU)
    assert {row["low_precision"] for row in weight_change_table([found], 1).to_pylist()} == {True}


def test_a_tensor_without_entries_has_no_change() -> None:
    empty = dense_update("layers.0.mlp.up_proj.weight", rows(torch.zeros(0, 8)), rows(torch.zeros(0, 8)), CPU)
    assert {row["change_norm"] for row in weight_change_table([empty], 1).to_pylist()} == {0.0}


def test_a_small_step_is_lost_in_bfloat16_and_the_zeros_tell() -> None:
    base, update = drawn(300, 300).float(), 1e-3 * drawn(300, 300, seed=1).float()
    exact = dense_update("x", rows(base), rows(base + update), CPU)
    rounded = dense_update("x", rows(base.bfloat16()), rows((base.bfloat16().float() + update).bfloat16()), CPU)
    assert exact.zero_fraction is not None
    assert rounded.zero_fraction is not None
    assert exact.zero_fraction < 0.01
    assert rounded.zero_fraction > 0.5
