"""The mixture of kept texts nearest to a text: what hull contrast takes out of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TOL = 1e-12  # of the largest squared distance, on the optimality condition
_ROUNDING = 1e-6  # the same, where rows so alike that float64 does not tell them apart end it
_GONE = 1e-13  # weights below it are none


def nearest_mixture(point: Tensor, rows: Tensor) -> Tensor:
    """Weights a >= 0 of sum 1 that bring `a @ rows` nearest to `point`: its projection on the hull.

    Wolfe's active-set method (Finding the nearest point in a polytope, Mathematical Programming
    1976): minimise over the affine hull of the active rows, drop those whose weight turns
    negative, add the row that lies furthest towards the point. It ends: each drop makes the active
    set smaller, and a step that makes the distance no smaller is the last. Usually after about as
    many steps as rows end up in the mixture, which are at most d + 1.

    Args:
        point: [d] float64. rows: [m, d] float64, m >= 1.

    Returns:
        [m] float64.

    Raises:
        RuntimeError: should rounding, or the number of steps, end it before the mixture is nearest.
    """
    shifted = rows - point
    lengths = torch.linalg.vector_norm(shifted, dim=1)
    shifted = shifted / lengths.amax().clamp_min(torch.finfo(rows.dtype).tiny)
    active = [int(lengths.argmin())]
    weights = rows.new_zeros(len(rows))
    weights[active] = 1.0
    gap = math.inf
    for _ in range(10 * (len(rows) + rows.shape[1])):
        at = weights[active] @ shifted[active]  # a few of the rows
        slope = shifted @ at
        enter = int(slope.argmin())
        gap = float(at @ at - slope[enter])
        if gap <= _TOL or enter in active:  # in exact arithmetic the first; rounding, the second
            break
        moved, active = _stepped(weights, [*active, enter], shifted)
        moved_at = moved[active] @ shifted[active]
        if moved_at @ moved_at >= at @ at:
            break
        weights = moved
    if gap > _ROUNDING:
        raise RuntimeError(
            f"nearest_mixture: rows must have a nearest mixture that float64 finds, got {gap:.2g} "
            "of the largest squared distance to go"
        )
    return weights


def _stepped(weights: Tensor, active: list[int], shifted: Tensor) -> tuple[Tensor, list[int]]:
    """The best weights among some of the active rows, and which those are."""
    now = weights[active]
    while True:
        part = shifted[active]
        inside = _affine_minimum(part @ part.T)
        falling = inside <= _GONE
        if not falling.any():
            break
        step = (now[falling] / (now - inside)[falling]).min().clamp(0, 1)
        now = now + step * (inside - now)
        stay = ~(falling & (now <= _GONE))
        if stay.all():  # rounding kept all: let the smallest of them go
            stay[torch.where(falling, now, math.inf).argmin()] = False
        now = now[stay]
        active = [i for i, stays in zip(active, stay.tolist(), strict=True) if stays]
    out = torch.zeros_like(weights)
    out[active] = inside / inside.sum()
    return out, active


def _affine_minimum(gram: Tensor) -> Tensor:
    """The weights of sum 1, of any sign, that minimise a @ gram @ a; of least length if several."""
    m = len(gram)
    system = gram.new_zeros(m + 1, m + 1)
    system[:m, :m], system[m, :m], system[:m, m] = gram, 1.0, 1.0
    right = gram.new_zeros(m + 1)
    right[m] = 1.0
    return (torch.linalg.pinv(system, hermitian=True) @ right)[:m]
