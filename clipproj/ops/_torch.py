"""The private symbols of torch that the operators need: all of them, and no other file has any.

torch.library registers kernels for a device, fake kernels and simple derivatives. Ours sit at other
keys of the dispatcher too, have derivatives of every order in forward mode and in torch.func, and
are passed by when they have nothing to do; each line says what public name is missing for that.
.ci/torches runs the operators' tests on the oldest torch that setup.py promises.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import custom_function_call_vmap_helper
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import Function, forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.nested._internal.nested_tensor import NestedTensor

# What torch.ops.* are, and the keys that a kernel is called with: public as values, not as types.
OpOverload = torch._ops.OpOverload
DispatchKeySet = torch._C.DispatchKeySet
DispatchKey = torch._C.DispatchKey

# To call the kernels below ours: torch.library has no redispatch, and no guard to leave out a key.
after_autograd = torch._C._after_autograd_keyset
after_write_count = torch._C._after_ADInplaceOrView_keyset
below_autograd = torch._C._AutoDispatchBelowAutograd
below_write_count = torch._C._AutoDispatchBelowADInplaceOrView
without_keys = torch._C._ExcludeDispatchKeyGuard

# torch.autograd.Function is for callers above the dispatcher. Inside it, where torch.func has come
# down to one of its levels, only this one works, which torch.func otherwise refuses.
SingleLevelFunction = _SingleLevelFunction
allow_single_level = enable_single_level_autograd_function
compiled_autograd_key = Function._compiled_autograd_key  # compiled autograd asks for it

# Forward mode is off within a Function; torch.enable_grad has no sibling that turns it on.
enable_forward = forward_ad._set_fwd_grad_enabled

# torch.library.register_vmap takes no operator with a tensor by keyword; these are its parts.
vmap_level: Callable[[], Any] = retrieve_current_functorch_interpreter
vmap_call = custom_function_call_vmap_helper
is_batched = torch._C._functorch.is_batchedtensor

# The class of torch.jagged tensors, to register their refusal; torch.nested has only functions.
JaggedTensor = NestedTensor

# Whether one of several requires grad: asked one by one, they would double the cost of a call.
any_requires_grad = torch._C._any_requires_grad


def forward_mode() -> bool:
    """Whether arguments may have tangents: forward_ad does not say whether it is entered, nor
    torch.func whether one of its transforms runs. To ask the arguments costs too much.
    """
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def tracing() -> bool:
    """Whether a graph may be traced, as torch.compiler.is_compiling does not say of make_fx."""
    return torch._C._len_torch_dispatch_stack() > 0


def unpack_dual(x: Tensor) -> Any:
    """Primal and tangent, at the one level that torch has; those of torch.func come one by one,
    for which forward_ad.unpack_dual would raise.
    """
    return torch._VF._unpack_dual(x, level=0)


def arguments(op: OpOverload) -> list[Any]:
    """Those of the schema: name, type, default_value, kwarg_only, alias_info."""
    return op._schema.arguments


def name(op: OpOverload) -> str:
    """Without namespace and overload."""
    return op._opname
