"""How public forms call the operators, and what autograd's kernels ask of the arguments.

The kernels of _register.py hold for callers of torch.ops too, under no_grad, inference mode and
torch.compile; but being Python they double the cost of a small call. So public forms go through
`call` and `write`, which pass them by where they have nothing to do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from clipproj.ops import _torch
from clipproj.ops._torch import OpOverload

PLAIN = "x - strength * (x @ read.T - offset) @ write"  # what texts of errors send people to


def call(op: OpOverload, *args: Tensor | None, **options: Any) -> Tensor:
    """What op returns."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or _busy(args):
        return op(*args, **options)
    with _torch.below_autograd():
        return op(*args, **options)


def write(op: OpOverload, subject: str, *args: Tensor | None, **options: Any) -> Tensor:
    """What op returns, or else has written: its argument `subject`, the first or a keyword."""
    target: Any = options.get(subject, args[0])
    if torch.compiler.is_compiling() or _uncounted(target) or _busy((*args, target)):
        out = op(*args, **options)
    else:
        refuse_inference(op, subject, target)
        with _torch.below_write_count():
            out = op(*args, **options)
        torch.autograd.graph.increment_version(target)  # not for a call that was refused
    return target if out is None else out


def _busy(args: Sequence[Tensor | None]) -> bool:
    """Whether autograd's kernels have more to do than to count a write, or a subclass or mode of
    the user's takes over, which autograd must not be off for.
    """
    return tracked(args) or _torch.tracing() or has_torch_function(args)


def _uncounted(target: Tensor) -> bool:
    """Whether writes to the tensor are nobody's business."""
    return torch.is_inference_mode_enabled() and target.is_inference()


def tracked(args: Sequence[Any]) -> bool:
    """Whether autograd may track one of the arguments, backward or forward."""
    backward = torch.is_grad_enabled() and _torch.any_requires_grad(*args)
    return backward or _torch.forward_mode()


def refuse_tracked(op: str, given: Mapping[str, Any], instead: Mapping[str, str]) -> None:
    """Refuses arguments that autograd tracks and that no formula is for, with what to do `instead`
    for each.
    """
    backward, forward = torch.is_grad_enabled(), _torch.forward_mode()
    for name, advice in instead.items():
        arg = given[name]
        if arg is None:
            continue
        if backward and arg.requires_grad:
            raise RuntimeError(
                f"{op}: {name} must not require grad in grad mode, got requires_grad=True; {advice}"
            )
        if forward and _torch.unpack_dual(arg).tangent is not None:
            raise RuntimeError(
                f"{op}: {name} must have no forward-mode tangent, got one; "
                f"differentiate project() in x, or {PLAIN} in plain torch"
            )


def refuse_inference(op: OpOverload, subject: str, target: Tensor) -> None:
    """Refuses to write an inference tensor where torch's own operators would."""
    if target.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{_torch.name(op)}: {subject} must be a normal tensor outside inference mode, "
            "got an inference tensor; clone it"
        )
