"""The lengths of projected rows, without the rows."""

from typing import Any

from torch import Tensor

from clipproj.ops import _calls, _checks
from clipproj.ops._derivatives import Length, wide
from clipproj.ops._register import register


def _fake(op: str, x: Tensor, **factors: Any) -> Tensor:
    _checks.features(op, x, **factors)
    return x.new_empty(x.shape[:-1], dtype=wide(x.dtype))


(_projected_norm,) = register("projected_norm", _fake, derivative=Length)


def projected_norm(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    gram: Tensor | None = None,
) -> Tensor:
    """The length of each projected row, without writing the rows; arguments as in `project`.

    It is the one stored scalar per vector with which an index of unprojected vectors answers
    projected queries. Measured on the projected row, not as `|x|^2 - |x read^T|^2`, which cancels.

    Returns:
        `[...]`, the leading dims of x, float32 (float64 for float64 x). Differentiable in x; the
        gradient at a zero row is zero.

    Raises:
        RuntimeError, TypeError: as `project`.

    Example:
        >>> read = torch.tensor([[1.0, 0.0]])
        >>> projected_norm(torch.tensor([[3.0, 4.0]]), read, read)
        tensor([4.])
    """
    _checks.strength("projected_norm", strength)
    return _calls.call(_projected_norm, x, read, write, offset, strength, gram=gram)
