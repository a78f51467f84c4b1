"""Projecting rows: into a new tensor, over the old one, or into one that is given."""

from typing import Any

from torch import Tensor

from clipproj.ops import _calls, _checks
from clipproj.ops._derivatives import ProjectedRows
from clipproj.ops._register import register


def _fake_project(op: str, x: Tensor, normalize: bool, **factors: Any) -> Tensor:
    _checks.features(op, x, **factors)
    return x.new_empty(x.shape)


def _fake_project_(op: str, x: Tensor, normalize: bool, **factors: Any) -> None:
    _checks.features(op, x, **factors)
    _checks.writable(op, "x", x, flat=True)


def _fake_project_out(op: str, x: Tensor, normalize: bool, out: Tensor, **factors: Any) -> None:
    _checks.features(op, x, **factors)
    _checks.out(op, out, x)
    _checks.writable(op, "out", out, flat=True)


_INSTEAD = "use project() or torch.no_grad()"
(_project,) = register("project", _fake_project, derivative=ProjectedRows)
(_project_,) = register("project_", _fake_project_, instead=_INSTEAD)
(_project_out,) = register("project_out", _fake_project_out, instead=_INSTEAD)


def project(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
    gram: Tensor | None = None,
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
        gram: `[k, k]`, like `read`, k <= 256: `read @ write.T`, symmetric, positive definite, with
            a diagonal of 1. None: the update is linear. With it the update is one-sided: of the
            excess `c = x @ read.T - offset` only so much is taken out as brings each
            `x @ read.T` down to its offset. The coefficients are the `a >= 0` with the least
            `a gram a / 2 - a c`: for k = 1 or a diagonal gram `max(c, 0)`. A row without excess
            keeps its bits. The kernels stop when no coefficient moves by more than 2^-10 of the
            row's largest excess, and then raise what is left to raise (csrc/cpu/solve.inl;
            Hildreth's method, Naval Research Logistics Quarterly 1957).
        normalize: divide each projected row by its length, at least 1e-12, as
            `torch.nn.functional.normalize` does. Zero rows stay zero.

    Returns:
        A contiguous tensor like x that shares no memory with it, also when k = 0.

    Raises:
        RuntimeError: an argument has the wrong shape, dtype or device, or a factor requires grad.
        TypeError: `strength` is a Python number, which every compiled graph would bake in.

    Example:
        >>> x, read = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0]])
        >>> project(x, read, read)
        tensor([[0., 4.],
                [0., 2.]])
        >>> project(torch.tensor([[3.0, 4.0], [-3.0, 4.0]]), read, read, gram=torch.eye(1))
        tensor([[ 0.,  4.],
                [-3.,  4.]])
    """
    _checks.strength("project", strength)
    return _calls.call(_project, x, read, write, offset, strength, normalize=normalize, gram=gram)


def project_(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
    gram: Tensor | None = None,
) -> Tensor:
    """`project` written over x, with the same bits; arguments as there. Returns x.

    Raises:
        RuntimeError: as `project`; also when an argument requires grad in grad mode, when two
            elements of x share an address, when x shares memory with a factor, or when its leading
            dims do not flatten to one stride.
        TypeError: `strength` is a Python number.

    Example:
        >>> x, read = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])
        >>> clipproj.ops.project_(x, read, read) is x, x
        (True, tensor([[0., 4.]]))
    """
    _checks.strength("project_", strength)
    options = {"normalize": normalize, "gram": gram}
    return _calls.write(_project_, "x", x, read, write, offset, strength, **options)


def project_out(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None = None,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
    gram: Tensor | None = None,
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

    Example:
        >>> x, read, out = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]), torch.empty(1, 2)
        >>> clipproj.ops.project_out(x, read, read, out=out)
        tensor([[0., 4.]])
    """
    _checks.strength("project_out", strength)
    options = {"normalize": normalize, "gram": gram, "out": out}
    return _calls.write(_project_out, "out", x, read, write, offset, strength, **options)
