"""The tensors of one head: find them by name, refuse what cannot be edited, write all or none."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from clipproj import files
from clipproj.models.heads import Head, unwrap
from clipproj.refusal import Refusal

WRAPPERS = {"_orig_mod", "module"}  # what torch.compile and DataParallel put into names

Weights = tuple[Tensor, Tensor | None]  # weight and bias


@dataclass(frozen=True, eq=False)
class Original:
    """A head as it was: what undo needs, in a handle or from a file."""

    label: str
    tower: str
    names: tuple[str, str | None]
    before: str
    after: str
    weights: Weights = field(repr=False)
    projector_hash: str
    records: list[dict[str, Any]] | None = None  # of this head, before the edit; older files: None

    def check(self, now: Weights, force: bool) -> None:
        """Refuse heads that these bits do not belong into, and, without force, edited ones."""
        for name, want, got in zip(self.names, self.weights, now, strict=True):
            if want is None or got is None:  # no bias
                continue
            if (want.shape, want.dtype) != (got.shape, got.dtype):
                way = f"; cast it back first, .to({want.dtype}), and give force if that "
                way += "left other bits: the handle and the undo file hold the original ones"
                raise Refusal(
                    "undo",
                    name,
                    f"must be {want.dtype} {list(want.shape)} as it was when edited, "
                    f"got {got.dtype} {list(got.shape)}{way if want.shape == got.shape else ''}",
                )
        digest = files.sha256(*now)
        if digest != self.after and not force:
            state = "a head without the edit" if digest == self.before else "one changed since"
            raise RuntimeError(
                f'undo: {self.tower} head must have the bits that edit "{self.label}" left '
                f"({self.after[:12]}), got {state} ({digest[:12]}); give force to overwrite it"
            )

    def save(self, path: str | os.PathLike[str], **more: Any) -> None:
        """Write it as an undo file, atomically. Raises OSError."""
        tensors = {"weight": self.weights[0]}
        if self.weights[1] is not None:
            tensors["bias"] = self.weights[1]
        meta = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "weights"}
        files.write(path, "undo", tensors, meta | more)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Original:
        """Read an undo file. Raises FileNotFoundError, or ValueError where it is not one."""
        artefact = files.read(path, "undo")
        meta, weights = artefact.meta, (artefact.tensors["weight"], artefact.tensors.get("bias"))
        if files.sha256(*weights) != meta["before"]:
            raise Refusal(
                "undo", "path", f"must hold the head it names, got other tensors in {path}"
            )
        told = {f.name: meta[f.name] for f in fields(cls) if f.name in meta}
        return cls(**told | {"names": tuple(meta["names"]), "weights": weights})


def weights_of(
    op: str,
    target: nn.Module | Mapping[str, Tensor] | Tensor | Weights,
    weight: str,
    bias: str | None,
) -> Weights:
    """The tensors of those names in a model or state dict; or `target` itself, if it is them."""
    found: Any = target
    if isinstance(target, nn.Module):
        target = dict(unwrap(target).named_parameters(remove_duplicate=False))
    if isinstance(target, Mapping):
        names = [name for name in (weight, bias) if name is not None]
        found = tuple(target[key_of(op, target, name)] for name in names)
    elif isinstance(target, Tensor):
        found = (target,)
    if not isinstance(found, tuple) or not all(isinstance(t, Tensor) for t in found):
        raise TypeError(
            f"{op}: target must be a model, a state dict, a weight or (weight, bias), "
            f"got {type(target).__name__}"
        )
    if len(found) != 1 + (bias is not None):
        want = "a weight alone" if bias is None else "(weight, bias)"
        raise Refusal(op, "target", f"must be {want}, as the edit's head is, got {len(found)}")
    return found[0], None if bias is None else found[1]


def key_of(op: str, state: Mapping[str, Tensor], name: str) -> str:
    """The one of `keys_of`. ValueError, in the name of `op`, for another number of them."""
    keys = keys_of(state, name)
    if len(keys) != 1:
        raise Refusal(op, "target", f"must hold one {name}, got {len(keys)} among {len(state)}")
    return keys[0]


def keys_of(state: Mapping[str, Tensor], name: str) -> list[str]:
    """The keys that parameter `name` may have in `state`, whichever of the two comes from a wrapped
    model, or where `state` is of a model that holds the one of `name`, as transformers' task models
    do."""

    def plain(key: str) -> list[str]:
        return [part for part in key.split(".") if part not in WRAPPERS]

    if name in state:
        return [name]
    want = plain(name)
    keys = [key for key in state if plain(key) == want]
    return keys or [key for key in state if plain(key)[-len(want) :] == want]


def rows_of(weights: Weights, dim: int) -> Tensor:
    """[n, d] float64: the vectors that a head sums up to features, its bias as the last one."""
    weight, bias = weights
    rows = (weight if dim == 1 else weight.T).detach().double()
    return rows if bias is None else torch.cat([rows, bias.detach().double()[None]])


def check_alone(model: nn.Module, head: Head) -> None:
    """Refuse a head whose memory another parameter or buffer sees: both would be edited."""
    named: list[tuple[str, Tensor]] = [*model.named_parameters(remove_duplicate=False)]
    named += model.named_buffers(remove_duplicate=False)
    extents = {name: extent for name, t in named if (extent := _extent(t)) is not None}
    for name in filter(None, (head.weight, head.bias)):
        device, first, last = extents[name]
        for other, (where, start, stop) in extents.items():
            if other != name and where == device and start < last and first < stop:
                raise Refusal(
                    "edit",
                    None,
                    f"{head.tower} head must not share memory with another parameter, got "
                    f"{name} tied to {other}; give one of them its own copy first",
                )


def _extent(t: Tensor) -> tuple[torch.device, int, int] | None:
    """Device, first byte, and one past the last byte of a dense tensor that has data."""
    if type(t) not in (Tensor, nn.Parameter) or t.is_meta or t.layout != torch.strided:
        return None  # sharded, lazy and other special kinds have no memory that a head could share
    if t.numel() == 0:
        return None
    reach = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    first = t.data_ptr()
    return t.device, first, first + (reach + 1) * t.element_size()


def check_finite(head: Head, weights: Weights, when: str) -> None:
    """Refuse NaN and inf."""
    for name, t in zip((head.weight, head.bias), weights, strict=True):
        if t is not None and not t.isfinite().all():
            raise Refusal(
                "edit", None, f"{head.tower} head must be finite, got NaN or inf in {name} {when}"
            )


def clone(weights: Weights) -> Weights:
    """Copies on the same device."""
    weight, bias = weights
    return weight.detach().clone(), None if bias is None else bias.detach().clone()


def commit(into: Weights, values: Weights, log_it: Callable[[], None] = lambda: None) -> None:
    """Write all values and log it, or, whatever is raised in between, nothing."""
    before = clone(into)
    try:
        _write(into, values)
        log_it()
    except BaseException:
        _write(into, before)
        raise


def _write(into: Weights, values: Weights) -> None:
    for parameter, value in zip(into, values, strict=True):
        if parameter is not None and value is not None:
            # inference tensors take writes in inference mode only, others count them outside it
            with torch.inference_mode(parameter.is_inference()), torch.no_grad():
                parameter.copy_(value)
