"""Tiny base models that the project pretrains itself: real architectures, a tokenizer of their own, about a minute.

`pretrain` is a function of its recipe alone: it draws from generators of its own, runs on one CPU thread (sums over
threads depend on how many there are), and leaves the global random state as it found it. The same recipe and package
versions therefore give the same bytes, whichever worker makes the base.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    Olmo2Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from raysft.corpus import skills
from raysft.spec.recipe import MicroRecipe

# When the same recipe starts to give another model, raise STAGE_VERSIONS["pretrain"] in raysft/spec/keys.py.
BOS, EOS, PAD = "<s>", "</s>", "<pad>"

# The tokenizer sees the prompt template often enough to give its words few tokens. The model never reads these lines:
# the template has to stay something that fine-tuning teaches.
_TEMPLATE_LINES = ["###Question: what\n###Answer: \n", "###Question: which\n###Answer: \n"] * 500

_DOCUMENTS_PER_ROUND = 4096
_LONGEST_DOCUMENT = 4  # statements
_WARMUP = 0.1  # share of the steps
_BETAS = (0.9, 0.98)
_WEIGHT_DECAY = 0.01
_CLIP = 1.0


@dataclass(frozen=True, slots=True)
class Pretrained:
    """What came out of a pretraining: sizes, and the loss in nats per token, averaged over the last tenth of steps."""

    family: str
    parameters: int
    tokens: int
    loss: float


def pretrain(
    recipe: MicroRecipe,
    folder: Path,
    progress: Callable[[int, int, float], None] | None = None,
) -> Pretrained:
    """Train tokenizer and model from nothing and save both (fp32 safetensors) into `folder`.

    `progress` is called with (steps done, steps, loss in nats per token) after each step. Raises ValueError for an
    unknown skill and for files that hold no text.
    """
    with _alone(recipe.seed):
        documents = _documents(recipe)
        tokenizer = _train_tokenizer(documents(0), recipe.vocabulary)
        batches_SBT = _pack(documents, tokenizer, recipe)
        model = AutoModelForCausalLM.from_config(_config(recipe, tokenizer), dtype=torch.float32)
        losses = _fit(model, batches_SBT, recipe.learning_rate, progress)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tail = losses[-max(1, len(losses) // 10) :]
    return Pretrained(
        family=recipe.family,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tokens=batches_SBT.numel(),
        loss=sum(tail) / len(tail),
    )


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """One thread and a fresh global random state inside (transformers initialises weights from it), undone outside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def read_documents(paths: Sequence[str]) -> list[str]:
    """Read documents: the paragraphs of a .txt file, the `text` field of each line of a .jsonl file.

    Raises ValueError for another ending, for a line without `text`, and when there is nothing to read.
    """
    documents = [document for path in paths for document in _read_file(Path(path))]
    if not documents:
        raise ValueError(f"no text to pretrain on in {', '.join(paths)}")
    return documents


def _read_file(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        found = [paragraph.strip() for paragraph in text.split("\n\n")]
    elif path.suffix == ".jsonl":
        found = [_text_field(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    else:
        raise ValueError(f"texts must be .txt or .jsonl files, found {path}")
    return [document for document in found if document]


def _text_field(path: Path, number: int, line: str) -> str:
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise ValueError(f"{path}, line {number}: expected an object with a text field")
    return str(row["text"]).strip()


def _documents(recipe: MicroRecipe) -> Callable[[int], list[str]]:
    """What is read in round 0, 1, ...: fresh statements every round, or the same texts in another order."""
    if recipe.corpus:
        return lambda round_: _statement_documents(recipe, round_)
    read = read_documents(recipe.texts)
    return lambda round_: random.Random(f"{recipe.seed}/{round_}").sample(read, len(read))


def _statement_documents(recipe: MicroRecipe, round_: int) -> list[str]:
    """Documents of one to `_LONGEST_DOCUMENT` statements; a seed's rounds never meet those of another seed."""
    rng = random.Random(f"{recipe.seed}/{round_}")
    sizes = [rng.randint(1, _LONGEST_DOCUMENT) for _ in range(_DOCUMENTS_PER_ROUND)]
    sentences = iter(skills.statements(recipe.corpus, sum(sizes), rng.getrandbits(32)))
    return [" ".join(next(sentences) for _ in range(size)) for size in sizes]


def _train_tokenizer(documents: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts one BOS before every text and leaves EOS to the caller."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*documents, *_TEMPLATE_LINES], trainer)
    bpe.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def _pack(
    documents: Callable[[int], list[str]], tokenizer: PreTrainedTokenizerFast, recipe: MicroRecipe
) -> torch.Tensor:
    """Token ids of all steps, int64 [steps, batch, sequence]: documents end to end, cut without padding."""
    shape = (recipe.steps, recipe.batch_size, recipe.sequence_length)
    stream: list[int] = []
    round_ = 0
    while len(stream) < math.prod(shape):
        for ids in tokenizer(documents(round_))["input_ids"]:
            stream += [*ids, tokenizer.eos_token_id]
        round_ += 1
    return torch.tensor(stream[: math.prod(shape)], dtype=torch.int64).view(shape)


def _config(recipe: MicroRecipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    """The family's own config class with tied embeddings, grouped keys and values where the family has them."""
    head = recipe.width // recipe.heads
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": recipe.width,
        "intermediate_size": 32 * round(recipe.width * 8 / 3 / 32),
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "max_position_embeddings": max(512, recipe.sequence_length),
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    grouped = recipe.heads // 2 if recipe.heads % 2 == 0 else recipe.heads
    match recipe.family:
        case "llama":
            return LlamaConfig(**shape, num_key_value_heads=grouped)
        case "qwen3":
            return Qwen3Config(**shape, num_key_value_heads=grouped, head_dim=head)
        case "gemma2":
            return Gemma2Config(**shape, num_key_value_heads=grouped, head_dim=head, query_pre_attn_scalar=head)
        case "olmo2":
            return Olmo2Config(**shape)


def _fit(
    model: PreTrainedModel,
    batches_SBT: torch.Tensor,  # noqa: N803
    learning_rate: float,
    progress: Callable[[int, int, float], None] | None,
) -> list[float]:
    """Next-token training, one batch a step; returns the loss of each step in nats per token."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=_BETAS, weight_decay=_WEIGHT_DECAY, fused=True
    )
    steps = len(batches_SBT)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    model.train()
    losses = []
    for step, batch_BT in enumerate(batches_SBT, 1):
        loss = model(input_ids=batch_BT, labels=batch_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(loss.item())
        if progress is not None:
            progress(step, steps, losses[-1])
    model.eval()
    return losses


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step counted from 0: linear warm-up, then linear down to near 0."""
    warmup = max(1, round(steps * _WARMUP))
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
