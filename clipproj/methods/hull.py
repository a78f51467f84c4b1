"""The mixture of kept texts nearest to a text: what hull contrast takes out of it."""

from __future__ import annotations

import torch
from torch import Tensor

_TOL = 1e-12  # of the largest squared distance, on the optimality condition
_GONE = 1e-13  # weights below it are none


def nearest_mixture(point: Tensor, rows: Tensor) -> Tensor:
    """Weights a >= 0 of sum 1 that bring `a @ rows` nearest to `point`: its projection on the hull.

    Wolfe's active-set method (Finding the nearest point in a polytope, Mathematical Programming
    1976): minimise over the affine hull of the active rows, drop those whose weight turns
    negative, add the row that lies furthest towards the point. It ends, for every step makes the
    distance smaller and there are finitely many sets; usually after about as many steps as rows
    end up in the mixture, which are at most d + 1.

    Args:
        point: [d] float64. rows: [m, d] float64, m >= 1.

    Returns:
        [m] float64.
    """
    shifted = rows - point
    gram = shifted @ shifted.T
    weights = torch.zeros(len(rows), dtype=rows.dtype, device=rows.device)
    active = [int(gram.diagonal().argmin())]
    weights[active] = 1.0
    least = _TOL * float(gram.diagonal().max())
    while True:
        slope = gram @ weights
        enter = int(slope.argmin())
        gap = float(weights @ slope - slope[enter])
        if gap <= least or enter in active:  # in exact arithmetic the first; rounding, the second
            return weights
        active.append(enter)
        best = float(weights @ slope)
        while True:
            inside = _affine_minimum(gram[active][:, active])
            if (inside > _GONE).all():
                break
            now = weights[active]
            falling = inside <= _GONE
            step = (now[falling] / (now - inside)[falling]).min().clamp(0, 1)
            moved = now + step * (inside - now)
            moved[falling & (moved <= _GONE)] = 0
            if (moved > 0).all():  # rounding kept all: let the smallest go
                moved[moved.argmin()] = 0
            weights.zero_()
            weights[active] = moved / moved.sum()
            active = [i for i, weight in zip(active, moved.tolist(), strict=True) if weight > 0]
        weights.zero_()
        weights[active] = inside / inside.sum()
        if float(weights @ gram @ weights) >= best:  # no nearer: what is left is rounding
            return weights


def _affine_minimum(gram: Tensor) -> Tensor:
    """The weights of sum 1, of any sign, that minimise a @ gram @ a; of least length if several."""
    m = len(gram)
    system = gram.new_zeros(m + 1, m + 1)
    system[:m, :m], system[m, :m], system[:m, m] = gram, 1.0, 1.0
    right = gram.new_zeros(m + 1)
    right[m] = 1.0
    return (torch.linalg.pinv(system, hermitian=True) @ right)[:m]
