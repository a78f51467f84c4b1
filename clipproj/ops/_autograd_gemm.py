"""Derivatives of `linear` and `logits`, and what autocast casts.

As in _autograd.py, whose machinery this shares, the kernels sit at the dispatcher's keys.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.nn import functional

from clipproj.ops import _autograd
from clipproj.ops._autograd import (
    PLAIN,
    _operands,
    _rules,
    _through_normalize,
    _transposed,
    _update,
)
from clipproj.ops._vmap import named, register_nested, register_vmap

_ops = torch.ops.clipproj
_TRAIN_FACTORS = f"train factors in plain torch, {PLAIN}"
_TRAIN_CLASSES = "train it in plain torch, scale * normalize(project(x)) @ classes.T + bias"


# Formulas. `factors` are those after x in `_autograd._operands`.


def _primal(x: Tensor | None) -> Tensor | None:
    return None if x is None else _autograd._unpack_dual(x).primal


class _Linear(torch.autograd.function._SingleLevelFunction):
    """`linear` with its derivatives. Inputs of apply: `call`, which runs the operator below
    autograd; `normalize`; x, weight, bias; the factors.
    """

    _compiled_autograd_key = torch.autograd.Function._compiled_autograd_key

    @staticmethod
    def forward(call: Callable[[], Tensor], normalize: bool, *args: Tensor | None) -> Tensor:
        # Both are off in here, for this level. More levels of torch.func may be below.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return call()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.normalize, *saved = inputs
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, *factors = ctx.saved_tensors
        if ctx.normalize:
            # Computed again rather than saved, so that the formula is differentiable.
            grad = _through_normalize(grad, functional.linear(x, weight, bias), factors)
        grad = _transposed(grad, factors).to(x.dtype)
        of_x, of_weight, of_bias = ctx.needs_input_grad[2:5]
        n = math.prod(x.shape[:-1])
        rows = grad.reshape(n, grad.shape[-1])
        return (
            None,
            None,
            grad @ weight if of_x else None,
            rows.T @ x.reshape(n, x.shape[-1]) if of_weight else None,
            rows.sum(0) if of_bias else None,
            *[None] * 6,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        x, weight, bias, *factors = ctx.saved_tensors
        x_tangent, weight_tangent, bias_tangent = tangents[2:5]
        # Off in here, which would drop the tangents of an outer torch.func.jvp; the inputs have
        # some of their own at this level, which are not to be followed.
        with forward_ad._set_fwd_grad_enabled(True):
            x, weight, bias = _primal(x), _primal(weight), _primal(bias)
            parts = [
                part
                for part in (
                    None if x_tangent is None else x_tangent @ weight.T,
                    None if weight_tangent is None else x @ weight_tangent.T,
                    bias_tangent,
                )
                if part is not None
            ]
            tangent = _update(sum(parts[1:], parts[0]).expand(*x.shape[:-1], -1), factors)
            if not ctx.normalize:
                return tangent
            y = functional.linear(x, weight, bias)
            return _through_normalize(tangent, y, factors).to(x.dtype)


class _Logits(torch.autograd.function._SingleLevelFunction):
    """`logits` with its derivatives in x. Inputs of apply: `call`, which runs the operator below
    autograd; x, classes, scale; the factors.
    """

    _compiled_autograd_key = torch.autograd.Function._compiled_autograd_key

    @staticmethod
    def forward(call: Callable[[], Tensor], *args: Tensor | None) -> Tensor:
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return call()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, *saved = inputs
        ctx.out_dtype = output.dtype
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, classes, scale, *factors = ctx.saved_tensors
        v = (grad @ classes.to(grad.dtype)).to(scale.dtype) * scale
        grad = _transposed(_through_normalize(v, x, factors), factors).to(x.dtype)
        return None, grad, *[None] * 8

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        x, classes, scale, *factors = ctx.saved_tensors
        with forward_ad._set_fwd_grad_enabled(True):
            tangent = _update(tangents[1].to(scale.dtype), factors)
            tangent = _through_normalize(tangent, _primal(x), factors)
            return (scale * (tangent @ classes.to(scale.dtype).T)).to(ctx.out_dtype)


# Registrations


def _apply_linear(call: Callable[[], Tensor], given: dict[str, Any]) -> Tensor:
    x, *factors = _operands(given)
    return _Linear.apply(call, given["normalize"], x, given["weight"], given["bias"], *factors)


def _apply_logits(call: Callable[[], Tensor], given: dict[str, Any]) -> Tensor:
    names = ("classes", "scale", "bias")
    _autograd._refuse_tracked("logits", names, [given[name] for name in names], _TRAIN_CLASSES)
    x, *factors = _operands(given)
    return _Logits.apply(call, x, given["classes"], given["scale"], *factors)


def _register(
    name: str,
    apply: Callable[[Callable[[], Tensor], dict[str, Any]], Tensor],
    cast: tuple[str, ...],
) -> None:
    """Autograd, torch.vmap and autocast, which casts the arguments named `cast`."""
    packet, _, overload = name.partition(".")
    op = getattr(getattr(_ops, packet), overload or "default")

    def derive(keyset: DispatchKeySet, *args: Any, **kwargs: Any) -> Tensor:
        def call() -> Tensor:
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)

        tracked = _autograd._backward_mode(args) or _autograd._forward_mode()
        if not (tracked or _autograd._tracing()):
            return call()
        given = named(op, args, kwargs)
        names = ("read", "write", "offset", "strength")
        _autograd._refuse_tracked(packet, names, [given[key] for key in names], _TRAIN_FACTORS)
        with enable_single_level_autograd_function():
            return apply(call, given)

    def autocast(device: str, key: DispatchKey) -> Callable[..., Tensor]:
        def run(keyset: DispatchKeySet, *args: Any, **kwargs: Any) -> Tensor:
            given = named(op, args, kwargs)
            dtype = torch.get_autocast_dtype(device)
            for arg in cast:
                t = given[arg]
                # What torch's own operators leave alone, they leave alone.
                if t is not None and t.is_floating_point() and t.dtype != torch.float64:
                    given[arg] = t.to(dtype) if t.device.type == device else t
            with torch._C._ExcludeDispatchKeyGuard(DispatchKeySet(key)):
                return op(**given)

        return run

    _rules.impl(name, derive, "Autograd", with_keyset=True)
    register_vmap(_rules, name, op)
    register_nested(_rules, name)
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _rules.impl(name, autocast(device, getattr(DispatchKey, key)), key, with_keyset=True)


for _overload in ("", ".flag"):
    _register("linear" + _overload, _apply_linear, cast=("x", "weight", "bias"))
    _register("logits" + _overload, _apply_logits, cast=("x", "classes"))
_autograd._register_count(_ops.linear.flag, "linear.flag", "flag")
_autograd._register_count(_ops.logits.flag, "logits.flag", "flag")
