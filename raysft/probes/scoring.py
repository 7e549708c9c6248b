"""Log-probabilities of rows under a model, in batches sorted by length, in the rows' own order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raysft.corpus.batching import length_groups, pad_rows
from raysft.corpus.tokenize import TokenisedRow
from raysft.probes.pooling import LayerPools, pooling_weights
from raysft.training.loss import token_log_probabilities


@dataclass(frozen=True, slots=True)
class Scored:
    """Total log-probability of a row's supervised tokens, in nats, and their number."""

    log_likelihood: float
    tokens: int


@dataclass(frozen=True)
class Reading:
    """What one forward pass over rows tells: the scores of their responses and of the whole texts, row by row, and the
    mean over rows of their mean-pooled hidden states, fp64 (layers + 1, width)."""

    responses: list[Scored]
    texts: list[Scored]
    centroid: np.ndarray


def score_rows(model: Any, rows: Sequence[TokenisedRow], pad_id: int, token_budget: int) -> list[Scored]:
    """Score each row's supervised tokens; sums are in fp64. `token_budget` bounds a batch, padding counted.

    ValueError, with the number of the row from 1, for one that has no supervised token or whose score is not finite.
    """
    _check_scorable(rows)
    scored: dict[int, Scored] = {}
    for chosen in length_groups(rows, token_budget):
        for index, values in _token_scores(model, rows, chosen, pad_id):
            scored[index] = _total(values)
    return [scored[index] for index in range(len(rows))]


def read_rows(
    model: Any, rows: Sequence[TokenisedRow], pad_id: int, token_budget: int, places: Sequence[int] | None = None
) -> Reading:
    """Score each row's supervised tokens and all of its tokens but the first, and pool its hidden states, in one pass.

    ValueError as from `score_rows`, and for hidden states that are not finite. `places`, from 0, are those of the rows
    in what they were taken from, by which an error names them.
    """
    whole = [TokenisedRow.from_token(row.ids, 1) for row in rows]
    _check_scorable(rows, places)
    responses: dict[int, Scored] = {}
    texts: dict[int, Scored] = {}
    centroid = _Centroid()
    for chosen in length_groups(whole, token_budget):
        with _pooling_along(model, [whole[index] for index in chosen]) as pooled:
            for index, values in _token_scores(model, whole, chosen, pad_id, places):
                said = torch.cat([values[start - 1 : stop - 1] for start, stop in rows[index].spans])
                responses[index], texts[index] = _total(said), _total(values)
        centroid.add(pooled[-1])
    order = range(len(rows))
    return Reading([responses[index] for index in order], [texts[index] for index in order], centroid.value)


@torch.inference_mode()
def centroid_of(
    model: Any, rows: Sequence[TokenisedRow], pad_id: int, token_budget: int, places: Sequence[int] | None = None
) -> np.ndarray:
    """Mean over rows of their mean-pooled hidden states, without their scores: fp64 (layers + 1, width).

    The same as in the `Reading` of these rows. ValueError for a row without a token, by its number from 1 (`places` as
    for `read_rows`), and for hidden states that are not finite.
    """
    empty = next((index for index, row in enumerate(rows) if not len(row.ids)), None)
    if empty is not None:
        raise ValueError(f"text {_number(empty, places)}: the tokenizer makes no token of it")
    device, centroid = next(model.parameters()).device, _Centroid()
    for chosen in length_groups(rows, token_budget):
        taken = [rows[index] for index in chosen]
        with _pooling_along(model, taken) as pooled:
            model.get_decoder()(**pad_rows(taken, pad_id).to(device).inputs, use_cache=False)
        centroid.add(pooled[-1])
    return centroid.value


