"""Peers of `linear`: the product of a tower's head, then the projection and the unit length."""

from __future__ import annotations

from peers import NEW, NOT_FLOAT16, Call, compiled, dense, peer
from shapes import Product
from torch import Tensor
from torch.nn import functional

from clipproj import ops

OP = "linear"


def plain(x: Tensor, weight: Tensor, read: Tensor, write: Tensor) -> Tensor:
    z = functional.linear(x, weight)
    return functional.normalize(z - (z @ read) @ write, dim=-1)


@peer(OP, "bare product", NEW, dtypes=NOT_FLOAT16)
def bare(given: Product) -> Call:
    """A bound, not a peer: it takes nothing out, which its error shows."""
    return lambda: functional.linear(given.x, given.matrix)


@peer(OP, "product, project_", NEW, dtypes=NOT_FLOAT16)
def steps(given: Product) -> Call:
    def call() -> Tensor:
        z = functional.linear(given.x, given.matrix)
        ops.project_(z, given.read, given.write, normalize=True)
        return z

    return call


@peer(OP, "eager", NEW, dtypes=NOT_FLOAT16)
def eager(given: Product) -> Call:
    factors = given.directions
    return lambda: plain(given.x, given.matrix, *factors)


@peer(OP, "compile", NEW, dtypes=NOT_FLOAT16)
def compile_new(given: Product) -> Call:
    function, factors = compiled(plain), given.directions
    return lambda: function(given.x, given.matrix, *factors)


@peer(OP, "folded weight", NEW, dtypes=NOT_FLOAT16)
def folded(given: Product) -> Call:
    """What a projector that never changes deserves."""
    weight = dense(given).T @ given.matrix
    return lambda: functional.normalize(functional.linear(given.x, weight), dim=-1)
