"""One contender of `training.py`, in a process of its own: load the model, take the steps, say when each ended.

    python benchmarks/training_contenders.py '{"contender": "trl", "method": "full", "dataset": ..., ...}'

Every contender starts from the same files, sees the same 32 examples in each optimiser step in the same order
(raysft's; the peers read their rows in sequence), and uses the same schedule, AdamW and clipping. Packing alone makes
its own batches. The last line of output is a JSON object.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from training_material import MAX_LENGTH, SEED, TEMPLATE

from raysft.corpus.batching import global_batch
from raysft.corpus.example import Example
from raysft.corpus.prompt import render_examples
from raysft.corpus.tokenize import TokenisedRow, tokenise_examples
from raysft.models.load import BaseCache, pad_id
from raysft.models.methods import Tuned, apply_method, packs, prepare
from raysft.spec.grid import Optimisation
from raysft.spec.sweep import MethodSpec, ModelSpec
from raysft.store.layout import open_storage
from raysft.training.loop import EpochStats, Hooks, Job, Progress, train
from raysft.training.parallel import DataParallel

BATCH = 32
MICRO_BATCH = 8  # rows of the peers' micro-batches; they accumulate BATCH / MICRO_BATCH of them
METHODS = {
    "full": MethodSpec(name="full", kind="full"),
    "lora": MethodSpec(name="lora", kind="lora", rank=8, alpha=16, targets="all-linear"),
}


@dataclass(frozen=True)
class Request:
    """One run: who, on what, how long. `folder` is what `training_material.py` wrote."""

    contender: str
    method: str
    dataset: str
    folder: str
    steps: int
    device: str
    dtype: str
    token_budget: int
    learning_rate: float


@dataclass
class Outcome:
    """Seconds (from any start) and real tokens so far at the end of each step, losses by step, memory in bytes."""

    at: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rows_tokens: int = 0
    rows_supervised: int = 0
    rows_flops: float = 0.0
    loaded_bytes: int = 0
    peak_bytes: int = 0


class Bench:
    """The material of a run, loaded: rows in the order of training, settings, and the clock."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.device = torch.device(request.device)
        self.folder = Path(request.folder)
        content = json.loads((self.folder / f"{request.dataset}.json").read_text())
        self.examples = [Example(*pair) for pair in content][: request.steps * BATCH]
        self.outcome = Outcome()
        self.settings = Optimisation(
            learning_rate=request.learning_rate,
            batch_size=BATCH,
            weight_decay=0.0,
            warmup_steps=0,
            max_length=MAX_LENGTH,
            max_grad_norm=1.0,
            schedule="cosine",
            dtype=request.dtype,
            template=TEMPLATE.name,
        )

    def order(self) -> list[int]:
        """Indices of the examples as raysft's steps take them."""
        count = len(self.examples)
        steps = (global_batch(count, BATCH, SEED, 1, step) for step in range(self.request.steps))
        return [index for step in steps for index in step]

    def tuned(self) -> tuple[Tuned, Any]:
        """The base with the method applied, and its tokenizer."""
        before = psutil.Process().memory_info().rss
        spec = ModelSpec(name="base", path=self.folder / "model")
        base = BaseCache().get(open_storage(str(self.folder)), spec, "float32", self.device)
        weights = sum(parameter.numel() * parameter.element_size() for parameter in base.model.parameters())
        self.outcome.loaded_bytes = weights if self.device.type == "cuda" else before + weights
        return apply_method(base, METHODS[self.request.method], SEED), base.tokenizer

    def now(self) -> float:
        """Seconds, when the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def peak(self) -> int:
        """Most bytes that the process (or, on a GPU, torch's allocator) ever held."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def account(self, rows: Sequence[TokenisedRow], model: Any) -> None:
        """Note the tokens of the rows and the floating-point operations that their loss needs."""
        self.outcome.rows_tokens = sum(len(row.ids) for row in rows)
        self.outcome.rows_supervised = sum(row.supervised for row in rows)
        self.outcome.rows_flops = needed_flops(model, rows, self.request.method)


def needed_flops(model: Any, rows: Sequence[TokenisedRow], method: str) -> float:
    """Floating-point operations of one training pass over the rows, without padding or recomputation.

    Two a weight and token forward, two for the gradient of the input, and two for that of the weight where it trains;
    causal attention counts the half that is not masked; the output layer counts at supervised positions only.
    """
    text = model.config.get_text_config()
    layers = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name and "lora_" not in name
    )
    per_weight = 6 if method == "full" else 4
    attention = sum(len(row.ids) ** 2 for row in rows) * 6 * text.num_hidden_layers * text.hidden_size
    output = sum(row.supervised for row in rows) * per_weight * text.vocab_size * text.hidden_size
    return float(sum(len(row.ids) for row in rows) * per_weight * layers + attention + output)


