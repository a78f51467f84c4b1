"""A linear head whose rows are projected: `project(x @ weight.T + bias)`."""

import math
from typing import Any

from torch import Tensor
from torch.nn import functional

from clipproj.ops import _calls, _checks, _torch
from clipproj.ops._derivatives import (
    FACTORS,
    Derivative,
    primal,
    through_normalize,
    transposed,
    update,
)
from clipproj.ops._register import register


def _fake(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    normalize: bool,
    spans: Tensor | None,
    index: Tensor | None,
    flag: Tensor | None = None,
    **factors: Any,
) -> Tensor:
    n = _checks.linear(op, x, weight, bias)
    _checks.factors(op, "x", x, d=weight.shape[0], n=n, banked=spans is not None, **factors)
    _checks.bank(op, x, spans, index, flag)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


class _Linear(Derivative):
    """Of the head in x, weight and bias."""

    inputs = ("x", "weight", "bias", *FACTORS)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, *factors = ctx.saved_tensors
        y = None
        if ctx.normalize or factors[-1] is not None:
            # Computed again rather than saved, so that the formula is differentiable.
            y = functional.linear(x, weight, bias)
            grad = through_normalize(grad, y, factors) if ctx.normalize else grad
        grad = transposed(grad, y, factors).to(x.dtype)
        of_x, of_weight, of_bias = ctx.needs_input_grad[2:5]
        n = math.prod(x.shape[:-1])
        rows = grad.reshape(n, grad.shape[-1])
        return (
            None,
            None,
            grad @ weight if of_x else None,
            rows.T @ x.reshape(n, x.shape[-1]) if of_weight else None,
            rows.sum(0) if of_bias else None,
            *[None] * len(factors),
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, weight, bias, *factors = ctx.saved_tensors
        x_tangent, weight_tangent, bias_tangent = tangents[2:5]
        with _torch.enable_forward(True):
            x, weight, bias = primal(x), primal(weight), primal(bias)
            parts = [
                part
                for part in (
                    None if x_tangent is None else x_tangent @ weight.T,
                    None if weight_tangent is None else x @ weight_tangent.T,
                    bias_tangent,
                )
                if part is not None
            ]
            tangent = sum(parts[1:], parts[0]).expand(*x.shape[:-1], -1)
            if not ctx.normalize and factors[-1] is None:
                return update(tangent, None, factors)
            y = functional.linear(x, weight, bias)
            tangent = update(tangent, y, factors)
            if not ctx.normalize:
                return tangent
            return through_normalize(tangent, y, factors).to(x.dtype)


_linear, _linear_flag = register(
    "linear", _fake, derivative=_Linear, autocast=("x", "weight", "bias")
)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
    spans: Tensor | None = None,
    index: Tensor | None = None,
    gram: Tensor | None = None,
    flag: Tensor | None = None,
) -> Tensor:
    """Projects the rows of a linear head: `project(x @ weight.T + bias)`, without a second result.

    One projector that stays is better folded into the weight once, with `fold_`, and costs nothing
    from then on. This operator is for what cannot be folded: a projector of its own for each row
    (tenants who share a model), and weights that are frozen, shared or checked by their hash.

    The product is the library's, in the dtype of x as `torch.nn.functional.linear` computes it,
    so that bits may depend on the batch; a NaN still stays in its row. Under autocast x, weight and
    bias are cast, the factors never. Differentiable in x, weight and bias, twice, in forward mode
    too and in torch.func.

    Args:
        x: `[..., in]`, float32, bfloat16 or float16, on the CPU also float64; any strides.
        weight: `[d, in]`, d >= 1, as `torch.nn.functional.linear` takes it, in the dtype of x.
        bias: `[d]` in the dtype of x, or None.
        read, write, offset, strength: as in `project`, for rows of length d.
        normalize: as in `project`.
        spans, index: None, or both as in `project_rows`: each row by the projector of its own.
        gram: None, or as in `project`; with spans as in `project_rows`.
        flag: None, or as in `project_rows`, with spans and index.

    Returns:
        A contiguous tensor `[..., d]` in the dtype of x.

    Raises:
        RuntimeError: an argument has the wrong shape, dtype or device, or a factor requires grad.
        TypeError: `strength` is a Python number.

    Example:
        >>> x, weight, read = torch.ones(1, 3), torch.ones(2, 3), torch.tensor([[1.0, 0.0]])
        >>> clipproj.ops.linear(x, weight, None, read, read)
        tensor([[0., 3.]])
    """
    _checks.strength("linear", strength)
    args = x, weight, bias, read, write, offset, strength
    options = {"normalize": normalize, "spans": spans, "index": index, "gram": gram}
    if flag is None:
        return _calls.call(_linear, *args, **options)
    return _calls.write(_linear_flag, "flag", *args, **options, flag=flag)
