"""Packed rows: several examples end to end in one sequence, so that no token is padding.

All of a transformer but its attention works on each token alone, so packed rows only need attention to stay within a
row. It is registered with `transformers` under a name of its own: with the variable-length kernel of torch on a GPU,
row by row elsewhere. Forward passes over rows that are not packed go through it unchanged.

Not every architecture can be packed: a convolution or a recurrent state runs over the rows' bounds, and some count
positions in their own way. Rather than keep a list, `why_not_packed` asks the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from raysft.corpus.batching import pack_rows
from raysft.corpus.tokenize import TokenisedRow

_NAME = "raysft_packed"
_UNKNOWN = ("softcap", "s_aux", "position_bias", "cache")  # of attention: what other kernels add, and this one does not
_LEAK = 1e-5  # of the largest logit; of a neighbour's tokens, which should not matter at all
_DIFFERENCE = 1e-3  # of the largest logit; alone or packed


def pack_attention(model: Any) -> Callable[[], None]:
    """Let the model take packed rows; returns what undoes it."""
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    return lambda: model.set_attn_implementation(before)


@torch.no_grad()
def why_not_packed(model: Any) -> str | None:
    """Why packing this model's rows would change their numbers; None if it does not.

    Found out on two rows: the second must not see what the first holds, and each must be what it is alone.
    """
    if model.config._attn_implementation != "sdpa":
        return f"its attention is {model.config._attn_implementation!r}, only sdpa has a packed form"
    was_training = model.training
    model.eval()
    alone = [_logits(model, [row]) for row in (_row(1), _row(2))]
    undo = pack_attention(model)
    try:
        with _attention_in_training(model):  # refuses what only training has: dropout inside attention
            _logits(model, [_row(1), _row(2)])
        together, other = _logits(model, [_row(1), _row(2)]), _logits(model, [_row(3), _row(2)])
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        return f"it does not take packed rows ({' '.join(str(error).split())})"
    finally:
        undo()
        model.train(was_training)
    first, second = together.split([len(logits) for logits in alone])
    scale = float(together.abs().max())
    if float((second - other[len(first) :]).abs().max()) > _tolerance(model, _LEAK) * scale:
        return "packed rows would see their neighbours"
    if float((torch.cat(alone) - together).abs().max()) > _tolerance(model, _DIFFERENCE) * scale:
        return "packed rows would not be what they are alone"
    return None


@contextmanager
def _attention_in_training(model: Any) -> Iterator[None]:
    """Inside, attention takes itself to be training, and nothing else does: row noise would ask for its rows."""
    modules = [module for module in model.modules() if type(module).__name__.endswith("Attention")]
    for module in modules:
        module.training = True
    try:
        yield
    finally:
        for module in modules:
            module.training = False


def _tolerance(model: Any, in_fp32: float) -> float:
    """The tolerance for the model's own dtype: bfloat16 keeps 8 bits where fp32 keeps 24."""
    return in_fp32 if next(model.parameters()).dtype == torch.float32 else 0.05


def _row(number: int) -> TokenisedRow:
    """A row of the length of row 1, or of row 2."""
    length = 9 if number % 2 else 13
    return TokenisedRow.from_token([3 + (number * 31 + place * 17) % 32 for place in range(length)], 1)


def _logits(model: Any, rows: list[TokenisedRow]) -> torch.Tensor:
    """fp32 logits of rows end to end, (tokens, vocabulary); a single row goes the way of rows that are not packed."""
    device = next(model.parameters()).device
    inputs = pack_rows(rows).to(device).inputs
    if len(rows) == 1:
        inputs = {"input_ids": inputs["input_ids"]}
    logits: torch.Tensor = model(**inputs, use_cache=False).logits[0].float()
    return logits


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    sliding_window: int | None = None,
    **how: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within the rows that `cu_seq_lens_q` bounds, where it is given.

    Shapes as `transformers` has them: query (1, heads, tokens, width), key and value the same with their own heads; the
    result is (1, tokens, heads, width).
    """
    bounds = how.get("cu_seq_lens_q")
    if bounds is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **how)
    found = [name for name in _UNKNOWN if how.get(name) is not None]
    if found or how.get("dropout"):
        raise ValueError(f"packed attention has no {', '.join(found) or 'dropout'}")
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return _in_one_kernel(query, key, value, bounds, sliding_window, how), None
    return _row_by_row(module, query, key, value, bounds, sliding_window, how.get("scaling")), None


def _in_one_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    window: int | None,
    how: dict[str, Any],
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest = how["max_length_q"]
    seen = -1 if window is None or window >= longest else window - 1  # a window of `transformers` counts the token
    query, key, value = (tensor[0].transpose(0, 1).to(query.dtype) for tensor in (query, key, value))
    attended = varlen_attn(
        query,
        key,
        value,
        bounds,
        bounds,
        longest,
        longest,
        scale=how.get("scaling"),
        window_size=(seen, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(attended, torch.Tensor)
    return attended.unsqueeze(0)


def _row_by_row(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    window: int | None,
    scaling: float | None,
) -> torch.Tensor:
    lengths = bounds.diff().tolist()
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    attended = [
        sdpa_attention_forward(module, *part, _window_mask(part[0], window), scaling=scaling, is_causal=True)[0]
        for part in parts
    ]
    return torch.cat(attended, dim=1)


def _window_mask(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """Which keys a query sees, bool (1, 1, length, length); None where a causal row has no more to say."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    places = torch.arange(length, device=query.device)
    back = places[:, None] - places[None, :]
    return ((back >= 0) & (back < window))[None, None]


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
