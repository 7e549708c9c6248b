"""The same rows, steps and settings give TRL's losses and weights: what differs between the trainers is the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from raysft.corpus.batching import global_batch
from raysft.corpus.tokenize import TokenisedRow
from raysft.models.methods import Tuned, apply_method
from raysft.spec.sweep import MethodSpec
from raysft.training.loop import EpochStats, Hooks, Job, Progress, train
from raysft.training.parallel import DataParallel
from tests.invariants.tiny_models import VOCABULARY, optimisation, random_rows, tiny_base

pytestmark = pytest.mark.invariants

METHODS = {
    "full": MethodSpec(name="full", kind="full"),
    "lora": MethodSpec(name="lora", kind="lora", rank=4, alpha=8),
}
ROWS, BATCH = 12, 4
# Decay is off: TRL leaves norms out of it. So is warm-up: TRL's first step of one has a learning rate of 0, ours not.
SETTINGS = optimisation(batch_size=BATCH, weight_decay=0.0, warmup_steps=0)


@pytest.mark.parametrize("kind", METHODS)
def test_losses_and_weights_are_those_of_trl(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    ours, theirs = (apply_method(tiny_base("llama"), METHODS[kind], 0) for _ in range(2))
    rows = random_rows(ROWS)
    losses = _train_ours(ours, rows)
    assert len(losses) == ROWS // BATCH
    assert losses == pytest.approx(_train_trl(theirs, rows, tmp_path), rel=1e-5)
    weights = dict(theirs.trainable())
    for name, parameter in ours.trainable():
        torch.testing.assert_close(parameter, weights[name], rtol=1e-4, atol=2e-5)


def _train_ours(tuned: Tuned, rows: list[TokenisedRow]) -> list[float]:
    """The loss of each step of an epoch, which the loop tells whoever asks to save."""
    losses: list[float] = []

    def saved(progress: Progress) -> None:
        if progress.running is not None:
            losses.append(progress.running.last_loss)

    def ended(stats: EpochStats) -> None:
        losses.append(stats.last_loss)

    device = torch.device("cpu")
    job = Job(rows=rows, settings=SETTINGS, seed=0, epochs=1, pad_id=0, token_budget=64, device=device)
    engine = DataParallel(tuned.model, tuned.trainable(), SETTINGS)
    assert train(engine, job, Hooks(epoch_ended=ended, should_save=lambda: True, save=saved))
    return losses


def _train_trl(tuned: Tuned, rows: list[TokenisedRow], folder: Path) -> list[float]:
    """The loss of each step of SFTTrainer, which reads the rows in the order of our steps, two at a time."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    order = [index for step in range(ROWS // BATCH) for index in global_batch(ROWS, BATCH, 0, 1, step)]
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": BATCH // 2,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "learning_rate": SETTINGS.learning_rate,
        "lr_scheduler_type": "cosine",
        "weight_decay": SETTINGS.weight_decay,
        "max_grad_norm": SETTINGS.max_grad_norm,
        "max_length": SETTINGS.max_length,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    trainer = SFTTrainer(
        model=tuned.model,
        args=SFTConfig(output_dir=str(folder), **settings),
        train_dataset=Dataset.from_list([_with_labels(rows[index]) for index in order]),
        processing_class=_tokenizer(),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _with_labels(row: TokenisedRow) -> dict[str, list[int]]:
    labels = [-100] * len(row.ids)
    for start, stop in row.spans:
        labels[start:stop] = row.ids[start:stop].tolist()
    return {"input_ids": row.ids.tolist(), "labels": labels}


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token a number; TRL wants a tokenizer, if only for its special tokens."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"t{number}": number for number in range(3, VOCABULARY)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="t3"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
