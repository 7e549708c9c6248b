"""What an update s B A is, from its factors: everything by matrices of at most r x r, the product never formed."""

from __future__ import annotations

import torch

from raysft.probes.weights.measures import RANK, Measured, WeightsError, leading
from raysft.probes.weights.sketches import directions_sketch, low_rank_sketch

_SAMPLED_ROWS = 64
_CANCELLED = 1e-5  # share of its terms below which a sum of squares has too few digits left


@torch.no_grad()
def low_rank_update(
    name: str, a: torch.Tensor, b: torch.Tensor, scaling: float, base_norm: float, base_dtype: str | None = None
) -> Measured:
    """Measures of the update s B A of the tensor `name`, in fp64; `a` is (r, inputs), `b` is (outputs, r).

    Singular values are those of s R_b R_a^T, from QR of B and of A^T.

    Raises:
        WeightsError: a factor holds values that are not finite.
    """
    dtype = str(b.dtype).removeprefix("torch.")
    a, b = a.double(), scaling * b.double()
    if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
        raise WeightsError(f"{name}: its LoRA matrices hold values that are not finite")
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    left, values, right = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    norm = float(torch.linalg.vector_norm(values))
    moved = norm > 0
    return Measured(
        name=name,
        parameters=len(b) * a.shape[1],
        base_norm=base_norm,
        change_norm=norm,
        mean_absolute_change=_mean_absolute(name, a, b),
        singular_values=values[:RANK].tolist(),
        dtype=dtype,
        base_dtype=base_dtype,
        is_low_rank=True,
        sketch=low_rank_sketch(name, b, a),
        left=directions_sketch(name, "left", leading(values, q_b @ left)) if moved else None,
        right=directions_sketch(name, "right", leading(values, q_a @ right.T)) if moved else None,
    )


def low_rank_norm(a: torch.Tensor, b: torch.Tensor, scaling: float) -> float:
    """||s B A||_F from r x r matrices: s * sqrt(sum((B^T B) * (A A^T))), in fp64, without forming B A.

    `a` is (r, inputs), `b` is (outputs, r). Where the columns of B A nearly cancel, that sum is the small difference of
    large numbers, and the norm is s ||R_b R_a^T||_F instead, from QR of B and of A^T.
    """
    a, b = a.double(), b.double()
    inner, outer = b.T @ b, a @ a.T
    squared = (inner * outer).sum()
    if squared > _CANCELLED * torch.linalg.vector_norm(inner) * torch.linalg.vector_norm(outer):
        return abs(scaling) * float(squared.sqrt())
    r_b, r_a = (torch.linalg.qr(factor, mode="r").R for factor in (b, a.T))
    return abs(scaling) * float(torch.linalg.matrix_norm(r_b @ r_a.T))


def _mean_absolute(name: str, a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean absolute entry of b a, estimated from `_SAMPLED_ROWS` rows unless there are no more.

    The norms of all rows are known from r x r matrices; what is estimated is the ratio of a row's mean absolute entry
    to its root mean square, which differs little between rows.
    """
    norms = ((b @ (a @ a.T)) * b).sum(dim=1).clamp_min(0).sqrt()
    chosen = torch.arange(len(b), device=b.device)
    if len(b) > _SAMPLED_ROWS:  # evenly spaced, so that every head has its share
        chosen = (torch.arange(_SAMPLED_ROWS, device=b.device) + 0.5).mul(len(b) / _SAMPLED_ROWS).long()
    sampled = float(norms[chosen].sum())
    if sampled == 0:
        return 0.0
    ratio = float((b[chosen] @ a).abs().sum()) / sampled
    return ratio * float(norms.sum()) / (len(b) * a.shape[1])
