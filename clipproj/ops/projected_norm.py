"""The lengths of projected rows, without the rows."""

import torch
from torch import Tensor

from clipproj.ops import _autograd, _checks

_projected_norm = torch.ops.clipproj.projected_norm.default


@torch.library.register_fake("clipproj::projected_norm")
def _(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
) -> Tensor:
    _checks.features("projected_norm", x, read, write, offset, strength)
    return x.new_empty(x.shape[:-1], dtype=_autograd.wide(x.dtype))


def projected_norm(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
) -> Tensor:
    """The length of each projected row, without writing the rows; arguments as in `project`.

    It is the one stored scalar per vector with which an index of unprojected vectors answers
    projected queries. Measured on the projected row, not as `|x|^2 - |x read^T|^2`, which cancels.

    Returns:
        `[...]`, the leading dims of x, float32 (float64 for float64 x). Differentiable in x; the
        gradient at a zero row is zero.

    Raises:
        RuntimeError, TypeError: as `project`.
    """
    _checks.strength("projected_norm", strength)
    return _autograd.call(_projected_norm, x, read, write, offset, strength)
