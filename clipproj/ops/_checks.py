"""The refusals of csrc/check.h that metadata allow, with the same words, for fake tensors.

Sizes go through `torch._check`, which serves symbolic ones as well: a dynamic size gets a guard, an
unbacked one a check at run time. What only the run can know (memory that a factor shares with the
tensor being written, strides that are symbols) is left to the kernels.
"""

import itertools
import math
from typing import Any

import torch
from torch import SymInt, Tensor

_FACTOR_DTYPE = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
}
MOST_ONE_SIDED = 256  # directions, as in csrc/check.h
Size = int | SymInt


def _shape(t: Any) -> str:
    return f"[{', '.join(map(str, t.shape))}]"


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _factor(op: str, name: str, t: Tensor, x: Tensor, want: torch.dtype | None = None) -> None:
    want = want or _FACTOR_DTYPE[x.dtype]
    torch._check(
        t.dtype == want,
        lambda: (
            f"{op}: {name} must be {_name(want)} for {_name(x.dtype)} features, "
            f"got {_name(t.dtype)}"
        ),
    )
    _place(op, name, t, x)


def _place(op: str, name: str, t: Tensor, x: Tensor) -> None:
    torch._check(
        t.device == x.device, lambda: f"{op}: {name} must be on {x.device}, got {t.device}"
    )


def factors(
    op: str,
    subject: str,
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    strength: Tensor | None,
    d: Size,
    n: Size,
    gram: Tensor | None = None,
    banked: bool = False,
) -> None:
    """The factors against n rows of d features of x, which the operator calls `subject`."""
    torch._check(
        x.dtype in _FACTOR_DTYPE and not (x.dtype == torch.float64 and x.device.type == "cuda"),
        lambda: (
            f"{op}: {subject} must be float32, bfloat16 or float16 (float64 on the CPU), "
            f"got {_name(x.dtype)}"
        ),
    )
    torch._check(
        read.dim() == 2 and read.shape[1] == d,
        lambda: f"{op}: read must be [k, d] with d={d}, got {_shape(read)}",
    )
    k = read.shape[0]
    torch._check(
        write.dim() == 2 and write.shape[0] == k and write.shape[1] == d,
        lambda: f"{op}: write must be [k, d] with k={k} and d={d}, got {_shape(write)}",
    )
    _factor(op, "read", read, x)
    _factor(op, "write", write, x)
    if offset is not None:
        torch._check(
            offset.dim() == 1 and offset.shape[0] == k,
            lambda: f"{op}: offset must be [k] with k={k}, got {_shape(offset)}",
        )
        _factor(op, "offset", offset, x)
    if strength is not None:
        torch._check(
            strength.dim() == 0 or (strength.dim() == 1 and strength.shape[0] == n),
            lambda: f"{op}: strength must be 0-dim or [n] with n={n}, got {_shape(strength)}",
        )
        _factor(op, "strength", strength, x)
    if gram is None:
        return
    want = "[k, g]" if banked else "[k, k]"
    torch._check(
        gram.dim() == 2 and gram.shape[0] == k and (banked or gram.shape[1] == k),
        lambda: f"{op}: gram must be {want} with k={k}, got {_shape(gram)}",
    )
    torch._check(
        gram.shape[1] <= MOST_ONE_SIDED,
        lambda: f"{op}: gram must have at most {MOST_ONE_SIDED} columns, got {gram.shape[1]}",
    )
    _factor(op, "gram", gram, x)


def _integers(op: str, name: str, t: Tensor, x: Tensor) -> None:
    torch._check(
        t.dtype == torch.int32, lambda: f"{op}: {name} must be int32, got {_name(t.dtype)}"
    )
    _place(op, name, t, x)


def bank(
    op: str,
    x: Tensor,
    spans: Tensor | None,
    index: Tensor | None,
    flag: Tensor | None = None,
) -> None:
    """The projectors of a bank, and each row's own, for features x [..., d]."""
    alone = "index" if spans is None else "spans"
    torch._check(
        (spans is None) == (index is None),
        lambda: f"{op}: spans and index must come together, got {alone} alone",
    )
    torch._check(
        flag is None or spans is not None,
        lambda: f"{op}: flag must come with spans and index, got it alone",
    )
    if spans is None or index is None:
        return
    torch._check(
        spans.dim() == 2 and spans.shape[1] == 2,
        lambda: f"{op}: spans must be [m, 2], got {_shape(spans)}",
    )
    _integers(op, "spans", spans, x)
    n = math.prod(x.shape[:-1])
    torch._check(
        index.dim() == 1 and index.shape[0] == n,
        lambda: f"{op}: index must be [n] with n={n}, got {_shape(index)}",
    )
    _integers(op, "index", index, x)
    if flag is not None:
        torch._check(
            flag.numel() == 1, lambda: f"{op}: flag must have one element, got {_shape(flag)}"
        )
        _integers(op, "flag", flag, x)


def strength(op: str, given: object) -> None:
    """For the public forms: a number would be a constant of every graph that captures the call."""
    if given is not None and not isinstance(given, Tensor):
        raise TypeError(f"{op}: strength must be a tensor or None, got {type(given).__name__}")


def scale(op: str, given: object) -> None:
    """The same for what has no default."""
    if not isinstance(given, Tensor):
        raise TypeError(f"{op}: scale must be a tensor, got {type(given).__name__}")


