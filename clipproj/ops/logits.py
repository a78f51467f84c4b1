"""Class logits of projected features: `scale * normalize(project(x)) @ classes.T + bias`."""

from typing import Any

import torch
from torch import Tensor

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

_INSTEAD = "train it in plain torch, scale * normalize(project(x)) @ classes.T + bias"


def _fake(
    op: str,
    x: Tensor,
    classes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    spans: Tensor | None,
    index: Tensor | None,
    dtype: torch.dtype | None,
    flag: Tensor | None = None,
    **factors: Any,
) -> Tensor:
    _checks.features(op, x, **factors, banked=spans is not None)
    _checks.bank(op, x, spans, index, flag)
    _checks.logits(op, x, classes, scale, bias, dtype)
    return x.new_empty((*x.shape[:-1], classes.shape[0]), dtype=dtype or x.dtype)


class _Logits(Derivative):
    """Of the logits in x."""

    inputs = ("x", "classes", "scale", *FACTORS)
    refused = Derivative.refused | dict.fromkeys(("classes", "scale", "bias"), _INSTEAD)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, classes, scale, *factors = ctx.saved_tensors
        v = (grad @ classes.to(grad.dtype)).to(scale.dtype) * scale
        grad = transposed(through_normalize(v, x, factors), x, factors).to(x.dtype)
        return None, None, grad, None, None, *[None] * len(factors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, classes, scale, *factors = ctx.saved_tensors
        with _torch.enable_forward(True):
            tangent = update(tangents[2].to(scale.dtype), primal(x), factors)
            tangent = through_normalize(tangent, primal(x), factors)
            return (scale * (tangent @ classes.to(scale.dtype).T)).to(ctx.dtype)


_logits, _logits_flag = register("logits", _fake, derivative=_Logits, autocast=("x", "classes"))


def logits(
    x: Tensor,
    classes: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    strength: Tensor | None,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    spans: Tensor | None = None,
    index: Tensor | None = None,
    dtype: torch.dtype | None = None,
    gram: Tensor | None = None,
    flag: Tensor | None = None,
) -> Tensor:
    """Class logits of projected features: `scale * normalize(project(x)) @ classes.T + bias`.

    The product is the library's, so that bits may depend on the batch; a NaN still stays in its
    row. Under autocast x and classes are cast, factors, scale and bias never. Differentiable in x,
    twice, in forward mode too and in torch.func.

    Args:
        x: `[..., d]`, d >= 1, float32, bfloat16 or float16, on the CPU also float64; any strides.
        classes: `[C, d]` class embeddings in the dtype of x, unit rows, 0 <= C.
        read, write, offset, strength: as in `project`.
        scale: 0-dim, like `read`; already exponentiated.
        bias: like `read`, 0-dim (SigLIP's) or `[C]`; None means zero.
        spans, index: None, or both as in `project_rows`: each row by the projector of its own.
        gram: None, or as in `project`; with spans as in `project_rows`.
        flag: None, or as in `project_rows`, with spans and index.
        dtype: of the result; None means that of x, and `torch.float32` is there for half types.

    Returns:
        A contiguous tensor `[..., C]`.

    Raises:
        RuntimeError: an argument has the wrong shape, dtype or device, or another than x requires
            grad.
        TypeError: `strength` or `scale` is a Python number.

    Example:
        >>> x, read = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])
        >>> clipproj.ops.logits(x, torch.eye(2), read, read, None, None, torch.tensor(10.0))
        tensor([[ 0., 10.]])
    """
    _checks.strength("logits", strength)
    _checks.scale("logits", scale)
    args = x, classes, read, write, offset, strength, scale, bias
    options = {"spans": spans, "index": index, "dtype": dtype, "gram": gram}
    if flag is None:
        return _calls.call(_logits, *args, **options)
    return _calls.write(_logits_flag, "flag", *args, **options, flag=flag)
