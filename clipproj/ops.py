"""The operators: `torch.ops.clipproj.*` made whole for `torch.compile`, and their public forms.

Schemas and kernels are C++ (csrc/). Here are the fake kernels; derivatives are in _autograd.py.

Every operator is the same rank-k update of feature rows,

    x' = x - strength (x read^T - offset) write        read, write [k, d], offset [k]

which is the orthogonal projection of arXiv 2512.14137 with `read is write` = orthonormal forget
directions, its CCUP edit and LEACE (arXiv 2306.03819) with two different factors.
"""

import torch
from torch import Tensor

from clipproj import (
    _autograd,
    _check,
    _load,  # noqa: F401  opens the libraries that define the operators
)

__all__ = ["fold_", "project", "project_", "project_out", "projected_norm"]

_project = torch.ops.clipproj.project.default
_project_ = torch.ops.clipproj.project_.default
_project_out = torch.ops.clipproj.project_out.default
_fold_ = torch.ops.clipproj.fold_.default
_projected_norm = torch.ops.clipproj.projected_norm.default


# Fake kernels


@torch.library.register_fake("clipproj::project")
def _(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
) -> Tensor:
    _check.features("project", x, read, write, offset, strength)
    return x.new_empty(x.shape)


@torch.library.register_fake("clipproj::project_")
def _(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
) -> None:
    _check.features("project_", x, read, write, offset, strength)
    _check.writable("project_", "x", x, flat=True)


@torch.library.register_fake("clipproj::project_out")
def _(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
    out: Tensor,
) -> None:
    _check.features("project_out", x, read, write, offset, strength)
    _check.out("project_out", out, x)
    _check.writable("project_out", "out", out, flat=True)


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
    _check.weight("fold_", weight, read, write, offset, strength, dim)
    _check.writable("fold_", "weight", weight, flat=False)


@torch.library.register_fake("clipproj::projected_norm")
def _(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
) -> Tensor:
    _check.features("projected_norm", x, read, write, offset, strength)
    return x.new_empty(x.shape[:-1], dtype=_autograd.wide(x.dtype))


# Public forms


def _require_tensor(op: str, strength: object) -> None:
    # A number would be a constant of every graph that captures the call.
    if strength is not None and not isinstance(strength, Tensor):
        raise TypeError(f"{op}: strength must be a tensor or None, got {type(strength).__name__}")


def project(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
) -> Tensor:
    """Projects feature rows: `x - strength * (x @ read.T - offset) @ write`, in one pass over x.

    Sums run in float32 (float64 for float64 x) and are rounded once, at the store. A row's bits
    depend on that row alone: not on the batch, its neighbours or the number of threads. Neutral
    under autocast. Differentiable in x, twice, in forward mode too and in torch.func.

    Args:
        x: `[..., d]`, d >= 1, float32, bfloat16 or float16, on the CPU also float64; any strides.
        read: `[k, d]` float32 (float64 with float64 x), on the device of x, 0 <= k.
        write: `[k, d]`, like `read`; pass the same tensor twice for a symmetric projector.
        offset: `[k]`, like `read`; None means zero. LEACE's `read . bias`.
        strength: like `read`, 0-dim, or `[n]` with one value for each of the n rows of x with its
            leading dims flattened; None means 1. 0 leaves x as it is, 1 projects, 2 reflects.
        normalize: divide each projected row by its length, at least 1e-12, as
            `torch.nn.functional.normalize` does. Zero rows stay zero.

    Returns:
        A contiguous tensor like x that shares no memory with it, also when k = 0.

    Raises:
        RuntimeError: an argument has the wrong shape, dtype or device, or a factor requires grad.
        TypeError: `strength` is a Python number, which every compiled graph would bake in.
    """
    _require_tensor("project", strength)
    return _autograd.call(_project, x, read, write, offset, strength, normalize=normalize)


def project_(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
) -> Tensor:
    """`project` written over x, with the same bits; arguments as there. Returns x.

    Raises:
        RuntimeError: as `project`; also when an argument requires grad in grad mode, when two
            elements of x share an address, when x shares memory with a factor, or when its leading
            dims do not flatten to one stride.
        TypeError: `strength` is a Python number.
    """
    _require_tensor("project_", strength)
    return _autograd.write(_project_, "x", x, read, write, offset, strength, normalize=normalize)


def project_out(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
    out: Tensor,
) -> Tensor:
    """`project` written into `out`, with the same bits; arguments as there. Returns out.

    Memory that is written again and again is spared the page faults of a large new result, and a
    small one the allocator.

    Args:
        out: of the shape, dtype and device of x; any strides whose leading dims flatten to one
            stride, such as a slice of columns. May be x itself (then this is `project_`) or lie
            beside it in one buffer (`buffer[:, :d]` and `buffer[:, d:]`). Under `torch.compile`
            contiguous, which Dynamo asks of every `out`.

    Raises:
        RuntimeError: as `project`; also when an argument requires grad in grad mode, when `out` has
            another shape, dtype or device than x, when two of its elements share an address, when
            it shares memory with a factor or with other elements of x than the ones they become, or
            when its leading dims do not flatten to one stride.
        TypeError: `strength` is a Python number.
    """
    _require_tensor("project_out", strength)
    return _autograd.write(
        _project_out, "out", x, read, write, offset, strength, normalize=normalize, out=out
    )


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
    _require_tensor("fold_", strength)
    return _autograd.write(_fold_, "weight", weight, read, write, offset, strength, dim=dim)


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
    _require_tensor("projected_norm", strength)
    return _autograd.call(_projected_norm, x, read, write, offset, strength)
