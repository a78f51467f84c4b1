"""What a `Projector` demands of what it is made from."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from clipproj._tensors import as_tensor
from clipproj.refusal import Refusal

MOST_ONE_SIDED = 256  # directions of a one-sided projector, as in csrc/check.h
LEAST_EIGENVALUE = 5e-7  # of a gram matrix that float32 still tells from a singular one
_GRAM_TOL = 1e-4  # of an element of gram against read write^T


class LinearFactors(TypedDict):
    """What `ops.fold_` takes of a projector by keyword."""

    read: Tensor
    write: Tensor
    offset: Tensor | None
    strength: Tensor


class Factors(LinearFactors, total=False):
    """What the other operators take by keyword: `ops.project(x, **p.factors())`."""

    gram: Tensor  # of one-sided projectors alone


def factor(name: str, value: Tensor | np.ndarray) -> Tensor:
    """A float32 copy. TypeError for what is no real tensor, ValueError for NaN and inf."""
    value = as_tensor("Projector", name, value)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"Projector: {name} must be a floating point tensor, got {got}")
    with torch.inference_mode(False):  # autograd refuses tensors made in a caller's inference mode
        narrow = value.detach().to(torch.float32, copy=True).contiguous()
    if not narrow.isfinite().all():
        raise Refusal("Projector", name, "must be finite in float32, got NaN or inf")
    return narrow


def check_orthonormal(read: Tensor) -> None:
    """ValueError unless rows are orthonormal, as a symmetric projector's must be."""
    wide = read.double()
    off = (wide @ wide.T - torch.eye(len(wide), dtype=wide.dtype, device=wide.device)).abs()
    if off.numel() and off.max() > 1e-4:
        raise Refusal(
            "Projector",
            "read",
            "must have orthonormal rows when write is None, got rows that are off "
            f"by {off.max():.2g}; give write, or a basis from clipproj.nullspace",
        )


def gram_of(read: Tensor, write: Tensor, gram: Tensor | np.ndarray) -> Tensor:
    """A float32 copy, exactly symmetric with a diagonal of 1.

    Raises as `factor`, and ValueError for what is not `read write^T`, or is so nearly singular that
    no row's coefficients are sure.
    """
    gram, k = factor("gram", gram), len(read)
    if gram.shape != (k, k):
        raise Refusal("Projector", "gram", f"must be [{k}, {k}], got {list(gram.shape)}")
    if k > MOST_ONE_SIDED:
        raise Refusal(
            "Projector", "gram", f"must have at most {MOST_ONE_SIDED} directions, got {k}"
        )
    if not k:
        return gram
    off = (read.double() @ write.double().T - gram.double()).abs().amax()
    if off > _GRAM_TOL:
        raise Refusal(
            "Projector", "gram", f"must be read @ write.T, got elements that are off by {off:.2g}"
        )
    if (off := (gram - gram.T).abs().amax()) > _GRAM_TOL:
        raise Refusal(
            "Projector",
            "gram",
            f"must be symmetric, got elements that are off by {off:.2g}: read and write are of no "
            "one metric",
        )
    beside = (gram.diagonal() - 1).abs().amax()
    if beside > _GRAM_TOL:
        raise Refusal(
            "Projector", "gram", f"must have a diagonal of 1, got one that is off by {beside:.2g}"
        )
    gram = ((gram + gram.T) / 2).fill_diagonal_(1.0)
    least = torch.linalg.eigvalsh(gram.double())[0]
    if least < LEAST_EIGENVALUE:
        raise Refusal(
            "Projector",
            "gram",
            f"must be positive definite, got a smallest eigenvalue of {least:.2g}: some directions "
            "are mixtures of others",
        )
    return gram


def to_base64(rows: Tensor) -> str:
    """float32 rows in base64, for JSON; `from_base64` gives them back bit for bit."""
    return base64.b64encode(rows.detach().cpu().contiguous().numpy().tobytes()).decode()


def from_base64(text: str, dim: int) -> Tensor:
    """[m, dim] float32 on the CPU, out of what `to_base64` gave."""
    data = bytearray(base64.b64decode(text))
    with torch.inference_mode(False):
        return torch.frombuffer(data, dtype=torch.float32).view(-1, dim)


def move_buffers(module: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """What `.to()` and its like do to buffers, except that they keep their precision."""
    for name, buffer in module._buffers.items():
        if buffer is not None:
            moved = fn(buffer)
            same = moved.dtype == buffer.dtype
            module._buffers[name] = moved if same else buffer.to(moved.device)
