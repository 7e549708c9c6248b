"""What must not change the numbers of a training, and what must: over three architectures and both methods."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raysft.corpus.batching import global_batch
from raysft.models.methods import Tuned, apply_method
from raysft.probes.weights.change import weight_change
from raysft.probes.weights.low_rank import low_rank_norm, low_rank_update
from raysft.spec.sweep import MethodSpec
from raysft.training.loop import (
    DivergenceError,
    EpochStats,
    Hooks,
    Job,
    MemoryFloorError,
    Progress,
    learning_rate_at,
    train,
)
from raysft.training.loss import token_log_probabilities
from raysft.training.parallel import DataParallel
from tests.invariants.tiny_models import FAMILIES, optimisation, random_rows, tiny_base

pytestmark = pytest.mark.invariants

METHODS = {
    "full": MethodSpec(name="full", kind="full"),
    "lora": MethodSpec(name="lora", kind="lora", rank=4, alpha=8, dropout=0.1),
    "noisy": MethodSpec(name="noisy", kind="full", freeze_embeddings=True, neftune_alpha=5),
    "dora": MethodSpec(name="dora", kind="lora", rank=4, alpha=8, dora=True, rslora=True, init="gaussian"),
}
CASES = [(family, method) for family in FAMILIES for method in ("full", "lora")]
CASES += [("llama", "noisy"), ("llama", "dora")]


def _job(**changes: Any) -> Job:
    given: dict[str, Any] = {
        "rows": random_rows(20),
        "settings": optimisation(),
        "seed": 0,
        "epochs": 2,
        "pad_id": 0,
        "token_budget": 64,
        "device": torch.device("cpu"),
    }
    return Job(**{**given, **changes})


def _train(family: str, method: MethodSpec, job: Job) -> tuple[list[EpochStats], dict[str, torch.Tensor]]:
    tuned = apply_method(tiny_base(family), method, job.seed)
    return _train_tuned(tuned, job), _weights(tuned)


def _train_tuned(tuned: Tuned, job: Job) -> list[EpochStats]:
    history: list[EpochStats] = []
    engine = DataParallel(tuned.model, tuned.trainable(), job.settings)
    assert train(engine, replace(job, noise=tuned.noise), Hooks(epoch_ended=history.append))
    return history


def _weights(tuned: Tuned) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in tuned.trainable()}


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_token_budget_does_not_change_the_numbers(family: str, kind: str) -> None:
    """Dropout and NEFTune included: their draws belong to a row, not to a micro-batch."""
    histories, weights = zip(
        *(_train(family, METHODS[kind], _job(token_budget=budget)) for budget in (1, 64, 4096)), strict=True
    )
    for history, weight in zip(histories[1:], weights[1:], strict=True):
        for mine, first in zip(history, histories[0], strict=True):
            assert mine.loss == pytest.approx(first.loss, rel=1e-5)
            assert mine.grad_norm == pytest.approx(first.grad_norm, rel=1e-4)
        for name, tensor in weight.items():
            torch.testing.assert_close(tensor, weights[0][name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("stop_at", [2, 3, 4], ids=["inside the first epoch", "its boundary", "inside the second"])
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_stopped_and_resumed_is_straight_bit_for_bit(family: str, kind: str, stop_at: int, tmp_path: Path) -> None:
    job = _job(epochs=2)  # 3 steps each
    straight_history, straight = _train(family, METHODS[kind], job)

    first = apply_method(tiny_base(family), METHODS[kind], job.seed)
    engine = DataParallel(first.model, first.trainable(), job.settings)
    epochs: list[EpochStats] = []
    kept: list[Progress] = []
    asked = iter(range(100))
    hooks = Hooks(
        epoch_ended=epochs.append,
        should_stop=lambda: next(asked) == stop_at,
        should_save=lambda: True,
        save=kept.append,
    )
    assert not train(engine, replace(job, noise=first.noise), hooks)
    assert kept[-1].steps == stop_at
    first.save(tmp_path)
    engine.save_optimizer(tmp_path)
    position = Progress.from_json(json.loads(json.dumps(kept[-1].as_json())))

    second = apply_method(tiny_base(family), METHODS[kind], job.seed + 7)  # nothing of its own start may survive
    second.load(tmp_path)
    engine = DataParallel(second.model, second.trainable(), job.settings)
    engine.load_optimizer(tmp_path)
    assert train(engine, replace(job, noise=second.noise), Hooks(epoch_ended=epochs.append), position)
    assert epochs == straight_history
    for name, tensor in _weights(second).items():
        assert torch.equal(tensor, straight[name]), name


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_seed_decides_everything(family: str, kind: str) -> None:
    same, other = _train(family, METHODS[kind], _job()), _train(family, METHODS[kind], _job(seed=1))
    again = _train(family, METHODS[kind], _job())
    assert same[0] == again[0]
    assert all(torch.equal(same[1][name], again[1][name]) for name in same[1])
    assert same[0] != other[0]


def test_the_seed_draws_the_lora_matrices() -> None:
    drawn = [_weights(apply_method(tiny_base("llama"), METHODS["lora"], seed)) for seed in (0, 0, 1)]
    name = next(name for name in drawn[0] if "lora_A" in name)
    assert torch.equal(drawn[0][name], drawn[1][name])
    assert not torch.equal(drawn[0][name], drawn[2][name])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_losses_are_those_of_a_plain_loop(family: str) -> None:
    """A loop without any of our parts: one row at a time, all logits, labels shifted by the model."""
    job = _job(epochs=1)
    history, weights = _train(family, METHODS["full"], job)
    model = tiny_base(family).model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=job.settings.weight_decay)
    losses = []
    for step in range(3):
        rows = [job.rows[index] for index in global_batch(20, 8, 0, 1, step)]
        count = sum(row.supervised for row in rows)
        optimizer.zero_grad()
        total = 0.0
        for row in rows:
            ids = torch.tensor([row.ids.tolist()])
            labels = torch.full_like(ids, -100)
            for start, stop in row.spans:
                labels[0, start:stop] = ids[0, start:stop]
            loss = model(input_ids=ids, labels=labels).loss * row.supervised
            (loss / count).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate_at(job.settings, step, 3)
        optimizer.step()
        losses.append((total, count))
    mean = sum(total for total, _ in losses) / sum(count for _, count in losses)
    assert history[0].loss == pytest.approx(mean, rel=1e-5)
    assert history[0].last_loss == pytest.approx(losses[-1][0] / losses[-1][1], rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_scoring_some_positions_gives_their_full_logits(family: str) -> None:
    from raysft.corpus.batching import pad_rows

    model, batch = tiny_base(family).model.eval(), pad_rows(random_rows(5), 0)
    with torch.no_grad():
        scored = token_log_probabilities(model, batch)
        logits = model(input_ids=batch.input_ids, attention_mask=batch.tokens.long()).logits[:, :-1]
        every = logits.float().log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(scored, every[batch.supervised[:, 1:]], rtol=1e-5, atol=1e-5)


def test_out_of_memory_halves_the_budget_and_keeps_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    from raysft.training import loop

    expected, _ = _train("llama", METHODS["full"], _job(epochs=1, token_budget=4096))
    real = loop.summed_loss

    def starved(model: Any, batch: Any, chunked: bool) -> torch.Tensor:
        if batch.input_ids.numel() > 100:
            raise torch.OutOfMemoryError("injected")
        return real(model, batch, chunked)

    monkeypatch.setattr(loop, "summed_loss", starved)
    history, _ = _train("llama", METHODS["full"], _job(epochs=1, token_budget=4096))
    assert history[0].oom_retries >= 1
    assert history[0].loss == pytest.approx(expected[0].loss, rel=1e-5)


def test_out_of_memory_at_the_floor_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    from raysft.training import loop

    def starved(model: Any, batch: Any, chunked: bool) -> torch.Tensor:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(loop, "summed_loss", starved)
    with pytest.raises(MemoryFloorError, match="out of memory with one row of"):
        _train("llama", METHODS["full"], _job())


def test_out_of_memory_in_the_optimizer_repeats_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, straight = _train("llama", METHODS["full"], _job(epochs=1, token_budget=4096))
    tuned = apply_method(tiny_base("llama"), METHODS["full"], 0)
    engine = DataParallel(tuned.model, tuned.trainable(), optimisation())
    real, calls = engine.optimizer.step, iter(range(100))

    def starved() -> None:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("injected")
        real()

    monkeypatch.setattr(engine.optimizer, "step", starved)
    history: list[EpochStats] = []
    assert train(engine, _job(epochs=1, token_budget=4096), Hooks(epoch_ended=history.append))
    assert history[0].oom_retries == 1
    assert history[0].loss == pytest.approx(expected[0].loss, rel=1e-5)
    for name, tensor in _weights(tuned).items():
        torch.testing.assert_close(tensor, straight[name], rtol=1e-4, atol=2e-5)


def test_divergence_stops_the_trial_with_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from raysft.training import loop

    calls = iter(range(100))
    real = loop.summed_loss
    monkeypatch.setattr(loop, "summed_loss", lambda m, b, c: real(m, b, c) * (math.nan if next(calls) == 1 else 1))
    tuned = apply_method(tiny_base("llama"), METHODS["full"], 0)
    with pytest.raises(DivergenceError, match="at step 2, epoch 1"):
        _train_tuned(tuned, _job(token_budget=4096))
    assert all(bool(tensor.isfinite().all()) for tensor in _weights(tuned).values())


@pytest.mark.parametrize("kind", METHODS)
def test_a_base_is_whole_again_after_a_trial(kind: str) -> None:
    base = tiny_base("llama")
    tuned = apply_method(base, METHODS[kind], 0)
    _train_tuned(tuned, _job(epochs=1))
    tuned.detach()
    assert set(dict(base.model.named_parameters())) == set(base.original)
    for name, parameter in base.model.named_parameters():
        assert torch.equal(parameter, base.original[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_measuring_a_merged_lora_leaves_the_base_exact(family: str) -> None:
    tuned = apply_method(tiny_base(family), METHODS["lora"], 0)
    _train_tuned(tuned, _job(epochs=1))
    ids = torch.tensor([random_rows(1)[0].ids.tolist()])
    tuned.model.eval()
    with torch.no_grad():
        adapted = tuned.model(input_ids=ids).logits
        with tuned.plain() as model:
            torch.testing.assert_close(model(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-5)
    frozen = {name: module.get_base_layer().weight for name, module in tuned.lora_modules()}
    assert len(frozen) == 2 * 7
    assert all(torch.equal(weight, tuned.base.original[f"{name}.weight"]) for name, weight in frozen.items())


@pytest.mark.parametrize("family", ["gemma2", "llama"])
@pytest.mark.parametrize(("target", "other"), [("lm_head", "model.embed_tokens"), ("embed_tokens", "lm_head")])
def test_lora_of_one_of_two_modules_that_share_their_weight_is_refused(family: str, target: str, other: str) -> None:
    base, method = tiny_base(family), MethodSpec(name="ends", kind="lora", rank=2, targets=(target, "q_proj"))
    if family == "llama":  # whose output layer has a weight of its own
        assert len(apply_method(base, method, 0).lora_modules()) == 3
        return
    with pytest.raises(ValueError, match=rf"^methods\.ends\.targets: \S*{target} has the weight of {other} too"):
        apply_method(base, method, 0)
    assert {name for name, _ in base.model.named_parameters()} == base.original.keys(), "no adapter is left on the base"


@pytest.mark.parametrize("kind", METHODS)
def test_only_the_layers_of_a_depth_range_move(kind: str) -> None:
    method = METHODS[kind].model_copy(update={"depth": (0.9, 1.0)})
    tuned = apply_method(tiny_base("llama"), method, 0)
    _train_tuned(tuned, _job(epochs=1))
    rows = weight_change(tuned).to_pylist()
    changed = {row["layer"] for row in rows if row["level"] == "layer" and row["change_norm"] > 0}
    assert changed == {1}


@pytest.mark.parametrize("kind", METHODS)
def test_a_checkpoint_holds_the_trained_weights(kind: str, tmp_path: Path) -> None:
    tuned = apply_method(tiny_base("gemma2"), METHODS[kind], 0)
    _train_tuned(tuned, _job(epochs=1))
    tuned.save(tmp_path)
    weights = _weights(tuned)
    other = apply_method(tiny_base("gemma2"), METHODS[kind], 5)
    other.load(tmp_path)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in _weights(other).items())
    if kind == "lora":
        saved = sum(tensor.numel() for tensor in load_file(tmp_path / "adapter_model.safetensors").values())
        assert saved == sum(tensor.numel() for tensor in weights.values())


def test_low_rank_norms_are_those_of_the_merged_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    b = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    assert low_rank_norm(a, b, 1.7) == pytest.approx(float(torch.linalg.matrix_norm(1.7 * b @ a)), rel=1e-10)


def test_low_rank_norms_of_factors_that_nearly_cancel() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, rest = (torch.randn(sizes, generator=generator, dtype=torch.float64) for sizes in ((1, 30), (20, 1), (20, 1)))
    a, b = torch.cat([a, -a]), torch.cat([b, b + 1e-7 * rest], dim=1)
    expected = float(torch.linalg.vector_norm(b[:, 1] - b[:, 0]) * torch.linalg.vector_norm(a[0]))
    assert low_rank_norm(a, b, 1.0) == pytest.approx(expected, rel=1e-7)
    assert low_rank_update("t", a, b, 1.0, 1.0).change_norm == pytest.approx(expected, rel=1e-7)


def test_weight_change_of_a_known_step() -> None:
    tuned = apply_method(tiny_base("llama"), METHODS["full"], 0)
    name = "layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        dict(tuned.model.named_parameters())[f"model.{name}"].mul_(1.25)
    rows = {row["tensor"]: row for row in weight_change(tuned).to_pylist()}
    assert rows[name]["relative_change"] == pytest.approx(0.25, rel=1e-5)
    assert (rows[name]["layer"], rows[name]["depth"], rows[name]["module"]) == (1, 1.0, "up_proj")
    assert rows["layers.0.mlp.up_proj.weight"]["relative_change"] == 0
    assert rows["layers.0.mlp.up_proj.weight"]["zero_fraction"] == 1


def test_learning_rates() -> None:
    cosine = optimisation(learning_rate=1.0, warmup_steps=2)
    assert [learning_rate_at(cosine, step, 6) for step in (0, 1, 2, 4)] == pytest.approx([0.5, 1.0, 1.0, 0.5])
    constant = optimisation(learning_rate=1.0, warmup_steps=2, schedule="constant")
    assert [learning_rate_at(constant, step, total) for step, total in ((0, 6), (0, 60), (5, 6))] == [0.5, 0.5, 1.0]
