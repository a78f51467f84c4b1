"""The operators: `torch.ops.clipproj.*` made whole for autograd and `torch.compile`, and their
public forms.

Schemas and kernels are C++ (csrc/). Here is what PyTorch wants in Python: fake kernels, the
gradient in x, and for the in-place operators two rules that a C++ kernel does not get by itself:
operands that autograd tracks are refused, and autograd is told about the write.

Every operator is the same rank-k update of feature rows,

    x' = x - strength (x read^T - offset) write        read, write [k, d], offset [k]

which is the orthogonal projection of arXiv 2512.14137 with `read is write` = orthonormal forget
directions, its CCUP edit and LEACE (arXiv 2306.03819) with two different factors.
"""

from typing import Any

import torch
from torch import Tensor

from clipproj import (
    _check,
    _load,  # noqa: F401  opens the libraries that define the operators
)

__all__ = ["fold_", "project", "project_", "projected_norm"]

EPS = 1e-12  # of torch.nn.functional.normalize, and of csrc/cpu/project_kernel.inl
_ops = torch.ops.clipproj
_library = torch.library.Library("clipproj", "IMPL")  # registrations live as long as this object


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
    return x.new_empty(x.shape[:-1], dtype=_wide(x.dtype))


# Gradients in x


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type that sums of a dtype are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _save(op: str, keep_x: bool, ctx: Any, inputs: tuple[Tensor | None, ...]) -> None:
    x, *factors = inputs
    names = ("read", "write", "offset", "strength")
    for name, factor, tracked in zip(names, factors, ctx.needs_input_grad[1:], strict=False):
        if factor is not None and tracked:
            raise RuntimeError(
                f"{op}: {name} must not require grad, got requires_grad=True; "
                "train factors in plain torch, x - strength * (x @ read.T - offset) @ write"
            )
    ctx.dtype = x.dtype
    ctx.save_for_backward(x if keep_x else None, *factors)


def _transposed(
    grad: Tensor, factors: list[Tensor | None], dtype: torch.dtype
) -> tuple[Tensor | None, ...]:
    """The gradient through the update: the same update with its sides swapped and no offset."""
    read, write, _, strength = factors
    grad = _ops.project.default(grad, write, read, None, strength)
    return grad.to(dtype), None, None, None, None


def _project_setup(
    ctx: Any, inputs: tuple, keyword_only_inputs: dict[str, Any], output: Tensor
) -> None:
    ctx.normalize = keyword_only_inputs["normalize"]
    _save("project", ctx.normalize, ctx, inputs)


def _project_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, *factors = ctx.saved_tensors
    if ctx.normalize:
        # Half types widen here: a projected row rounded to 8 bits before it divides its own
        # gradient costs what the forward's single rounding saved. The row is computed again by the
        # operator rather than saved, which makes this formula differentiable in x once more.
        wide = _wide(ctx.dtype)
        row = _ops.project.default(x.to(wide), *factors)
        grad = grad.to(wide)
        length = torch.linalg.vector_norm(row, dim=-1, keepdim=True)
        divisor = length.clamp_min(EPS)
        unit = row / divisor
        # Below EPS the divisor is a constant, as in torch.nn.functional.normalize.
        along = torch.where(length >= EPS, (unit * grad).sum(-1, keepdim=True), 0)
        grad = (grad - unit * along) / divisor
    return _transposed(grad, factors, ctx.dtype)


def _projected_norm_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _save("projected_norm", True, ctx, inputs)


def _projected_norm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, *factors = ctx.saved_tensors
    row = _ops.project.default(x.to(_wide(ctx.dtype)), *factors)
    length = torch.linalg.vector_norm(row, dim=-1, keepdim=True)
    unit = row / torch.where(length > 0, length, 1)  # zero rows have subgradient zero
    return _transposed(grad.unsqueeze(-1) * unit, factors, ctx.dtype)


torch.library.register_autograd(
    "clipproj::project", _project_backward, setup_context=_project_setup, lib=_library
)
torch.library.register_autograd(
    "clipproj::projected_norm",
    _projected_norm_backward,
    setup_context=_projected_norm_setup,
    lib=_library,
)


# Writing in place


def _register_in_place(name: str, instead: str) -> None:
    """Autograd's two rules for an operator that writes its first argument.

    The kernels sit where torch.library.custom_op puts its own, so they also hold for callers of
    torch.ops, under no_grad, inference mode and torch.compile.
    """
    op = getattr(_ops, name).default
    names = [argument.name for argument in op._schema.arguments]

    def refuse_tracked(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> None:
        if torch.is_grad_enabled():
            for arg_name, arg in zip(names, args, strict=False):
                if arg is not None and arg.requires_grad:
                    raise RuntimeError(
                        f"{name}: {arg_name} must not require grad in grad mode, "
                        f"got requires_grad=True; {instead}"
                    )
        with torch._C._AutoDispatchBelowAutograd():
            op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)

    def count_write(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> None:
        if args[0].is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"{name}: {names[0]} must be a normal tensor outside inference mode, "
                "got an inference tensor; clone it"
            )
        torch.autograd.graph.increment_version(args[0])
        op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args, **kwargs)

    _library.impl(name, refuse_tracked, "Autograd", with_keyset=True)
    _library.impl(name, count_write, "ADInplaceOrView", with_keyset=True)


_register_in_place("project_", "use project() or torch.no_grad()")
_register_in_place("fold_", "use torch.no_grad()")


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
    under autocast. Differentiable, twice, in x.

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
    return _ops.project.default(x, read, write, offset, strength, normalize=normalize)


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
    _ops.project_.default(x, read, write, offset, strength, normalize=normalize)
    return x


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
    _ops.fold_.default(weight, read, write, offset, strength, dim=dim)
    return weight


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
    return _ops.projected_norm.default(x, read, write, offset, strength)
