"""Vectors of texts from a sentence-embedding model: a `transformers` encoder, mean-pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from raysft.spec.probes import SentenceModel
from raysft.spec.sweep import SpecError
from raysft.store.layout import one_line

_MOST_TOKENS = 512  # of models that name no maximum
_BATCH = 32


@dataclass(frozen=True)
class SentenceEncoder:
    """An encoder in memory; texts of more than `most_tokens` tokens are cut at the end, as such models are used."""

    model: Any
    tokenizer: Any
    most_tokens: int

    @torch.inference_mode()
    def centroid(self, texts: Sequence[str]) -> np.ndarray:
        """Mean over texts of their vectors, each of length 1: fp64 (width,).

        A text's vector is the mean of the last hidden states over its tokens, the model's own marks with them.
        ValueError for a vector that is not finite, by the number of its text from 1.
        """
        total = np.zeros(0)
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        for first in range(0, len(order), _BATCH):
            chosen = order[first : first + _BATCH]
            vectors = self._vectors([texts[index] for index in chosen])
            known = np.isfinite(vectors).all(axis=1)
            if not known.all():
                raise ValueError(f"text {chosen[int(np.argmin(known))] + 1}: its sentence vector is not finite")
            total = total + vectors.sum(axis=0) if len(total) else vectors.sum(axis=0)
        return total / len(texts)

    def _vectors(self, texts: list[str]) -> np.ndarray:
        device = next(self.model.parameters()).device
        batch = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.most_tokens, return_tensors="pt"
        ).to(device)
        states = self.model(**batch).last_hidden_state.double()
        mask = batch["attention_mask"].unsqueeze(-1)
        pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)
        vectors: np.ndarray = torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
        return vectors


def load_encoder(spec: SentenceModel, device: torch.device) -> SentenceEncoder:
    """Load an encoder in fp32 from its local folder or the hub; only safetensors are read, and no code in it is run.

    SpecError for what cannot be loaded so, and for a tokenizer that cannot pad.
    """
    source = str(spec.path or spec.hub)
    revision = None if spec.path is not None else spec.revision
    where = "probes.perplexity.sentence_model"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        model = AutoModel.from_pretrained(
            source, revision=revision, trust_remote_code=False, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise SpecError(f"{where}: {source} cannot be loaded ({one_line(error)})") from error
    if tokenizer.pad_token_id is None:
        raise SpecError(f"{where}: the tokenizer of {source} has no padding token, so it is no sentence model's")
    return SentenceEncoder(model.to(device).eval(), tokenizer, _most_tokens(tokenizer, model.config))


def _most_tokens(tokenizer: Any, config: Any) -> int:
    """What the tokenizer names, if the positions reach as far: RoBERTa's family counts them from 2."""
    named = min(tokenizer.model_max_length, 1 << 20)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return named if named < 1 << 20 else _MOST_TOKENS
    return min(named, positions - 2)
