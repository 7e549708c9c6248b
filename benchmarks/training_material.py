"""What every contender of `training.py` starts from: a random model, a tokenizer trained on the rows, and the rows.

    python benchmarks/training_material.py '{"folder": ..., "data": ..., "datasets": [...], "size": ..., "rows": ...}'

No hub: the tokenizer is a byte-level BPE of the datasets themselves, the weights are drawn from a fixed seed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from raysft.corpus.example import Example
from raysft.corpus.sources import all_examples
from raysft.corpus.tokenize import tokenise_examples
from raysft.spec.datasets import DatasetSpec
from raysft.spec.templates import Template

SEED = 0
MAX_LENGTH = 512
TEMPLATE = Template("paper")
DATASETS = ("alpaca_en_1k", "code_alpaca_2k", "gsm8k_train")
_VOCABULARY = 8192
_PAD, _BOS, _EOS = "<pad>", "<s>", "</s>"


def config(size: str, vocabulary: int) -> PreTrainedConfig:
    """Shape of the model: Llama of 2 x 64, 6 x 256 or 12 x 768 layers x width, or Qwen2.5's own 0.5B and 1.5B."""
    if size in ("0.5b", "1.5b"):
        layers, width, inner, heads = (24, 896, 4864, 14) if size == "0.5b" else (28, 1536, 8960, 12)
        return Qwen2Config(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )  # of its 151,936 tokens the rows use the first few thousand
    layers, width, heads = {"tiny": (2, 64, 2), "small": (6, 256, 4), "110m": (12, 768, 12)}[size]
    return LlamaConfig(
        vocab_size=32768 if size == "110m" else vocabulary,
        hidden_size=width,
        intermediate_size=32 * round(width * 8 / 3 / 32),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def random_model(size: str, vocabulary: int) -> PreTrainedModel:
    """A model of that size with fp32 weights drawn from the fixed seed."""
    torch.manual_seed(SEED)
    return AutoModelForCausalLM.from_config(config(size, vocabulary), dtype=torch.float32)


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that begins every text with one BOS."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [_PAD, _BOS, _EOS]
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single=f"{_BOS} $A", special_tokens=[(_BOS, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=_BOS, eos_token=_EOS, pad_token=_PAD)


def read_datasets(data: Path) -> dict[str, list[Example]]:
    """The complete rows of each dataset of a folder, in a fixed random order; "all" has rows of each in turn."""
    read = {}
    for name in DATASETS:
        path = next(iter(sorted(data.glob(f"{name}.*"))), data / name)
        examples = all_examples(DatasetSpec(name=name, path=path, incomplete_rows="drop"))
        read[name] = [examples[index] for index in np.random.default_rng(SEED).permutation(len(examples))]
    read["all"] = [example for together in zip(*read.values(), strict=False) for example in together]
    return read


def fitting(examples: Sequence[Example], tokenizer: Any, count: int, name: str) -> list[Example]:
    """The first `count` examples whose prompt leaves room for a response. ValueError if there are fewer."""
    kept = tokenise_examples(examples, tokenizer, TEMPLATE, MAX_LENGTH, "drop").kept
    if len(kept) < count:
        raise ValueError(f"{name} has {len(kept)} rows that fit {MAX_LENGTH} tokens, {count} are needed")
    return [examples[index] for index in kept[:count]]


def main(request: dict[str, Any]) -> None:
    """Write model, tokenizer and `<dataset>.json` with its rows into the folder."""
    folder = Path(request["folder"])
    datasets = read_datasets(Path(request["data"]))
    texts = [text for name in DATASETS for row in datasets[name] for text in (row.instruction, row.response)]
    tokenizer = train_tokenizer(texts)
    random_model(request["size"], len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name in request["datasets"]:
        rows = fitting(datasets[name], tokenizer, request["rows"], name)
        (folder / f"{name}.json").write_text(json.dumps([[row.instruction, row.response] for row in rows]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
