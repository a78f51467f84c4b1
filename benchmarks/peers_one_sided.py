"""Peers of one-sided updates: what one writes in torch, an active-set solver, and the linear form.

`a = argmin_{a >= 0} 1/2 a G a^T - a (x read^T - offset)` for each row, then `x - a write` divided
by its length. SWEEPS of coordinate ascent are what half-spaces of real texts need in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from peers import FLOAT32, NEW, Call, SkipPeer, compiled, peer
from shapes import HalfSpaces
from torch import Tensor
from torch.nn import functional

from clipproj import ops

OP = "one_sided"
SWEEPS = 24
STEPS = 100  # directions of which the eager peer is waited for
UNROLLED = 16  # directions: a compiler unrolls all steps of all sweeps


def swept(excess: Tensor, gram: Tensor) -> Tensor:
    """Coordinate ascent, all rows at once; one direction is a clamp."""
    if len(gram) == 1:
        return excess.clamp_min(0)
    a, rest = torch.zeros_like(excess), excess.clone()
    for _ in range(SWEEPS):
        for i in range(len(gram)):
            step = torch.maximum(rest[:, i], -a[:, i])
            a[:, i] += step
            rest -= step[:, None] * gram[i]
    return a


def plain(x: Tensor, read: Tensor, write: Tensor, offset: Tensor, gram: Tensor) -> Tensor:
    """In float32, as half types would have to: a product rounded to them is no excess."""
    rows = x.float()
    a = swept(rows @ read.T - offset, gram)
    return functional.normalize(rows - a @ write, dim=-1).to(x.dtype)


def factors(given: HalfSpaces) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return given.read, given.write, given.offset, given.gram


@peer(OP, "eager", NEW)
def eager(given: HalfSpaces) -> Call:
    if len(given.read) > STEPS:
        raise SkipPeer(f"at most {STEPS} directions: {SWEEPS} steps of each, one by one")
    return lambda: plain(given.x, *factors(given))


@peer(OP, "compile", NEW)
def compile_new(given: HalfSpaces) -> Call:
    if len(given.read) > UNROLLED:
        raise SkipPeer(f"at most {UNROLLED} directions")
    function = compiled(plain)
    return lambda: function(given.x, *factors(given))


@peer(OP, "nnls", NEW, needs="scipy", dtypes=FLOAT32, cpu_only=True)
def scipy_nnls(given: HalfSpaces) -> Call:
    """scipy's nonnegative least squares on a Cholesky factor of gram, row by row in float64."""
    from scipy.optimize import nnls

    if len(given.x) > 256:
        raise SkipPeer("at most 256 rows, one by one")
    import numpy as np

    read, write, offset, gram = (one.double().numpy() for one in factors(given))
    root = np.linalg.cholesky(gram)

    def call() -> Any:
        x = given.x.double().numpy()
        right = np.linalg.solve(root, (x @ read.T - offset).T).T
        rows = x - np.stack([nnls(root.T, one)[0] for one in right]) @ write
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    return call


LINEAR = "linear form"  # what it costs to solve; not the same rows


@peer(OP, LINEAR, NEW)
def linear(given: HalfSpaces) -> Call:
    """`project` with the same factors and no gram: every row moved, no inequality solved."""
    x, (read, write, offset, _) = given.x, factors(given)
    return lambda: ops.project(x, read, write, offset, normalize=True)
