"""Derivatives of one-sided updates in x: linear in the directions that are active at x.

Between kinks, where a coefficient becomes 0, the coefficients of the active directions A are
`G_AA^-1` of their excess, and the others stay 0. At a kink this is one of the two derivatives.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_ops = torch.ops.clipproj


class Rows(NamedTuple):
    """What n rows are projected by, each by its own: R, W [n or 1, k, d], G [n or 1, k, k], the
    offset [n or 1, k] and the strength [n or 1, 1].
    """

    read: Tensor
    write: Tensor
    offset: Tensor
    gram: Tensor
    strength: Tensor


def derivative(v: Tensor, x: Tensor, factors: Sequence[Any], *, back: bool) -> Tensor:
    """A tangent v [..., d] through the update at x, or a gradient `back` through it."""
    flat, at = v.reshape(-1, v.shape[-1]), x.reshape(-1, x.shape[-1])
    read = factors[0]
    flat, at = flat.to(read.dtype), at.detach().to(read.dtype)
    *_, spans, index, _ = factors
    if not read.shape[0]:
        return v
    if spans is None or index is None:
        out = _of_one(flat, at, factors, back)
    else:
        linear = torch.where(spans[:, 1:] < 0, 0, spans)
        kept = _of_linear(flat, factors, linear, back)
        out = _of_rows(kept, flat, at, _rows_of_bank(factors), back)
    return out.to(v.dtype).reshape(v.shape)


def _of_linear(v: Tensor, factors: Sequence[Any], spans: Tensor, back: bool) -> Tensor:
    read, write, _, strength, _, index, _ = factors
    first, second = (write, read) if back else (read, write)
    return _ops.project_rows.default(v, first, second, None, spans, index, strength)


def _of_one(v: Tensor, x: Tensor, factors: Sequence[Any], back: bool) -> Tensor:
    read, write, offset, strength, _, _, gram = factors
    if read.shape[0] == 1:  # in the kernel: rows at their strength, or at none
        excess = (x @ read.T - (0 if offset is None else offset)).squeeze(-1)
        on = (excess > 0).to(x.dtype) * (1 if strength is None else strength)
        first, second = (write, read) if back else (read, write)
        return _ops.project.default(v, first, second, None, on)
    one = read.new_ones(1, 1) if strength is None else strength.reshape(-1, 1)
    offset = read.new_zeros(1, read.shape[0]) if offset is None else offset[None]
    rows = Rows(read[None], write[None], offset, gram[None], one)
    return _of_rows(v, v, x, rows, back)


def _rows_of_bank(factors: Sequence[Any]) -> Rows:
    """Of each row that has a one-sided projector; others, and directions that there are not, get
    factors of 0.
    """
    read, write, offset, strength, spans, index, gram = factors
    width, capacity = gram.shape[1], read.shape[0]
    span = spans[index.clamp_min(0).long()].long() * (index >= 0).long()[:, None]
    place = torch.arange(width, device=read.device)
    there = place < -span[:, 1:]
    at = (span[:, :1] + place).clamp_max(capacity - 1)
    both = there[:, :, None] & there[:, None, :]
    eye = torch.eye(width, dtype=gram.dtype, device=gram.device)
    zeros = read.new_zeros(1, 1) if offset is None else offset[at]
    return Rows(
        torch.where(there[..., None], read[at], 0),
        torch.where(there[..., None], write[at], 0),
        torch.where(there, zeros, 0),
        torch.where(both, gram[at], eye),
        read.new_ones(1, 1) if strength is None else strength.reshape(-1, 1),
    )


def _of_rows(kept: Tensor, v: Tensor, x: Tensor, rows: Rows, back: bool) -> Tensor:
    """`kept` less what the active directions take out of v."""
    excess = (x[:, None] @ rows.read.mT).squeeze(1) - rows.offset
    active = _solved(excess, rows.gram) > 0
    both = active[:, :, None] & active[:, None, :]
    eye = torch.eye(excess.shape[1], dtype=x.dtype, device=x.device)
    gram = torch.where(both, rows.gram, eye)
    first, second = (rows.write, rows.read) if back else (rows.read, rows.write)
    measured = torch.where(active, (v[:, None] @ first.mT).squeeze(1), 0)
    taken = torch.linalg.solve(gram, measured)
    return kept - rows.strength * (taken[:, None] @ second).squeeze(1)


def _solved(excess: Tensor, gram: Tensor) -> Tensor:
    """The coefficients [n, k] of an excess [n, k]: what the operator takes out of rows that are
    excesses themselves.
    """
    n, k = excess.shape
    eye = torch.eye(k, dtype=excess.dtype, device=excess.device)
    if len(gram) == 1:
        return excess - _ops.project.default(excess, eye, eye, gram=gram[0])
    count = torch.arange(n, dtype=torch.int32, device=excess.device)
    spans = torch.stack([count * k, torch.full_like(count, -k)], dim=1)
    bank = eye.repeat(n, 1)
    left = _ops.project_rows.default(
        excess, bank, bank, None, spans, count, gram=gram.reshape(n * k, k)
    )
    return excess - left
