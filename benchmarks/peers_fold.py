"""Peers of `fold_`: the weight `[n, d]` (dim -1) or `[d, n]` (dim 0) is written over.

Each works on its own copy. The factors are in the weight's dtype, as torch's products need them.
"""

from __future__ import annotations

from typing import Any

import torch
from peers import FLOAT32, OUT, Call, compiled, donated, peer
from shapes import Problem
from torch import Tensor

OP = "fold_"


def addmm(weight: Tensor, read: Tensor, write: Tensor, dim: int) -> Tensor:
    """`weight - (weight read^T) write` over the weight, or its twin from the left."""
    if dim == 0:
        return weight.addmm_(write.T, read.T @ weight, alpha=-1)
    return weight.addmm_(weight @ read, write, alpha=-1)


@peer(OP, "addmm_", OUT)
def eager(given: Problem) -> Call:
    weight, factors = given.x.clone(), given.directions
    return lambda: addmm(weight, *factors, given.dim)


@peer(OP, "addmm_ out=", OUT)
def eager_out(given: Problem) -> Call:
    """The product of weight and read in a buffer made once."""
    weight, (read, write) = given.x.clone(), given.directions
    left, right = (read.T, weight) if given.dim == 0 else (weight, read)
    dots = left @ right

    def call() -> Tensor:
        torch.mm(left, right, out=dots)
        if given.dim == 0:
            return weight.addmm_(write.T, dots, alpha=-1)
        return weight.addmm_(dots, write, alpha=-1)

    return call


@peer(OP, "compile", OUT)
def compile_in_place(given: Problem) -> Call:
    weight, factors = given.x.clone(), given.directions
    function = compiled(addmm)
    return lambda: function(weight, *factors, given.dim)


@peer(OP, "JAX donated", OUT, needs="jax")
def jax_donated(given: Problem) -> Call:
    def update(weight: Any, read: Any, write: Any) -> Any:
        if given.dim == 0:
            return weight - write.T @ (read.T @ weight)
        return weight - (weight @ read) @ write

    return donated(update, given.x, *given.directions)


@peer(OP, "numpy", OUT, needs="numpy", dtypes=FLOAT32, cpu_only=True)
def numpy_in_place(given: Problem) -> Call:
    import numpy as np

    weight = given.x.numpy().copy()
    read, write = (factor.numpy() for factor in given.directions)
    update = np.empty_like(weight)

    def call() -> Any:
        if given.dim == 0:
            np.matmul(write.T, read.T @ weight, out=update)
        else:
            np.matmul(weight @ read, write, out=update)
        return np.subtract(weight, update, out=weight)

    return call