def run_raysft(bench: Bench) -> None:
    """Our own loop, as a trial sets it up, told its time by the questions that it asks before each step."""
    tuned, tokenizer = bench.tuned()
    packed = packs(tuned.base, "auto", bench.settings.dtype, bench.device)
    prepare(tuned, activation_checkpointing=False, compiled=False, packed=packed)
    rows = tokenise_examples(bench.examples, tokenizer, TEMPLATE, MAX_LENGTH)
    bench.account(rows, tuned.model)
    outcome = bench.outcome
    started: list[float] = []

    def starting() -> bool:
        started.append(bench.now())
        return True

    def keep(progress: Progress | EpochStats) -> None:
        stats = progress.running if isinstance(progress, Progress) else progress
        if stats is not None:
            outcome.losses.append(stats.last_loss)
            outcome.tokens.append(stats.tokens)

    hooks = Hooks(epoch_ended=keep, should_save=starting, save=keep)
    job = Job(
        rows=rows,
        settings=bench.settings,
        seed=SEED,
        epochs=1,
        pad_id=pad_id(tokenizer),
        token_budget=bench.request.token_budget,
        device=bench.device,
        noise=tuned.noise,
        packed=packed,
    )
    train(DataParallel(tuned.model, tuned.trainable(), bench.settings), job, hooks)
    outcome.at = [*started[1:], bench.now()]


