"""Peers of `logits`: rows are projected and normalised, then multiplied by the class embeddings."""

from __future__ import annotations

import torch
from peers import NEW, NOT_FLOAT16, Call, compiled, peer
from shapes import SCALE, Product
from torch import Tensor
from torch.nn import functional

from clipproj import ops

OP = "logits"


def plain(x: Tensor, classes: Tensor, read: Tensor, write: Tensor) -> Tensor:
    return SCALE * functional.normalize(x - (x @ read) @ write, dim=-1) @ classes.T


@peer(OP, "bare product", NEW, dtypes=NOT_FLOAT16)
def bare(given: Product) -> Call:
    """A bound, not a peer: it takes nothing out, which its error shows."""
    return lambda: given.x @ given.matrix.T


@peer(OP, "project, product", NEW, dtypes=NOT_FLOAT16)
def steps(given: Product) -> Call:
    def call() -> Tensor:
        z = ops.project(given.x, given.read, given.write, normalize=True)
        return torch.mm(z, given.matrix.T).mul_(SCALE)

    return call


@peer(OP, "eager", NEW, dtypes=NOT_FLOAT16)
def eager(given: Product) -> Call:
    factors = given.directions
    return lambda: plain(given.x, given.matrix, *factors)


@peer(OP, "compile", NEW, dtypes=NOT_FLOAT16)
def compile_new(given: Product) -> Call:
    function, factors = compiled(plain), given.directions
    return lambda: function(given.x, given.matrix, *factors)
