"""Registers all that torch must know of an operator beside its kernels, from its schema.

The kernels here sit at the dispatcher's keys, where torch.library.custom_op puts its own.
torch.library.register_autograd would be shorter, but it drops forward-mode tangents without a word
and fails in torch.func.grad.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from clipproj._tensors import refuse_nested
from clipproj.ops import _calls, _torch
from clipproj.ops._derivatives import Derivative
from clipproj.ops._torch import DispatchKeySet, OpOverload

_rules = torch.library.Library("clipproj", "IMPL")  # registrations live as long as this object


def register(
    name: str,
    fake: Callable[..., Tensor | None],
    *,
    derivative: type[Derivative] | None = None,
    instead: str = "",
    autocast: Sequence[str] = (),
) -> tuple[OpOverload, ...]:
    """The operator `name` made whole, all its overloads, which are returned, the default first.

    Args:
        fake: called as `fake(name, **arguments)` for tensors without data: refuses what the kernel
            refuses (_checks.py) and returns what it returns, uninitialised.
        derivative: of an operator that returns a new tensor and works on the rows of `x`, its first
            argument; torch.vmap goes over those rows. None for an operator that only writes: its
            arguments that autograd tracks are refused.
        instead: what such a refusal tells to do.
        autocast: the arguments that autocast casts.
    """
    packet = getattr(torch.ops.clipproj, name)
    keys = sorted(packet.overloads(), key=lambda key: key != "default")
    overloads = tuple(getattr(packet, key) for key in keys)
    for op in overloads:
        _register_fake(op, fake)
        if derivative is None:
            _refuse_derivatives(op, instead)
        else:
            _register_derivative(op, derivative)
            _register_vmap(op)
        for argument in _torch.arguments(op):
            if argument.alias_info is not None:
                _register_count(op, argument.name)
        if autocast:
            _register_autocast(op, autocast)
        _register_nested(op)
    return overloads


def named(op: OpOverload, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name; the dispatcher leaves out those that are the default."""
    values = {argument.name: argument.default_value for argument in _torch.arguments(op)}
    given = dict(zip(values, args, strict=False))
    return values | given | kwargs


def _register_fake(op: OpOverload, fake: Callable[..., Tensor | None]) -> None:
    name = _torch.name(op)
    torch.library.register_fake(
        op, lambda *args, **kwargs: fake(name, **named(op, args, kwargs)), lib=_rules
    )


def _register_derivative(op: OpOverload, derivative: type[Derivative]) -> None:
    def derive(keyset: DispatchKeySet, *args: Any, **kwargs: Any) -> Tensor:
        def run() -> Tensor:
            with _torch.below_autograd():
                return op.redispatch(keyset & _torch.after_autograd, *args, **kwargs)

        # A captured graph enters forward mode behind the back of torch.autograd.forward_ad, so when
        # it is traced again tangents may come unannounced.
        if not (_calls.tracked(args) or _torch.tracing()):
            return run()
        given = named(op, args, kwargs)
        _calls.refuse_tracked(_torch.name(op), given, derivative.refused)
        inputs = [given.get(name) for name in derivative.inputs]
        with _torch.allow_single_level():
            return derivative.apply(run, given.get("normalize"), *inputs)

    _rules.impl(op, derive, "Autograd", with_keyset=True)


def _refuse_derivatives(op: OpOverload, instead: str) -> None:
    tensors = [arg.name for arg in _torch.arguments(op) if "Tensor" in str(arg.type)]
    advice = dict.fromkeys(tensors, instead)

    def refuse(keyset: DispatchKeySet, *args: Any, **kwargs: Any) -> None:
        # Not sought when a graph is traced again: asking for a tangent would add nodes.
        if _calls.tracked((*args, *kwargs.values())):
            _calls.refuse_tracked(_torch.name(op), named(op, args, kwargs), advice)
        with _torch.below_autograd():
            op.redispatch(keyset & _torch.after_autograd, *args, **kwargs)

    _rules.impl(op, refuse, "Autograd", with_keyset=True)


def _register_count(op: OpOverload, subject: str) -> None:
    """Counts what an operator writes, its argument `subject`: the first, or a keyword."""

    def count(keyset: DispatchKeySet, *args: Any, **kwargs: Any) -> Tensor | None:
        target = kwargs.get(subject, args[0])
        _calls.refuse_inference(op, subject, target)
        out = op.redispatch(keyset & _torch.after_write_count, *args, **kwargs)
        torch.autograd.graph.increment_version(target)
        return out

    _rules.impl(op, count, "ADInplaceOrView", with_keyset=True)


def _register_vmap(op: OpOverload) -> None:
    written = [arg.name for arg in _torch.arguments(op) if arg.alias_info is not None]

    def batched(keyset: DispatchKeySet, *args: Any, **kwargs: Any) -> Tensor:
        given = named(op, args, kwargs)
        tensors = [key for key, value in given.items() if isinstance(value, Tensor)]
        rest = {key: value for key, value in given.items() if key not in tensors}
        for key in written:
            if _torch.is_batched(given[key]):
                raise RuntimeError(
                    f"{_torch.name(op)}: {key} must be the same for all of a torch.vmap, "
                    "got a batch"
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

        return _torch.vmap_call(_torch.vmap_level(), rule, call, *(given[key] for key in tensors))

    _rules.impl(op, batched, "FuncTorchBatched", with_keyset=True)


def _register_autocast(op: OpOverload, names: Sequence[str]) -> None:
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _rules.impl(op, _autocast(op, names, device, key), key, with_keyset=True)


def _autocast(op: OpOverload, names: Sequence[str], device: str, key: str) -> Callable[..., Tensor]:
    this = DispatchKeySet(getattr(_torch.DispatchKey, key))

    def cast(keyset: DispatchKeySet, *args: Any, **kwargs: Any) -> Tensor:
        given = named(op, args, kwargs)
        dtype = torch.get_autocast_dtype(device)
        for name in names:
            t = given[name]
            # What torch's own operators leave alone, they leave alone.
            if t is not None and t.is_floating_point() and t.dtype != torch.float64:
                given[name] = t.to(dtype) if t.device.type == device else t
        with _torch.without_keys(this):
            return op(**given)

    return cast


def _register_nested(op: OpOverload) -> None:
    """A refusal of nested tensors of both layouts, where torch would speak of its backends."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        refuse_nested(_torch.name(op))

    for key in ("NestedTensorCPU", "NestedTensorCUDA"):
        _rules.impl(op, refuse, key)
    torch.library.register_torch_dispatch(op, _torch.JaggedTensor, refuse, lib=_rules)
