"""Operators as functions of x, the same out of torch's own, and ways to derive them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, func
from torch.autograd import forward_ad
from torch.nn import functional

from clipproj import ops

FUNCTIONS = ["project", "normalize", "projected_norm", "project_rows", "normalize rows"]


def spans_of(k: int) -> list[list[int]]:
    """A bank of three projectors on k directions: overlapping, one of rank 0."""
    return [[0, k], [k // 2, k - k // 2], [k, 0]]


def index_of(x: Tensor) -> Tensor:
    """The projector of each row of x: none, or one of those three."""
    return (torch.arange(x.numel() // x.shape[-1], device=x.device) % 4 - 1).int()


def project_rows(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """The factors as that bank."""
    spans = torch.tensor(spans_of(len(read)), dtype=torch.int32, device=x.device)
    return ops.project_rows(x, read, write, offset, spans, index_of(x), strength, **options)


def differentiable(given_factors: dict[str, Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each operator that has derivatives, as a function of x."""
    return {
        "project": lambda x: ops.project(x, **given_factors),
        "normalize": lambda x: ops.project(x, **given_factors, normalize=True),
        "projected_norm": lambda x: ops.projected_norm(x, **given_factors),
        "project_rows": lambda x: project_rows(x, **given_factors),
        "normalize rows": lambda x: project_rows(x, **given_factors, normalize=True),
    }


def plain(given_factors: dict[str, Tensor]) -> dict[str, Callable[[Tensor], Tensor]]:
    """The same functions out of torch's own operators, for factors without per-row strength."""

    def update(x: Tensor) -> Tensor:
        read, write = given_factors["read"], given_factors["write"]
        coordinates = x @ read.T - given_factors.get("offset", 0)
        return x - given_factors.get("strength", 1) * coordinates @ write

    def update_rows(x: Tensor) -> Tensor:
        k = len(given_factors["read"])
        own = [[start <= i < start + rank for i in range(k)] for start, rank in spans_of(k)]
        member = torch.tensor([*own, [False] * k], device=x.device)
        of_row = member[index_of(x).long()].view(*x.shape[:-1], k)  # -1: the last, of no direction
        read, write = given_factors["read"], given_factors["write"]
        coordinates = (x @ read.T - given_factors.get("offset", 0)) * of_row
        return x - given_factors.get("strength", 1) * coordinates @ write

    return {
        "project": update,
        "normalize": lambda x: functional.normalize(update(x), dim=-1),
        "projected_norm": lambda x: torch.linalg.vector_norm(update(x), dim=-1),
        "project_rows": update_rows,
        "normalize rows": lambda x: functional.normalize(update_rows(x), dim=-1),
    }


def dual_tangent(function: Callable, x: Tensor, tangent: Tensor) -> Tensor | None:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent


# Of a function f at rows x with tangents v. Each composes the transforms in another way.
TRANSFORMS: dict[str, Callable[[Callable, Tensor, Tensor], Tensor]] = {
    "dual numbers": dual_tangent,
    "jvp": lambda f, x, v: func.jvp(f, (x,), (v,))[1],
    "jvp under no_grad": lambda f, x, v: torch.no_grad()(func.jvp)(f, (x,), (v,))[1],
    "linearize": lambda f, x, v: func.linearize(f, x)[1](v),
    "vjp": lambda f, x, v: func.vjp(f, x)[1](f(v))[0],
    "grad": lambda f, x, v: func.grad(lambda r: f(r).sin().sum())(x),
    "jacfwd": lambda f, x, v: func.jacfwd(f)(x[0]),
    "jacrev": lambda f, x, v: func.jacrev(f)(x[0]),
    "hessian": lambda f, x, v: func.hessian(lambda r: f(r).sin().sum())(x[0]),
    "forward twice": lambda f, x, v: func.jacfwd(func.jacfwd(f))(x[0]),
    "backward over forward": lambda f, x, v: func.jacrev(func.jacfwd(f))(x[0]),
    "vmap": lambda f, x, v: func.vmap(f, in_dims=1)(x.view(2, 3, -1)),
    "per-sample gradients": lambda f, x, v: func.vmap(func.grad(lambda r: f(r).sin().sum()))(x),
    "another level's input": lambda f, x, v: func.jvp(
        lambda r: func.grad(lambda s: s.square().sum() * f(r).sum())(r), (x,), (v,)
    )[1],
    "autograd over func": lambda f, x, v: torch.autograd.functional.jacobian(
        func.grad(lambda r: f(r).sin().sum()), x[0]
    ),
}
