"""Folding an edit into a projection weight or its bias, in place."""

import torch
from torch import Tensor

from clipproj.ops import _autograd, _checks

_fold_ = torch.ops.clipproj.fold_.default


@torch.library.register_fake("clipproj::fold_")
def _(
    weight: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    dim: int,
) -> None:
    _checks.weight("fold_", weight, read, write, offset, strength, dim)
    _checks.writable("fold_", "weight", weight, flat=False)


def fold_(
    weight: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    dim: int,
) -> Tensor:
    """Folds the update into a projection weight or its bias, in place; returns the weight.

    Features of the folded head are the projected features of the old one, `(x A + b)' = x A' + b'`
    with `A' = A - strength (A read^T) write` and `b' = b - strength (b read^T - offset) write`.
    Bits depend on the vector that is projected, not on its neighbours or the number of threads; but
    a weight and its transpose, folded along the other dim, may differ in the last one.

    Args:
        weight: `[in, d]` of an `x @ A` head, `[d, in]` of `nn.Linear.weight`, or a bias `[d]`; any
            strides; dtypes as x of `project`.
        read, write: as in `project`.
        offset: as in `project`, only with a bias: nothing else can hold it.
        strength: as in `project`, 0-dim; None means 1.
        dim: the embedding dimension of `weight`: 1 or -1 for `[in, d]`, 0 for `[d, in]` and `[d]`.

    Raises:
        RuntimeError: an argument has the wrong shape, dtype or device, an argument requires grad in
            grad mode, two elements of the weight share an address, or it shares memory with a
            factor.
        TypeError: `strength` is a Python number.
    """
    _checks.strength("fold_", strength)
    return _autograd.write(_fold_, "weight", weight, read, write, offset, strength, dim=dim)
