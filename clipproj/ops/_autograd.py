"""Derivatives of the operators in x, backward, forward and in torch.func, and autograd's rules for
those that write in place.

The kernels here sit at the dispatcher's keys, where torch.library.custom_op puts its own, so they
also hold for callers of torch.ops, under no_grad, inference mode and torch.compile. Public forms go
through `call` and `write`, which pass them by where they have nothing to do.
torch.library.register_autograd would be shorter, but it drops forward-mode tangents without a word
and fails in torch.func.grad.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.overrides import has_torch_function

from clipproj.ops._vmap import named, register_nested, register_vmap

EPS = 1e-12  # of torch.nn.functional.normalize, and of csrc/cpu/project_kernel.inl
PLAIN = "x - strength * (x @ read.T - offset) @ write"  # what texts of errors send people to
_ops = torch.ops.clipproj
_rules = torch.library.Library("clipproj", "IMPL")  # registrations live as long as this object


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that sums of a dtype are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# What autograd tracks


def _backward_mode(args: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*args)


def _forward_mode() -> bool:
    """Whether arguments may have tangents. To ask them at every call would double its cost."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _tracing() -> bool:
    """Whether a graph may be traced. One that was captured enters forward mode behind the back of
    forward_ad, so when it is traced again tangents may come unannounced. Refusals were made at its
    capture, and must not be sought again: asking for a tangent would add nodes.
    """
    return torch._C._len_torch_dispatch_stack() > 0


def _refuse_tracked(
    op: str, names: Sequence[str], args: Sequence[Tensor | None], instead: str
) -> None:
    """Refuses arguments that autograd tracks and that no formula is for."""
    backward, forward = torch.is_grad_enabled(), _forward_mode()
    for name, arg in zip(names, args, strict=False):
        if arg is None:
            continue
        if backward and arg.requires_grad:
            raise RuntimeError(
                f"{op}: {name} must not require grad in grad mode, got requires_grad=True; "
                f"{instead}"
            )
        if forward and _unpack_dual(arg).tangent is not None:
            raise RuntimeError(
                f"{op}: {name} must have no forward-mode tangent, got one; "
                f"differentiate project() in x, or {PLAIN} in plain torch"
            )


def _unpack_dual(x: Tensor) -> Any:
    """Primal and tangent, at the one level that torch has; those of torch.func come one by one."""
    return torch._VF._unpack_dual(x, level=0)


# Calls from the public forms. Being Python, the kernels below double the cost of a small call.


def _busy(args: Sequence[Tensor | None]) -> bool:
    """Whether those kernels have more to do than to count a write, or a subclass or mode of the
    user's takes over, which autograd must not be off for.
    """
    return _backward_mode(args) or _forward_mode() or _tracing() or has_torch_function(args)


def call(op: torch._ops.OpOverload, *args: Tensor | None, **options: Any) -> Tensor:
    """What op returns."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or _busy(args):
        return op(*args, **options)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args, **options)


def write(op: torch._ops.OpOverload, subject: str, *args: Tensor | None, **options: Any) -> Tensor:
    """What op returns, or else has written: its argument `subject`, the first or a keyword."""
    target = options.get(subject, args[0])
    if torch.compiler.is_compiling() or _uncounted(target) or _busy((*args, target)):
        out = op(*args, **options)
    else:
        _refuse_inference(op, subject, target)
        with torch._C._AutoDispatchBelowADInplaceOrView():
            out = op(*args, **options)
        torch.autograd.graph.increment_version(target)  # not for a call that was refused
    return target if out is None else out


def _uncounted(target: Tensor) -> bool:
    """Whether writes to the tensor are nobody's business."""
    return torch.is_inference_mode_enabled() and target.is_inference()


def _refuse_inference(op: torch._ops.OpOverload, subject: str, target: Tensor) -> None:
    if target.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{op._opname}: {subject} must be a normal tensor outside inference mode, "
            "got an inference tensor; clone it"
        )


# Formulas. `factors` are the `_operands` after x.


def _project(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    strength: Tensor | None,
    spans: Tensor | None,
    index: Tensor | None,
) -> Tensor:
    """The update; with spans, that of each row's own projector."""
    if spans is None or index is None:
        return _ops.project.default(x, read, write, offset, strength)
    return _ops.project_rows.default(x, read, write, offset, spans, index, strength)


def _update(x: Tensor, factors: Sequence[Tensor | None]) -> Tensor:
    """A tangent of x through the update, which is linear up to its offset."""
    read, write, _, *rest = factors
    return _project(x, read, write, None, *rest)


def _transposed(grad: Tensor, factors: Sequence[Tensor | None]) -> Tensor:
    """A gradient back through the update: the same update with its sides swapped."""
    read, write, _, *rest = factors
    return _project(grad, write, read, None, *rest)


