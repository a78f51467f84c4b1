"""Fold a projector into a model's head, and take it out again to the bit."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import MutableMapping
from numbers import Real
from typing import TypeVar

import torch
from torch import Tensor, nn

from clipproj import files, ops
from clipproj._factors import LinearFactors
from clipproj.editing import log, records
from clipproj.editing.log import Edit
from clipproj.editing.receipt import Receipt
from clipproj.editing.weights import (
    Original,
    check_alone,
    check_finite,
    clone,
    commit,
    key_of,
    weights_of,
)
from clipproj.models.heads import (
    TOWERS,
    Head,
    check_module,
    find_heads,
    head_hash,
    head_tensors,
    unwrap,
)
from clipproj.projector import Projector
from clipproj.refusal import Refusal

ModelOrState = TypeVar("ModelOrState", nn.Module, MutableMapping[str, Tensor])


def edit(
    model: nn.Module,
    projector: Projector,
    tower: str = "image",
    *,
    strength: float | Tensor | None = None,
    force: bool = False,
) -> Edit:
    """Fold `projector` into the head of one tower, in place: the model's features come out edited.

    Values change inside the existing Parameters: `requires_grad`, optimizers, compiled graphs and
    CUDA graphs go on as before, without recompilation (not where a compiler froze weights into the
    graph: inductor's `freezing`, torch.export, ONNX: edit before those). A pending backward through
    the head raises, as after any in-place write. Works under no_grad, grad and inference mode, on
    parameters that require grad or not, and on inference tensors.

    Either the whole edit happens or none of it: any exception leaves the head's bits as they were.

    Args:
        model: of a family that `find_heads` knows, also inside torch.compile or DataParallel.
            Head float32, bfloat16, float16, on the CPU also float64.
        projector: for the other tower's features its transpose is folded, the same change of
            similarity.
        tower: "image" or "text".
        strength: replaces the projector's own.
        force: fold it even though it comes from another model (its provenance names a head that
            this model does not have, in any dtype, now or before its logged edits).

    Returns:
        The handle, also the newest entry of `edits(model)`.

    Raises:
        ValueError: a one-sided projector, which no weight can hold (the text names what can); an
            unknown model; a tower without a foldable head (the text names the way that works);
            another width; a projector of another model; an offset for a head without bias or for
            the other tower; a strength out of range; a head that shares memory with another
            parameter, holds NaN or inf, or would after the edit.
        TypeError: not a Projector, not a module, a strength that is no number.

    Example:
        >>> p = clipproj.nullspace(texts.select(["cat"]), texts.drop(["cat"]), "hull")
        >>> handle = clipproj.edit(model, p)
        >>> bool(clipproj.verify(model, handle.receipt))
        True
        >>> _ = handle.undo()  # the original weights, bit for bit
    """
    check_module("edit", model)
    if not isinstance(projector, Projector):
        raise TypeError(f"edit: projector must be a Projector, got {type(projector).__name__}")
    if not isinstance(strength, Real | Tensor | None):
        raise TypeError(f"edit: strength must be a number, got {type(strength).__name__}")
    if tower not in TOWERS:
        raise Refusal("edit", "tower", f'must be "image" or "text", got {tower!r}')
    head = find_heads(model)[tower]
    model = unwrap(model)
    if not head.foldable or head.dim is None:
        raise Refusal("edit", "tower", f"must have a foldable head, got {tower}: {head.reason}")
    check_alone(model, head)
    projector.linear_factors("edit")
    _check_fits(head, projector)
    space = _check_model(model, projector, force)

    with torch.inference_mode(False), torch.no_grad():
        now = head_tensors(model, head)
        folded = projector.scaled(projector.strength if strength is None else strength)
        folded = folded.for_tower(tower).to(now[0].device)
        before, after = clone(now), clone(now)
        check_finite(head, before, "before the edit")
        factors = folded.linear_factors("edit", now[0].dtype)
        linear: LinearFactors = {**factors, "offset": None}
        ops.fold_(after[0], **linear, dim=head.dim)
        if after[1] is not None:
            ops.fold_(after[1], **factors, dim=0)
        check_finite(head, after, "after it")
        receipt = Receipt.make(head, projector, folded, before, after)
        record, earlier = records.make(receipt, before, after), log.records(model)
        entry = Edit(model, receipt, space, before, record, earlier)
        commit(now, after, lambda: log.add(model, entry))
    if tower == "text":
        warnings.warn(
            "edit: an edit of the text head can vanish where text features are normalised, as in "
            'zero-shot classifiers: a text that only shrank grows back; tower="image" is safe',
            stacklevel=2,
        )
    return entry


def undo(
    target: ModelOrState, edit: Edit | str | os.PathLike[str], *, force: bool = False
) -> ModelOrState:
    """Take an edit out of a model or a state dict, from its handle or from an undo file.

    Args:
        target: a model: its head is restored in place, and if the edit is in the model's log it is
            undone there, in order (of two edits with the same bits, a file means the newer). A
            state dict: left alone, and a shallow copy with the original
            tensors in place of the edited ones, on their device, is returned.
        edit: the handle, or the path that `Edit.save_undo` wrote.
        force: overwrite the head even if its bits are not those that the edit left.

    Returns:
        The model, or the new state dict.

    Raises:
        RuntimeError: the head has other bits (without force), or later edits of this process.
        ValueError: no such head in target (name, shape, dtype), or no readable undo file.
        FileNotFoundError, TypeError.

    Example:
        >>> p = clipproj.nullspace(texts.select(["cat"]), texts.drop(["cat"]), "hull")
        >>> handle = clipproj.edit(model, p)
        >>> handle.save_undo("undo.safetensors")
        >>> clipproj.undo(model, "undo.safetensors") is model, clipproj.edits(model)
        (True, ())
    """
    if not isinstance(edit, Edit | str | os.PathLike):
        got = type(edit).__name__
        raise TypeError(f"undo: edit must be an Edit or the path of an undo file, got {got}")
    original = edit.original if isinstance(edit, Edit) else Original.load(edit)
    if not isinstance(target, nn.Module):
        if not isinstance(target, MutableMapping):
            got = type(target).__name__
            raise TypeError(f"undo: target must be a model or a state dict, got {got}")
        original.check(weights_of("undo", target, *original.names), force)
        restored = copy.copy(target)
        for name, tensor in zip(original.names, original.weights, strict=True):
            if name is not None and tensor is not None:
                key = key_of("undo", target, name)
                restored[key] = tensor.to(target[key].device, copy=True)
        return restored

    on_head = log.entries(target, original.tower)
    bits = original.before, original.after
    same = [e for e in on_head if (e.original.before, e.original.after) == bits]
    if same:
        (edit if edit in same else same[-1]).undo(force=force)
        return target
    if on_head:
        order = ", ".join(f'"{entry.receipt.label}"' for entry in reversed(on_head))
        raise RuntimeError(
            f"undo: model must have no later edits on the {original.tower} head, undo {order} first"
        )
    now = weights_of("undo", target, *original.names)
    original.check(now, force)
    digest = files.sha256(*now)
    commit(now, original.weights, lambda: log.forget(target, original, digest))
    return target


def edits(model: nn.Module) -> tuple[log.RecordedEdit | Edit, ...]:
    """The edits in `model` now, oldest first, both towers.

    Those of this process are their handles. Before them come, as `RecordedEdit`, those that it was
    loaded with: `load_model` and transformers' `from_pretrained` find them in the checkpoint, and
    copies of a model of transformers keep them. Copies of other models have none. What their log
    says is held against the head: edits that are not in it are not listed.

    Raises ValueError for a model whose config holds a log that is none.

    Example:
        >>> p = clipproj.nullspace(texts.select(["cat"]), texts.drop(["cat"]), "hull")
        >>> with clipproj.edit(model, p):
        ...     len(clipproj.edits(model))
        1
        >>> clipproj.edits(model)
        ()
    """
    return (*log.recorded(model), *log.entries(model))


def _check_fits(head: Head, projector: Projector) -> None:
    if projector.dim != head.width:
        raise Refusal(
            "edit",
            "projector",
            f"must be of width {head.width} as the {head.tower} head is, got {projector.dim}",
        )
    if projector.for_tower(head.tower, "edit").offset is not None and head.bias is None:
        raise Refusal(
            "edit",
            "projector",
            f"must have no offset, because {head.weight} has no bias to hold it, "
            "got an affine one; call the projector on the features instead",
        )


def _check_model(model: nn.Module, projector: Projector, force: bool) -> str | None:
    """The identity of the model's embedding space, from before its first edit."""
    present = head_hash(model)
    space = next((entry.space for entry in log.entries(model)), present)
    if not force:
        otherwise = "; give force to fold it anyway"
        projector.require_model("edit", space, present, otherwise=otherwise)
    return space
