"""Folding an edit into a projection weight or its bias, in place."""

from typing import Any

from torch import Tensor

from clipproj.ops import _calls, _checks
from clipproj.ops._register import register


def _fake(op: str, weight: Tensor, dim: int, **factors: Any) -> None:
    _checks.weight(op, weight, dim=dim, **factors)
    _checks.writable(op, "weight", weight, flat=False)


(_fold_,) = register("fold_", _fake, instead="use torch.no_grad()")


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

    Example:
        >>> head, read = torch.nn.Linear(3, 2, bias=False), torch.tensor([[1.0, 0.0]])
        >>> with torch.no_grad():
        ...     weight = fold_(head.weight, read, read, dim=0)
        >>> head(torch.ones(3))[0].item()  # nothing is left along `read`
        0.0
    """
    _checks.strength("fold_", strength)
    return _calls.write(_fold_, "weight", weight, read, write, offset, strength, dim=dim)
