"""Log-likelihood vector: total log-probability of each of a fixed set of texts (Oyama et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysft.corpus.skills import SKILLS, statements
from raysft.corpus.tokenize import TokenisedRow, bos_prefix, tokenise_scored_texts
from raysft.probes.scoring import check_context, score_rows
from raysft.spec.keys import text_digest
from raysft.spec.plan import SHIPPED_TEXTS
from raysft.spec.probes import LogLikelihoodProbe
from raysft.spec.sweep import SpecError
from raysft.store.probe_schemas import LOG_LIKELIHOOD

_SKILL_STATEMENTS = 256


def likelihood_texts(probe: LogLikelihoodProbe) -> list[str]:
    """The fixed text set: the package's own, generated statements of every skill, or the lines of the user's file."""
    if probe.texts == "skills":
        return statements(dict.fromkeys(SKILLS, 1.0), _SKILL_STATEMENTS, seed=1)
    path = SHIPPED_TEXTS if probe.texts == "shipped" else Path(probe.texts)
    if not path.is_file():
        raise SpecError(f"probes.log_likelihood.texts: no file {path}")
    texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise SpecError(f"probes.log_likelihood.texts: {path} holds no text; one text a line")
    return texts


def log_likelihoods(
    model: Any, tokenizer: Any, texts: Sequence[str], max_length: int, pad_id: int, token_budget: int
) -> pa.Table:
    """Log-likelihood of each text after BOS, or EOS where there is none: a table of `schema.LOG_LIKELIHOOD`.

    ValueError, with the number of the text from 1, for one that is longer than `max_length` or the model's context: of
    a cut text tokenizers leave different parts, and models would be compared by them. So for one that the tokenizer
    makes nothing of, and for a log-likelihood that is not finite.
    """
    rows = tokenise_scored_texts(texts, tokenizer)
    check_context(model, rows)
    _check_lengths(rows, max_length)
    scored = score_rows(model, rows, pad_id, token_budget)
    has_bos = bool(bos_prefix(tokenizer))
    return pa.Table.from_pydict(
        {
            "text": list(range(len(texts))),
            "text_hash": [text_digest(text) for text in texts],
            "log_likelihood": [entry.log_likelihood for entry in scored],
            "tokens": [entry.tokens for entry in scored],
            "bytes": [len(text.encode()) for text in texts],
            "bos": [has_bos] * len(texts),
        },
        schema=LOG_LIKELIHOOD,
    )


def _check_lengths(rows: Sequence[TokenisedRow], max_length: int) -> None:
    for number, row in enumerate(rows, start=1):
        found = len(row.ids)
        if found > max_length:
            raise ValueError(
                f"text {number}: {found} tokens; valid: at most {max_length} (probes.log_likelihood.max_length)"
            )
