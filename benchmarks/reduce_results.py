"""The results that `reduce.py` reduces: of the shapes and sizes that sweeps have, of random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raysft.spec.plan import Work
from raysft.spec.sweep import Sweep, parse_sweep
from raysft.store.layout import Storage
from raysft.store.results import Cost, commit_result
from raysft.store.schema import RESULTS

LAYERS = 14
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPE = {"family": "llama", "layers": LAYERS, "hidden": 2048, "intermediate": 5632, "heads": 16, "vocabulary": 32000}

_METRICS = {"gsm8k": ("exact_match,strict-match", "exact_match,flexible-extract")}


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

    def _sketch(self, count: int) -> Any:
        return self._random.normal(size=count).astype(np.float32)

    def _train(self, work: Work) -> Iterator[dict[str, Any]]:
        for epoch, (loss, norm) in enumerate(zip(self._reals(10), self._reals(10), strict=True), 1):
            counts = {"tokens": 91_000, "supervised_tokens": 48_000, "rows": 1000, "dropped_rows": 0, "oom_retries": 0}
            yield {"at_epoch": epoch, "step": 32 * epoch, "loss": loss, "last_loss": loss, "grad_norm": norm, **counts}

    def _evaluate(self, work: Work) -> Iterator[dict[str, Any]]:
        generated = work.about in ("gsm8k", "nq_open")
        rates = {"stderr": 0.01, "unextracted": 0.0, "degenerate": 0.0, "bits_per_byte": 1.1, "chance": 0.0}
        for metric in (
            ("exact_match,strict-match", "exact_match,flexible-extract") if work.about == "gsm8k" else ("acc",)
        ):
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
                named = {"tensor": name, "module": module, **depth, "singular_values": self._reals(8)}
                ways = {"left_directions": self._sketch(128), "right_directions": self._sketch(128)}
                yield self._change("tensor", **named, **ways)
            yield self._change("layer", **depth, sketch=self._sketch(1024))
        yield from (self._change("module", module=module) for module in MODULES)
        yield self._change("model")

    def _change(self, level: str, **known: Any) -> dict[str, Any]:
        base, change, mean, rank = self._reals(4)
        norms = {"base_norm": base, "change_norm": change, "mean_absolute_change": mean, "stable_rank": rank}
        said = {"dtype": "float32", "base_dtype": "float32", "low_precision": False, "zero_fraction": 0.0}
        return {
            "level": level,
            "tensors": 1,
            "parameters": 4_194_304,
            **norms,
            "relative_change": change,
            **said,
            **known,
        }

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
        for name, value in zip(
            ("response_perplexity", "prompt_tokens", "response_tokens"), self._reals(3), strict=True
        ):
            yield {"property": name, "value": value, "unit": "", "n": 512}

    def _text_statistics(self, work: Work) -> Iterator[dict[str, Any]]:
        for name, value in zip(("distinct_words", "compression_ratio"), self._reals(2), strict=True):
            yield {"property": name, "value": value, "unit": "", "n": 512}

    def _contamination(self, work: Work) -> Iterator[dict[str, Any]]:
        counts = {"ngram": 13, "items": 1319, "too_short": 2, "longest_match": 9}
        yield {"task": work.about, **counts, "overlap": 0.0, "ngram_overlap": 0.0, "matched": []}

    def _similarity(self, work: Work) -> Iterator[dict[str, Any]]:
        yield {"property": "similarity", "about": work.about, "value": self._reals(1)[0], "unit": "cosine", "n": 512}


def commit(storage: Storage, works: list[Work], payloads: Payloads) -> None:
    """Commit results as trials do."""
    for work in works:
        commit_result(storage, work.stage, work.key, payloads.of(work), work.subject.as_row(), Cost(12.5, 12.5))
