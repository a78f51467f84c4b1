"""A text as a mixture of kept texts plus what an edit limits."""

from __future__ import annotations

import torch
from torch import Tensor

from clipproj.methods.hull import nearest_mixture

_EXACT = 1e-6  # of the contrast's length: a direction that is its own to the rounding of float32


def combinations(text: Tensor, keep: Tensor, rays: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Weights w >= 0 of sum 1 and b >= 0 that bring `w @ keep + b @ rays` near to `text`.

    First by the nearest mixture of keep, as hull contrast has it, and the ray that is most along
    what is left. Where that is not all of it, also by all of them together.

    Args:
        text: [d]. keep: [m, d]. rays: [k, d]; float64.

    Returns:
        One or two pairs of [m] and [k].
    """
    weights = nearest_mixture(text, keep)
    left = text - weights @ keep
    along = (rays @ left) / rays.square().sum(1)
    best = int((along * torch.linalg.vector_norm(rays, dim=1)).argmax())
    share = torch.zeros_like(along)
    share[best] = along[best].clamp_min(0)
    rest = torch.linalg.vector_norm(left - share @ rays)
    found = [(weights, share)]
    if rest > _EXACT * torch.linalg.vector_norm(left):
        found += _together(text, keep, rays)
    return found


def _together(text: Tensor, keep: Tensor, rays: Tensor) -> list[tuple[Tensor, Tensor]]:
    """By nonnegative least squares, with the sum of w as one more equation."""
    ones, zeros = torch.ones_like(keep[:, :1]), torch.zeros_like(rays[:, :1])
    rows = torch.cat([torch.cat([keep, ones], 1), torch.cat([rays, zeros], 1)])
    weights = nonnegative(rows, torch.cat([text, text.new_ones(1)]))
    total = weights[: len(keep)].sum()
    if total < 0.5:  # hardly any kept text in it
        return []
    weights = weights / total
    return [(weights[: len(keep)], weights[len(keep) :])]


def nonnegative(rows: Tensor, target: Tensor) -> Tensor:
    """[m] weights x >= 0 that bring `x @ rows` nearest to target [d], for rows [m, d].

    Lawson and Hanson (Solving Least Squares Problems 1974, chapter 23). It ends when no weight
    can come in, or when one that does brings nothing nearer: that is rounding.
    """
    x, scale = rows.new_zeros(len(rows)), torch.linalg.vector_norm(rows, dim=1)
    active: list[int] = []
    last = torch.linalg.vector_norm(target)
    for _ in range(10 * sum(rows.shape)):
        slope = (rows @ (target - x[active] @ rows[active])) / scale
        slope[active] = 0
        enter = int(slope.argmax())
        if slope[enter] <= 1e-15:
            break
        y, inside = _without_negative(x, [*active, enter], rows, target)
        distance = torch.linalg.vector_norm(target - y[inside] @ rows[inside])
        if distance >= last:
            break
        x, active, last = y, inside, distance
    return x


def _without_negative(
    x: Tensor, active: list[int], rows: Tensor, target: Tensor
) -> tuple[Tensor, list[int]]:
    """The best weights among some active rows, and which those are."""
    now = x[active]
    while active:
        best = torch.linalg.lstsq(rows[active].T, target[:, None]).solution[:, 0]
        falling = best <= 0
        if not falling.any():
            out = torch.zeros_like(x)
            out[active] = best
            return out, active
        step = (now[falling] / (now - best)[falling].clamp_min(1e-300)).min()
        now = now + step * (best - now)
        stay = ~(falling & (now <= 1e-15))
        if stay.all():
            stay[torch.where(falling, now, torch.inf).argmin()] = False
        now = now[stay]
        active = [i for i, stays in zip(active, stay.tolist(), strict=True) if stays]
    return torch.zeros_like(x), active
