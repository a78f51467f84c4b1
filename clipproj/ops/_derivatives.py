"""Derivatives of the update in x, out of the operators themselves.

`factors` are always read, write, offset, strength, spans, index and gram, in this order.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from clipproj.ops import _one_sided, _torch
from clipproj.ops._calls import PLAIN

EPS = 1e-12  # of torch.nn.functional.normalize, and of csrc/cpu/project_kernel.inl
FACTORS = ("read", "write", "offset", "strength", "spans", "index", "gram")
TRAIN_FACTORS = f"train factors in plain torch, {PLAIN}"
_ops = torch.ops.clipproj


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that sums of a dtype are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# Formulas


def _project(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    strength: Tensor | None,
    spans: Tensor | None,
    index: Tensor | None,
    gram: Tensor | None,
) -> Tensor:
    """The update; with spans, that of each row's own projector."""
    if spans is None or index is None:
        return _ops.project.default(x, read, write, offset, strength, gram=gram)
    return _ops.project_rows.default(x, read, write, offset, spans, index, strength, gram=gram)


def update(tangent: Tensor, x: Tensor | None, factors: Sequence[Any]) -> Tensor:
    """A tangent of x through the update, which is linear up to its offset, or else at x."""
    read, write, _, *rest = factors
    if factors[-1] is not None and x is not None:
        return _one_sided.derivative(tangent, x, factors, back=False)
    return _project(tangent, read, write, None, *rest)


def transposed(grad: Tensor, x: Tensor | None, factors: Sequence[Any]) -> Tensor:
    """A gradient back through the update: the same update with its sides swapped."""
    read, write, _, *rest = factors
    if factors[-1] is not None and x is not None:
        return _one_sided.derivative(grad, x, factors, back=True)
    return _project(grad, write, read, None, *rest)


def _row(x: Tensor, factors: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """The projected row and its length, wide: a row rounded to 8 bits before it divides its own
    derivative costs what the forward's single rounding saved.

    Computed again by the operator rather than saved, so that formulas are differentiable in x.
    """
    row = _project(x.to(wide(x.dtype)), *factors)
    return row, torch.linalg.vector_norm(row, dim=-1, keepdim=True)


def through_normalize(v: Tensor, x: Tensor, factors: Sequence[Any]) -> Tensor:
    """v times the derivative of normalize at the projected row, a symmetric matrix."""
    row, length = _row(x, factors)
    v = v.to(row.dtype)
    divisor = length.clamp_min(EPS)
    unit = row / divisor
    # Below EPS the divisor is a constant, as in torch.nn.functional.normalize.
    along = torch.where(length >= EPS, (unit * v).sum(-1, keepdim=True), 0)
    return (v - unit * along) / divisor


def _direction(x: Tensor, factors: Sequence[Any]) -> Tensor:
    """The derivative of the length at the projected row."""
    row, length = _row(x, factors)
    return row / torch.where(length > 0, length, 1)  # zero rows have subgradient zero


def primal(x: Any) -> Any:
    """x without its tangent at this level."""
    return None if x is None else _torch.unpack_dual(x).primal


# Operators with their derivatives


class Derivative(_torch.SingleLevelFunction):
    """An operator with its derivatives, for _register.py. Single-level, because it runs inside the
    dispatcher, where torch.func has come down to one of its levels.

    Arguments of apply: `run`, which calls the operator below autograd; the operator's option
    `normalize`; the tensors of `inputs`. What backward returns begins with None for the first two.
    jvp is called with forward mode off, for its level and those below: it goes through
    `_torch.enable_forward`, and takes the `primal` of what has a tangent of its own.
    """

    apply: ClassVar[Callable[..., Tensor]]  # of torch, which does not declare it
    inputs: tuple[str, ...] = ("x", *FACTORS)
    # Other arguments that could be tracked, and what to do instead.
    refused: dict[str, str] = dict.fromkeys((*FACTORS[:4], "gram"), TRAIN_FACTORS)

    _compiled_autograd_key = _torch.compiled_autograd_key

    @staticmethod
    def forward(run: Callable[[], Tensor], normalize: bool, *inputs: Tensor | None) -> Tensor:
        # Both are off in here, for this level. More levels of torch.func may be below.
        with torch.enable_grad(), _torch.enable_forward(True):
            return run()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.normalize, *saved = inputs
        ctx.dtype = output.dtype
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)


class ProjectedRows(Derivative):
    """Of projected rows, normalised or not."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        run, normalize, x, *factors = inputs
        at = (
            x if normalize or factors[-1] is not None else None
        )  # a linear update is one everywhere
        Derivative.setup_context(ctx, (run, normalize, at, *factors), output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *factors = ctx.saved_tensors
        if ctx.normalize:
            grad = through_normalize(grad, x, factors)
        return None, None, transposed(grad, x, factors).to(ctx.dtype), *[None] * len(factors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, *factors = ctx.saved_tensors
        with _torch.enable_forward(True):
            if not ctx.normalize:
                return update(tangents[2], primal(x), factors)
            tangent = update(tangents[2].to(wide(ctx.dtype)), primal(x), factors)
            return through_normalize(tangent, primal(x), factors).to(ctx.dtype)


class Length(Derivative):
    """Of the length of the projected row."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *factors = ctx.saved_tensors
        grad = grad.unsqueeze(-1) * _direction(x, factors)
        return None, None, transposed(grad, x, factors).to(x.dtype), *[None] * len(factors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, *factors = ctx.saved_tensors
        with _torch.enable_forward(True):
            tangent = update(tangents[2].to(wide(x.dtype)), primal(x), factors)
            return (tangent * _direction(primal(x), factors)).sum(-1)