def context_length(model: Any) -> int | None:
    """The most tokens that a model's positions reach; None for a model that names no such end."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def check_context(model: Any, rows: Sequence[TokenisedRow], places: Sequence[int] | None = None) -> None:
    """ValueError, with the number of the row from 1, for one that is longer than the model's context: some models would
    stop there with an error of their device, and others make something of it."""
    context = context_length(model)
    for index, row in enumerate(rows):
        if context is not None and len(row.ids) > context:
            raise ValueError(
                f"text {_number(index, places)}: {len(row.ids)} tokens; the model's context holds {context}, so "
                "shorten the text"
            )


def most_tokens(model: Any, max_length: int) -> int:
    """The most tokens of a text that is given to a model: `max_length`, or its context where that is shorter."""
    return min(max_length, context_length(model) or max_length)


class _Centroid:
    """Mean of pooled states over rows, batch after batch."""

    def __init__(self) -> None:
        self._sum: np.ndarray | None = None
        self._rows = 0

    def add(self, pooled: torch.Tensor) -> None:
        """Count a batch, (rows, layers + 1, width)."""
        total: np.ndarray = pooled.double().sum(dim=0).cpu().numpy()
        if not np.isfinite(total).all():
            layer = int(np.flatnonzero(~np.isfinite(total).all(axis=1))[0])
            raise ValueError(f"hidden state {layer} of 0 to {len(total) - 1} is not finite for one of the texts")
        self._sum = total if self._sum is None else self._sum + total
        self._rows += len(pooled)

    @property
    def value(self) -> np.ndarray:
        assert self._sum is not None, "no rows"
        return self._sum / self._rows


@contextmanager
def _pooling_along(model: Any, rows: Sequence[TokenisedRow]) -> Iterator[list[torch.Tensor]]:
    """Inside, each forward pass of `model` over the padded `rows` appends their pooled states, fp32 (rows, layers + 1,
    width). There may be a second one for the same rows, where the first showed that logits need the model's own way."""
    decoder, found = model.get_decoder(), []
    weights = pooling_weights(rows, max(len(row.ids) for row in rows), "mean").to(next(model.parameters()).device)
    passing: list[tuple[LayerPools, ExitStack]] = []

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        pools, hooks = LayerPools(decoder, weights), ExitStack()
        passing.append((pools, hooks))
        return args, {**kwargs, **hooks.enter_context(pools.gathering())}

    def after(_: Any, __: Any, output: Any) -> None:
        pools, hooks = passing.pop()
        hooks.close()
        found.append(pools.of(output))

    handles = [
        decoder.register_forward_pre_hook(before, with_kwargs=True),
        decoder.register_forward_hook(after),
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        for _, hooks in passing:  # of a pass that broke off
            hooks.close()


@torch.inference_mode()
def _token_scores(
    model: Any,
    rows: Sequence[TokenisedRow],
    chosen: Sequence[int],
    pad_id: int,
    places: Sequence[int] | None = None,
) -> list[tuple[int, torch.Tensor]]:
    """(index, fp64 log-probabilities of its supervised tokens) of each `chosen` row, from one forward pass."""
    batch = pad_rows([rows[index] for index in chosen], pad_id).to(next(model.parameters()).device)
    values = token_log_probabilities(model, batch).double().cpu()
    parts = values.split(batch.supervised[:, 1:].sum(dim=1).tolist())
    for index, part in zip(chosen, parts, strict=True):
        if not torch.isfinite(part).all():
            raise ValueError(f"text {_number(index, places)}: its log-probability is not finite")
    return list(zip(chosen, parts, strict=True))


def _total(values: torch.Tensor) -> Scored:
    return Scored(float(values.sum()), len(values))


def _check_scorable(rows: Sequence[TokenisedRow], places: Sequence[int] | None = None) -> None:
    unscored = next((index for index, row in enumerate(rows) if not row.supervised), None)
    if unscored is not None:
        raise ValueError(f"text {_number(unscored, places)}: the tokenizer makes no token of it that can be scored")


def _number(index: int, places: Sequence[int] | None) -> int:
    """Of a row, from 1, in what it was taken from."""
    return (index if places is None else places[index]) + 1
