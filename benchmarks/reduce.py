"""Reducing 10,000 results to tables, beside pandas reading and concatenating the same files.

    python benchmarks/reduce.py --folder FOLDER OUT.json

1,000 fine-tunings of 10 base models on 10 datasets, of full and LoRA in 5 seeds, with their results committed by the
store's own code into FOLDER (deleted at the end; `--results` of them): training over 10 epochs, 5 benchmarks of `--items`
items each with answers, weight change of 98 matrices, their 14 layers and sums of these with the sketches of layers,
1,000 log-likelihoods, 5 estimates of the dimension of 15 hidden states, and what the bases give.

In turn, `--repeats` times, from a warm page cache:

reduce        everything that `raysft reduce` does, from the plan to the published tables, with nothing read before;
again         the same with nothing new;
incremental   the same with `--new` results more;
pandas        `pandas.read_parquet` of each file and `pandas.concat` of each stage's, and no more: no identity, no names,
              no items in rows of their own, nothing sorted or written;
pandas_folder `pandas.read_parquet` of each stage's whole folder: the same, and no longer known which row is whose.

Before anything counts, the columns of every table must equal what pandas read, row by row, and after every reduction its
files must equal, byte by byte, those of one that started from nothing. Peak memory is by how far a fresh process rises
above what it has once all is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from machine import circumstances

from raysft.reduce import reduce_sweep
from raysft.reduce.run import sorted_works
from raysft.spec.plan import Work, make_plan
from raysft.spec.sweep import Sweep, parse_sweep
from raysft.store.layout import Storage, open_storage
from raysft.store.results import Cost, commit_result
from raysft.store.schema import RESULTS

AIM_TIMES, AIM_SECONDS = 5.0, 10.0
LAYERS = 14
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPE = {"family": "llama", "layers": LAYERS, "hidden": 2048, "intermediate": 5632, "heads": 16, "vocabulary": 32000}

# stage -> table that has its payload row by row
PLAIN = {
    "train": "training",
    "perplexity": "data_properties",
    "weight_change": "weight_change",
    "log_likelihood": "log_likelihood",
    "intrinsic_dimension": "intrinsic_dimension",
}


def sweep_of(folder: Path) -> Sweep:
    """The sweep whose results are made; its models and datasets are names that nobody loads."""
    axes = {
        "models": [{"name": f"model-{n}", "hub": f"somebody/model-{n}", "shape": SHAPE} for n in range(10)],
        "datasets": [{"name": f"data-{n}", "hub": f"somebody/data-{n}", "rows": 20_000} for n in range(10)],
        "methods": [{"name": "full", "kind": "full"}, {"name": "lora", "kind": "lora", "rank": 16}],
        "grid": [{"sizes": [1000], "epochs": [10], "seeds": [0, 1, 2, 3, 4], "measure": "last"}],
        "evaluation": {"tasks": ["gsm8k", "nq_open", "boolq", "truthfulqa_mc1", "truthfulqa_mc2"]},
        "probes": {"perplexity": {}, "log_likelihood": {}, "weight_change": {}, "intrinsic_dimension": {"texts": 500}},
    }
    return parse_sweep({"name": "reduce", "storage": str(folder), **axes}, "benchmark")


class Payloads:
    """Results of the shapes that sweeps have, of random numbers."""

    def __init__(self, items: int) -> None:
        self._items = items
        self._random = np.random.default_rng(0)
        self._words = np.array(["the", "answer", "is", "therefore", "forty", "two", "of", "####", "17", "each"])

    def of(self, work: Work) -> pa.Table:
        rows = getattr(self, f"_{work.stage}")(work)
        return pa.Table.from_pylist(list(rows), schema=RESULTS[work.stage])

    def _reals(self, count: int) -> list[float]:
        return self._random.normal(size=count).tolist()

    def _train(self, work: Work) -> Iterator[dict[str, Any]]:
        for epoch, (loss, norm) in enumerate(zip(self._reals(10), self._reals(10), strict=True), 1):
            counts = {"tokens": 91_000, "supervised_tokens": 48_000, "rows": 1000, "dropped_rows": 0, "oom_retries": 0}
            yield {"at_epoch": epoch, "step": 32 * epoch, "loss": loss, "last_loss": loss, "grad_norm": norm, **counts}

    def _evaluate(self, work: Work) -> Iterator[dict[str, Any]]:
        generated = work.about in ("gsm8k", "nq_open")
        rates = {"stderr": 0.01, "unextracted": 0.0, "degenerate": 0.0, "bits_per_byte": 1.1, "chance": 0.0}
        for metric in ("exact_match,strict-match", "exact_match,flexible-extract") if work.about == "gsm8k" else ("acc",):
            samples = list(self._samples(generated))
            score = {"value": float(np.mean([one["value"] for one in samples])), "n": len(samples), **rates}
            yield {"task": work.about, "metric": metric, "higher_is_better": True, **score, "samples": samples}

    def _samples(self, generated: bool) -> Iterator[dict[str, Any]]:
        bits = self._reals(self._items)
        for doc in range(self._items):
            words = self._random.choice(self._words, 24 if generated else 1)
            response = " ".join(words) if generated else str(doc % 4)
            known = {"doc_hash": f"{doc * 2654435761 % 2**64:016x}", "gold_bytes": 12, "gold_bits": bits[doc]}
            yield {"doc": doc, **known, "value": float(doc % 3 == 0), "extracted": True, "response": response}

    def _weight_change(self, work: Work) -> Iterator[dict[str, Any]]:
        for layer in range(LAYERS):
            depth = {"layer": layer, "depth": layer / (LAYERS - 1)}
            for module in MODULES:
                name = f"layers.{layer}.{module}.weight"
                yield self._change("tensor", tensor=name, module=module, **depth, singular_values=self._reals(8))
            yield self._change("layer", **depth, sketch=self._reals(256))
        yield from (self._change("module", module=module) for module in MODULES)
        yield self._change("model", sketch=self._reals(256))

    def _change(self, level: str, **known: Any) -> dict[str, Any]:
        base, change, mean, rank = self._reals(4)
        norms = {"base_norm": base, "change_norm": change, "mean_absolute_change": mean, "stable_rank": rank}
        said = {"dtype": "float32", "base_dtype": "float32", "low_precision": False, "zero_fraction": 0.0}
        return {"level": level, "tensors": 1, "parameters": 4_194_304, **norms, "relative_change": change, **said, **known}

    def _log_likelihood(self, work: Work) -> Iterator[dict[str, Any]]:
        for text, value in enumerate(self._reals(1000)):
            known = {"text_hash": f"{text:016x}", "tokens": 120, "bytes": 510, "bos": True}
            yield {"text": text, "log_likelihood": value, **known}

    def _intrinsic_dimension(self, work: Work) -> Iterator[dict[str, Any]]:
        scales = (("twonn", 2), ("mle", 20), ("gride", 4), ("gride", 16), ("gride", 64))
        for layer in range(LAYERS + 1):
            for (estimator, scale), value in zip(scales, self._reals(len(scales)), strict=True):
                about = {"texts_of": work.about, "same_texts": work.key, "layer": layer, "depth": layer / LAYERS}
                found = {"value": value, "low": value - 1, "high": value + 1, "n": 500, "duplicates": 0}
                yield {**about, "estimator": estimator, "scale": scale, **found}

    def _embed(self, work: Work) -> Iterator[dict[str, Any]]:
        yield {"folder": f"embeddings/{work.key}", "texts": 500, "layers": LAYERS + 1, "width": 2048, "pooling": "mean"}

    def _neighbours(self, work: Work) -> Iterator[dict[str, Any]]:
        near = self._random.integers(0, 500, (4, 500, 20)).tolist()
        for layer, texts in enumerate(near):
            yield from ({"layer": layer, "text": text, "neighbours": found} for text, found in enumerate(texts))

    def _perplexity(self, work: Work) -> Iterator[dict[str, Any]]:
        for name, value in zip(("response_perplexity", "prompt_tokens", "response_tokens"), self._reals(3), strict=True):
            yield {"property": name, "value": value, "unit": "", "n": 512}

    def _similarity(self, work: Work) -> Iterator[dict[str, Any]]:
        yield {"property": "similarity", "about": work.about, "value": self._reals(1)[0], "unit": "cosine", "n": 512}