def _row(x: Tensor, factors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """The projected row and its length, wide: a row rounded to 8 bits before it divides its own
    derivative costs what the forward's single rounding saved.

    Computed again by the operator rather than saved, so that formulas are differentiable in x.
    """
    row = _project(x.to(wide(x.dtype)), *factors)
    return row, torch.linalg.vector_norm(row, dim=-1, keepdim=True)


def _through_normalize(v: Tensor, x: Tensor, factors: Sequence[Tensor | None]) -> Tensor:
    """v times the derivative of normalize at the projected row, a symmetric matrix."""
    row, length = _row(x, factors)
    v = v.to(row.dtype)
    divisor = length.clamp_min(EPS)
    unit = row / divisor
    # Below EPS the divisor is a constant, as in torch.nn.functional.normalize.
    along = torch.where(length >= EPS, (unit * v).sum(-1, keepdim=True), 0)
    return (v - unit * along) / divisor


def _direction(x: Tensor, factors: Sequence[Tensor | None]) -> Tensor:
    """The derivative of the length at the projected row."""
    row, length = _row(x, factors)
    return row / torch.where(length > 0, length, 1)  # zero rows have subgradient zero


class _Differentiable(torch.autograd.function._SingleLevelFunction):
    """An operator with its derivatives. Single-level, because it runs inside the dispatcher, where
    torch.func has come down to one of its levels.

    Inputs of apply: `call`, which runs the operator below autograd; what it does `after` the
    update, None, "normalize" or "norm"; the `_operands`.
    """

    # Compiled autograd asks for it, and only torch.autograd.Function has it.
    _compiled_autograd_key = torch.autograd.Function._compiled_autograd_key

    @staticmethod
    def forward(call: Callable[[], Tensor], after: str | None, *args: Tensor | None) -> Tensor:
        # Both are off in here, for this level. More levels of torch.func may be below.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return call()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.after, x, *factors = inputs
        ctx.dtype = x.dtype
        saved = (x if ctx.after else None, *factors)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *factors = ctx.saved_tensors
        if ctx.after == "normalize":
            grad = _through_normalize(grad, x, factors)
        if ctx.after == "norm":
            grad = grad.unsqueeze(-1) * _direction(x, factors)
        return None, None, _transposed(grad, factors).to(ctx.dtype), *[None] * len(factors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        x, *factors = ctx.saved_tensors
        # Off in here, which would drop the tangents of an outer torch.func.jvp; x has one of its
        # own at this level, which is not to be followed.
        with forward_ad._set_fwd_grad_enabled(True):
            if ctx.after is None:
                return _update(tangents[2], factors)
            x = _unpack_dual(x).primal
            tangent = _update(tangents[2].to(wide(ctx.dtype)), factors)
            if ctx.after == "normalize":
                return _through_normalize(tangent, x, factors).to(ctx.dtype)
            return (tangent * _direction(x, factors)).sum(-1)


# Registrations


def _padded(args: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """x, read, write, offset and strength; the dispatcher leaves out those that are the default."""
    return (*args, *[None] * (5 - len(args)))


def _operands(given: dict[str, Tensor | None]) -> list[Tensor | None]:
    """What the formulas take, in their order, of the arguments of an operator."""
    names = ("x", "read", "write", "offset", "strength", "spans", "index")
    return [given.get(name) for name in names]


def _register_derivatives(name: str, after: Callable[[dict[str, Any]], str | None]) -> None:
    """Autograd for an operator that returns a new tensor, and torch.vmap."""
    packet, _, overload = name.partition(".")
    op = getattr(getattr(_ops, packet), overload or "default")
    names = [arg.name for arg in op._schema.arguments if not arg.kwarg_only]
    instead = f"train factors in plain torch, {PLAIN}"

    def derive(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Tensor:
        def call() -> Tensor:
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)

        if not (_backward_mode(args) or _forward_mode() or _tracing()):
            return call()
        _refuse_tracked(packet, names[1:], args[1:], instead)
        operands = _operands(named(op, args, kwargs))
        with enable_single_level_autograd_function():
            return _Differentiable.apply(call, after(kwargs), *operands)

    _rules.impl(name, derive, "Autograd", with_keyset=True)
    register_vmap(_rules, name, op)
    register_nested(_rules, name)


def _register_count(op: torch._ops.OpOverload, name: str, subject: str) -> None:
    """Counts what an operator writes, its argument `subject`: the first, or a keyword."""

    def count_write(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> Tensor | None:
        target = kwargs.get(subject, args[0])
        _refuse_inference(op, subject, target)
        out = op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args, **kwargs)
        torch.autograd.graph.increment_version(target)
        return out

    _rules.impl(name, count_write, "ADInplaceOrView", with_keyset=True)


def _register_write(name: str, instead: str) -> None:
    """Autograd's two rules for an operator that writes an argument: operands that are tracked are
    refused, and the write is counted.
    """
    op = getattr(_ops, name).default
    tensors = [arg for arg in op._schema.arguments if "Tensor" in str(arg.type)]
    names = [arg.name for arg in tensors]
    (subject,) = (arg.name for arg in tensors if arg.alias_info is not None)

    def refuse(keyset: torch._C.DispatchKeySet, *args: Any, **kwargs: Any) -> None:
        operands = (*_padded(args), kwargs.get(subject))
        if _backward_mode(operands) or _forward_mode():
            _refuse_tracked(name, names, operands, instead)
        with torch._C._AutoDispatchBelowAutograd():
            op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)

    _rules.impl(name, refuse, "Autograd", with_keyset=True)
    register_nested(_rules, name)
    _register_count(op, name, subject)


for _name in ("project", "project_rows", "project_rows.flag"):
    _register_derivatives(_name, lambda options: "normalize" if options.get("normalize") else None)
_register_derivatives("projected_norm", lambda options: "norm")
_register_count(_ops.project_rows.flag, "project_rows.flag", "flag")
_register_write("project_", "use project() or torch.no_grad()")
_register_write("project_out", "use project() or torch.no_grad()")
_register_write("fold_", "use torch.no_grad()")
