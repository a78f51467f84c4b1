"""A linear head whose rows are projected: `project(x @ weight.T + bias)`."""

import torch
from torch import Tensor

from clipproj.ops import (
    _autograd,
    _autograd_gemm,  # noqa: F401  registers the derivatives
    _checks,
)

_linear = torch.ops.clipproj.linear.default
_linear_flag = torch.ops.clipproj.linear.flag


@torch.library.register_fake("clipproj::linear")
@torch.library.register_fake("clipproj::linear.flag")
def _(
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
    flag: Tensor | None = None,
) -> Tensor:
    n = _checks.linear("linear", x, weight, bias)
    _checks.factors("linear", "x", x, read, write, offset, strength, weight.shape[0], n)
    _checks.bank("linear", x, spans, index, flag)
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


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
        flag: None, or as in `project_rows`, with spans and index.

    Returns:
        A contiguous tensor `[..., d]` in the dtype of x.

    Raises:
        RuntimeError: an argument has the wrong shape, dtype or device, or a factor requires grad.
        TypeError: `strength` is a Python number.
    """
    _checks.strength("linear", strength)
    args = x, weight, bias, read, write, offset, strength
    options = {"normalize": normalize, "spans": spans, "index": index}
    if flag is None:
        return _autograd.call(_linear, *args, **options)
    return _autograd.write(_linear_flag, "flag", *args, **options, flag=flag)