def _common_arguments(bench: Bench) -> dict[str, Any]:
    """What every Hugging Face contender is told; all else is its own default."""
    return {
        "output_dir": str(bench.folder / "unused"),
        "per_device_train_batch_size": MICRO_BATCH,
        "gradient_accumulation_steps": BATCH // MICRO_BATCH,
        "num_train_epochs": 1,
        "learning_rate": bench.settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": bench.settings.max_grad_norm,
        "train_sampling_strategy": "sequential",
        "bf16": bench.settings.dtype == "bfloat16",
        "use_cpu": bench.device.type == "cpu",
        "seed": SEED,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _run_trainer(bench: Bench, trainer: Any) -> None:
    """Train with a Hugging Face trainer and take over its losses and its times."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers ships no types
        def on_step_end(self, *_: Any, **__: Any) -> None:
            bench.outcome.at.append(bench.now())

    trainer.add_callback(Clock())
    trainer.train()
    bench.outcome.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def run_transformers(bench: Bench) -> None:
    """`transformers.Trainer`, labels of -100 on the prompt, and the padding collator of its examples."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tuned, tokenizer = bench.tuned()
    rows = tokenise_examples(bench.examples, tokenizer, TEMPLATE, MAX_LENGTH)
    bench.account(rows, tuned.model)
    ordered = [rows[index] for index in bench.order()]
    trainer = Trainer(
        model=tuned.model,
        args=TrainingArguments(**_common_arguments(bench)),
        train_dataset=Dataset.from_list([{"input_ids": row.ids, "labels": labels(row)} for row in ordered]),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    _run_trainer(bench, trainer)
    bench.outcome.tokens = _tokens_by_step(ordered)


def run_trl(bench: Bench, packing: bool = False, checkpointing: bool = True) -> None:
    """TRL's SFTTrainer on prompt and completion texts; raises if it did not tokenise them as we do."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tuned, tokenizer = bench.tuned()
    rows = tokenise_examples(bench.examples, tokenizer, TEMPLATE, MAX_LENGTH)
    bench.account(rows, tuned.model)
    rendered = render_examples([bench.examples[index] for index in bench.order()], tokenizer, TEMPLATE)
    texts = [{"prompt": one.text[: one.spans[0][0]], "completion": one.text[one.spans[0][0] :]} for one in rendered]
    arguments = _common_arguments(bench)
    if packing:
        arguments.update(_packed_batches(bench, rows))
    trainer = SFTTrainer(
        model=tuned.model,
        args=SFTConfig(
            **arguments,
            max_length=MAX_LENGTH,
            completion_only_loss=True,
            packing=packing,
            gradient_checkpointing=checkpointing,
        ),
        train_dataset=Dataset.from_list(texts),
        processing_class=tokenizer,
    )
    ordered = [rows[index] for index in bench.order()]
    if not packing:
        for theirs, ours in zip(trainer.train_dataset, ordered, strict=True):
            assert (theirs["input_ids"], theirs["labels"]) == (list(ours.ids), labels(ours)), "rows differ"
    _run_trainer(bench, trainer)
    bench.outcome.tokens = _tokens_by_step(ordered) if not packing else _logged_tokens(trainer)


def _packed_batches(bench: Bench, rows: Sequence[TokenisedRow]) -> dict[str, int]:
    """Packs of a step: about the tokens of a padded step, rounded up.

    TRL lays the packs of a micro-batch end to end. With flash attention (a GPU) that costs nothing; without it every
    token is compared with every other, so there a micro-batch is one pack: the fastest that TRL allows.
    """
    packs = -(-sum(len(row.ids) for row in rows) // (bench.request.steps * MAX_LENGTH))
    together = min(MICRO_BATCH, packs) if bench.device.type == "cuda" else 1
    return {"per_device_train_batch_size": together, "gradient_accumulation_steps": -(-packs // together)}


def labels(row: TokenisedRow) -> list[int]:
    """The ids, with -100 where there is no loss."""
    wanted = [-100] * len(row.ids)
    for start, stop in row.spans:
        wanted[start:stop] = row.ids[start:stop]
    return wanted


def _tokens_by_step(ordered: Sequence[TokenisedRow]) -> list[int]:
    """Real tokens at the end of each step."""
    lengths = [len(row.ids) for row in ordered]
    return [sum(lengths[:stop]) for stop in range(BATCH, len(lengths) + 1, BATCH)]


def _logged_tokens(trainer: Any) -> list[int]:
    """Real tokens at the end of each step, as TRL counted them: a pack has no padding."""
    return [int(entry["num_tokens"]) for entry in trainer.state.log_history if "loss" in entry]


CONTENDERS: dict[str, Callable[[Bench], None]] = {
    "raysft": run_raysft,
    "trl": run_trl,
    "trl_packing": lambda bench: run_trl(bench, packing=True),
    "transformers": run_transformers,
    "trl_no_checkpointing": lambda bench: run_trl(bench, checkpointing=False),
    "trl_packing_no_checkpointing": lambda bench: run_trl(bench, packing=True, checkpointing=False),
}


def main(request: Request) -> None:
    """Run one contender and print its outcome."""
    torch.manual_seed(SEED)
    bench = Bench(request)
    CONTENDERS[request.contender](bench)
    bench.outcome.peak_bytes = bench.peak()
    print(json.dumps(asdict(bench.outcome)))


if __name__ == "__main__":
    main(Request(**json.loads(sys.argv[1])))
