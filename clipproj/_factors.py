"""What a `Projector` demands of what it is made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from clipproj._tensors import as_tensor
from clipproj.refusal import Refusal


class Factors(TypedDict):
    """What the operators take of a projector by keyword: `ops.project(x, **p.factors())`."""

    read: Tensor
    write: Tensor
    offset: Tensor | None
    strength: Tensor


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


def move_buffers(module: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """What `.to()` and its like do to buffers, except that they keep their precision."""
    for name, buffer in module._buffers.items():
        if buffer is not None:
            moved = fn(buffer)
            same = moved.dtype == buffer.dtype
            module._buffers[name] = moved if same else buffer.to(moved.device)
