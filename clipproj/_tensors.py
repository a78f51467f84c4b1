"""Rows that are no plain tensor: numpy arrays, DTensors, nested tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from clipproj.refusal import Refusal


def as_tensor(op: str, name: str, value: Any, device: torch.device | str = "cpu") -> Tensor | Any:
    """A numpy array as a tensor on `device`, with its memory where that can be; others as they are.

    TypeError, in the name of `op`, for an array of anything but float32, float64 or float16, or
    with a mask, which would be lost.
    """
    if not isinstance(value, np.ndarray):
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{op}: {name} must be without a mask, got a masked array; .filled() it")
    if value.dtype.kind != "f" or value.dtype.itemsize > 8:
        raise TypeError(
            f"{op}: {name} must be float32, float64 or float16, got {value.dtype}; make it one, "
            "with .astype(numpy.float32)"
        )
    # torch takes no other byte order, no negative strides, and warns of memory it may not write
    native = value.astype(value.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(native, requirements=["C", "W"])).to(device)


def check_plain(op: str, x: Any) -> None:
    """TypeError, in the name of `op`, for what is not one tensor with all its rows."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x must be a tensor, got {type(x).__name__}")
    if x.is_nested:
        refuse_nested(op)
    if is_sharded(x):
        raise TypeError(f"{op}: x must be a plain tensor, got a DTensor; take x.to_local()")


def refuse_nested(op: str) -> NoReturn:
    """TypeError, in the name of `op`."""
    raise TypeError(f"{op}: x must be one tensor, got a nested one; pass torch.cat(x.unbind())")


def is_sharded(x: Any) -> bool:
    """Whether it is a DTensor, without importing what only those import who have one."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def whole(x: Any) -> Tensor:
    """A DTensor put together, such as a distributed projector's factors; others as they are."""
    return x if type(x) is Tensor or not is_sharded(x) else x.full_tensor()


def shard_by_shard(op: str, edit: Callable[[Tensor], Tensor], x: Any) -> Any:
    """The DTensor of edited rows: each process edits its own, which know nothing of the others.

    ValueError, in the name of `op`, for rows that are in pieces: sharded within, or partial sums.
    """
    from torch.distributed.tensor import DTensor

    for placement in x.placements:
        by_rows = placement.is_shard() and placement.dim < x.ndim - 1
        if not by_rows and not placement.is_replicate():
            raise Refusal(op, "x", f"must be sharded by rows or replicated, got {placement}")
    rows = edit(x.to_local())
    strides = torch.empty(x.shape, dtype=torch.float32, device="meta").stride()
    return DTensor.from_local(
        rows, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=strides
    )
