"""What the registrations of derivatives share: arguments by name, torch.vmap, nested tensors.

torch.library.register_vmap would be shorter, but takes no operator with a tensor by keyword.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._functorch.autograd_function import custom_function_call_vmap_helper
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.nested._internal.nested_tensor import NestedTensor

from clipproj._tensors import refuse_nested


def named(op: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name; the dispatcher leaves out those that are the default."""
    values = {arg.name: arg.default_value for arg in op._schema.arguments}
    given = dict(zip(values, args, strict=False))
    return values | given | kwargs


def register_vmap(library: torch.library.Library, name: str, op: torch._ops.OpOverload) -> None:
    """torch.vmap of an operator on rows of x, its first argument."""
    written = [arg.name for arg in op._schema.arguments if arg.alias_info is not None]

    def batched(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Tensor:
        given = named(op, args, kwargs)
        tensors = [key for key, value in given.items() if isinstance(value, Tensor)]
        rest = {key: value for key, value in given.items() if key not in tensors}
        for key in written:
            if torch._C._functorch.is_batchedtensor(given[key]):
                raise RuntimeError(
                    f"{op._opname}: {key} must be the same for all of a torch.vmap, got a batch"
                )

        def call(*values: Tensor) -> Tensor:
            return op(**dict(zip(tensors, values, strict=True)), **rest)

        def rule(info: Any, in_dims: tuple, *values: Tensor) -> tuple[Tensor, int]:
            if any(dim is not None for dim in in_dims[1:]):

                def one(i: int) -> Tensor:
                    pairs = zip(values, in_dims, strict=True)
                    return call(*(t if dim is None else t.select(dim, i) for t, dim in pairs))

                return torch.stack([one(i) for i in range(info.batch_size)]), 0
            # Rows know nothing of one another, so a batch of x is x with one leading dim more.
            rows = [
                t.repeat(info.batch_size) if key in ("strength", "index") and t.ndim else t
                for key, t in zip(tensors, values, strict=True)
            ]
            return call(values[0].movedim(in_dims[0], 0), *rows[1:]), 0

        level = retrieve_current_functorch_interpreter()
        return custom_function_call_vmap_helper(level, rule, call, *(given[key] for key in tensors))

    library.impl(name, batched, "FuncTorchBatched", with_keyset=True)


def register_nested(library: torch.library.Library, name: str) -> None:
    """A refusal of nested tensors of both layouts, where torch would speak of its backends."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        refuse_nested(name.partition(".")[0])

    for key in ("NestedTensorCPU", "NestedTensorCUDA"):
        library.impl(name, refuse, key)
    torch.library.register_torch_dispatch(f"clipproj::{name}", NestedTensor, refuse, lib=library)