def features(
    op: str,
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    strength: Tensor | None,
    gram: Tensor | None = None,
    banked: bool = False,
) -> None:
    """Features x [..., d] against the factors."""
    torch._check(
        x.dim() >= 1 and x.shape[-1] >= 1,
        lambda: f"{op}: x must be [..., d] with d >= 1, got {_shape(x)}",
    )
    n = math.prod(x.shape[:-1])
    factors(op, "x", x, read, write, offset, strength, x.shape[-1], n, gram, banked)


def weight(
    op: str,
    weight: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    strength: Tensor | None,
    dim: int,
) -> None:
    """A projection weight or bias, with its embedding dimension `dim`, against the factors."""
    dims = weight.dim()
    torch._check(
        dims in (1, 2),
        lambda: f"{op}: weight must be [in, d], [d, in] or a bias [d], got {_shape(weight)}",
    )
    torch._check(
        -dims <= dim < dims, lambda: f"{op}: dim must be in [{-dims}, {dims - 1}], got {dim}"
    )
    torch._check(
        offset is None or dims == 1,
        lambda: f"{op}: offset must come with a bias [d] to hold it, got a weight {_shape(weight)}",
    )
    torch._check(
        strength is None or strength.dim() == 0,
        lambda: f"{op}: strength must be 0-dim, got {_shape(strength)}",
    )
    d = weight.shape[dim]
    torch._check(
        d >= 1, lambda: f"{op}: weight must have d >= 1 at dim {dim % dims}, got {_shape(weight)}"
    )
    rows = weight.shape[1 - dim % dims] if dims == 2 else 1
    factors(op, "weight", weight, read, write, offset, strength, d, rows)


def out(op: str, out: Tensor, x: Tensor) -> None:
    """A place for the result of x: of the same shape, dtype and device."""
    text = f"{op}: out must be {{}} as x is, got {{}}".format
    torch._check(out.dim() == x.dim(), lambda: text(_shape(x), _shape(out)))
    for size, want in zip(out.shape, x.shape, strict=True):
        torch._check(size == want, lambda: text(_shape(x), _shape(out)))
    torch._check(out.dtype == x.dtype, lambda: text(_name(x.dtype), _name(out.dtype)))
    _place(op, "out", out, x)


def writable(op: str, subject: str, x: Tensor, *, flat: bool) -> None:
    """Each element of x at an address of its own; `flat`: leading dims flatten to one stride."""
    if not all(isinstance(value, int) for value in (*x.shape, *x.stride())) or x.numel() == 0:
        return
    dims = [(stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]
    reach = 1
    for stride, size in sorted(dims):
        torch._check(
            stride >= reach,
            lambda: (
                f"{op}: {subject} must not overlap itself to be written, "
                "got strides that repeat elements"
            ),
        )
        reach += stride * (size - 1)
    leading = dims[:-1] if x.shape[-1:] != (1,) else dims
    torch._check(
        not flat
        or all(outer[0] == inner[0] * inner[1] for outer, inner in itertools.pairwise(leading)),
        lambda: (
            f"{op}: {subject} must have leading dims that flatten to one stride, got strides of a "
            "permuted view; use project()"
        ),
    )


def linear(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Size:
    """The operands of a product other than the factors. Returns n, the rows of x [..., in]."""
    torch._check(x.dim() >= 1, lambda: f"{op}: x must be [..., in], got {_shape(x)}")
    inner = x.shape[-1]
    torch._check(
        weight.dim() == 2 and weight.shape[0] >= 1 and weight.shape[1] == inner,
        lambda: f"{op}: weight must be [d, in] with d >= 1 and in={inner}, got {_shape(weight)}",
    )
    _factor(op, "weight", weight, x, x.dtype)
    if bias is not None:
        d = weight.shape[0]
        torch._check(
            bias.dim() == 1 and bias.shape[0] == d,
            lambda: f"{op}: bias must be [d] with d={d}, got {_shape(bias)}",
        )
        _factor(op, "bias", bias, x, x.dtype)
    return math.prod(x.shape[:-1])


def logits(
    op: str,
    x: Tensor,
    classes: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype | None,
) -> None:
    """What `logits` takes beside x and the factors, which are checked before."""
    d, want = x.shape[-1], _FACTOR_DTYPE[x.dtype]
    torch._check(
        classes.dim() == 2 and classes.shape[1] == d,
        lambda: f"{op}: classes must be [C, d] with d={d}, got {_shape(classes)}",
    )
    _factor(op, "classes", classes, x, x.dtype)
    c = classes.shape[0]
    torch._check(scale.dim() == 0, lambda: f"{op}: scale must be 0-dim, got {_shape(scale)}")
    _factor(op, "scale", scale, x)
    if bias is not None:
        torch._check(
            bias.dim() == 0 or (bias.dim() == 1 and bias.shape[0] == c),
            lambda: f"{op}: bias must be 0-dim or [C] with C={c}, got {_shape(bias)}",
        )
        _factor(op, "bias", bias, x)
    torch._check(
        dtype is None or dtype == x.dtype or dtype == want,
        lambda: (
            f"{op}: dtype must be None, {_name(x.dtype)} or {_name(want)} for "
            f"{_name(x.dtype)} features, got {_name(dtype)}"
        ),
    )
