"""Class logits of projected features: `scale * normalize(project(x)) @ classes.T + bias`."""

import torch
from torch import Tensor

from clipproj.ops import (
    _autograd,
    _autograd_gemm,  # noqa: F401  registers the derivatives
    _checks,
)

_logits = torch.ops.clipproj.logits.default
_logits_flag = torch.ops.clipproj.logits.flag


@torch.library.register_fake("clipproj::logits")
@torch.library.register_fake("clipproj::logits.flag")
def _(
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
    flag: Tensor | None = None,
) -> Tensor:
    _checks.features("logits", x, read, write, offset, strength)
    _checks.bank("logits", x, spans, index, flag)
    _checks.logits("logits", x, classes, scale, bias, dtype)
    return x.new_empty((*x.shape[:-1], classes.shape[0]), dtype=dtype or x.dtype)


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
        flag: None, or as in `project_rows`, with spans and index.
        dtype: of the result; None means that of x, and `torch.float32` is there for half types.

    Returns:
        A contiguous tensor `[..., C]`.

    Raises:
        RuntimeError: an argument has the wrong shape, dtype or device, or another than x requires
            grad.
        TypeError: `strength` or `scale` is a Python number.
    """
    _checks.strength("logits", strength)
    _checks.scale("logits", scale)
    args = x, classes, read, write, offset, strength, scale, bias
    options = {"spans": spans, "index": index, "dtype": dtype}
    if flag is None:
        return _autograd.call(_logits, *args, **options)
    return _autograd.write(_logits_flag, "flag", *args, **options, flag=flag)
