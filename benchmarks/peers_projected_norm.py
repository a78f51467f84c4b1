"""Peers of `projected_norm`: rows are projected, then measured; `[n]` float32 comes back."""

from __future__ import annotations

from typing import Any

import torch
from peers import FLOAT32, NEW, NOT_FLOAT16, Call, compiled, dense, jax_array, peer
from shapes import Problem
from torch import Tensor

OP = "projected_norm"


def lengths(rows: Tensor) -> Tensor:
    """In float32, as the operator: a half type would round the stored scalar."""
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)


def plain(x: Tensor, read: Tensor, write: Tensor) -> Tensor:
    return lengths(x - (x @ read) @ write)


@peer(OP, "eager", NEW)
def eager(given: Problem) -> Call:
    read, write = given.directions
    return lambda: plain(given.x, read, write)


@peer(OP, "eager addmm", NEW)
def eager_addmm(given: Problem) -> Call:
    read, write = given.directions
    return lambda: lengths(torch.addmm(given.x, given.x @ read, write, alpha=-1))


@peer(OP, "eager out=", NEW)
def eager_out(given: Problem) -> Call:
    """The rows in buffers made once; what the user wants, the lengths, is new."""
    x, (read, write) = given.x, given.directions
    dots, rows = x @ read, torch.empty_like(x)

    def call() -> Tensor:
        torch.mm(x, read, out=dots)
        return lengths(torch.addmm(x, dots, write, alpha=-1, out=rows))

    return call


@peer(OP, "compile", NEW)
def compile_new(given: Problem) -> Call:
    function, factors = compiled(plain), given.directions
    return lambda: function(given.x, *factors)


@peer(OP, "dense P", NEW, dtypes=NOT_FLOAT16)
def dense_new(given: Problem) -> Call:
    matrix, rows = dense(given), torch.empty_like(given.x)
    return lambda: lengths(torch.mm(given.x, matrix, out=rows))


@peer(OP, "JAX", NEW, needs="jax")
def jax_new(given: Problem) -> Call:
    import jax
    import jax.numpy as jnp

    x, read, write = map(jax_array, (given.x, *given.directions))

    @jax.jit
    def function(x: Any, read: Any, write: Any) -> Any:
        return jnp.linalg.norm((x - (x @ read) @ write).astype(jnp.float32), axis=-1)

    return lambda: function(x, read, write).block_until_ready()


@peer(OP, "numpy", NEW, needs="numpy", dtypes=FLOAT32, cpu_only=True)
def numpy_new(given: Problem) -> Call:
    import numpy as np

    x, read, write = given.x.numpy(), *(factor.numpy() for factor in given.directions)
    dots, rows = x @ read, np.empty_like(x)

    def call() -> Any:
        np.matmul(np.matmul(x, read, out=dots), write, out=rows)
        np.subtract(x, rows, out=rows)
        return np.sqrt(np.einsum("nd,nd->n", rows, rows))

    return call
