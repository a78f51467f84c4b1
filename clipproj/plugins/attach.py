"""Edit features of a live dual encoder on the fly, in every way through the model.

The module that ends a tower is replaced by one that projects too, which is where the ways through
the model meet: `get_*_features` and `forward` of transformers 4 and 5, `encode_*` and `forward` of
open_clip and OpenAI's clip. No hooks, no patched methods, nothing per call.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from torch import nn

from clipproj.bank import ProjectorBank
from clipproj.editing import log
from clipproj.editing.attachment import AttachReceipt
from clipproj.models import heads
from clipproj.models.heads import Head
from clipproj.plugins._rows import check_projector, on_tower
from clipproj.plugins.head import ProjectedHead, ProjectedTower
from clipproj.projector import Projector
from clipproj.refusal import Refusal

_BEFORE = "one attached before: detach that first"


class Attached:
    """A projector or a bank in one tower of a live model; a context manager that detaches.

    Attributes:
        module: the `ProjectedHead` that stands in the model.
        tower: "image" or "text".
    """

    def __init__(
        self, model: nn.Module, path: str, module: ProjectedHead, head: Head, tower: str
    ) -> None:
        self.module = module
        self.tower = tower
        self._model, self._path, self._head = model, path, head
        self._owner, self._name = _place(model, path)

    @property
    def active(self) -> bool:
        """Whether it still stands in the model."""
        return self._owner._modules.get(self._name) is self.module

    def rows(self, rows: Any, strength: Any = None) -> AbstractContextManager[None]:
        """Whose the rows of the model's calls inside the block are; see `RowEditor.rows`."""
        return self.module.rows(rows, strength)

    def receipt(self) -> AttachReceipt:
        """What `clipproj.verify` recognises it by. ValueError for a bank, whose entries change."""
        projector, head = self.module.projector, self._head
        if not isinstance(projector, Projector):
            raise Refusal("receipt", "projector", "must be a Projector, got a bank, which changes")
        names = [name for name in (head.weight, head.bias) if name is not None]
        place = self._path
        while not names:  # a pooling has none either, its tower has
            within = self._model.get_submodule(place).named_parameters(place)
            names, place = [name for name, _ in within], place.rpartition(".")[0]
        return AttachReceipt.make(self._model, self.tower, self._path, names, projector)

    def detach(self) -> None:
        """Put the tower's own module back, the very same object.

        RuntimeError when it is not there any more: detached before, or replaced by something else.
        """
        if not self.active:
            found = type(self._owner._modules.get(self._name)).__name__
            raise RuntimeError(f"detach: {self._name} must be the one attached, got {found}")
        self._owner._modules[self._name] = self.module.head

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.active:
            self.detach()


def attach(
    model: nn.Module,
    projector: Projector | ProjectorBank,
    tower: str = "image",
    *,
    force: bool = False,
) -> Attached:
    """Project the features of one tower, in every call of the model, until detached.

    `get_image_features` and `get_text_features`, `encode_image` and `encode_text`, `forward` with
    its features and logits, and `torch.compile(model, fullgraph=True)` all see it. SigLIP and ALIGN
    image towers, which have no projection to fold into, work as well. What one linear projector
    does to everybody is cheaper folded: `clipproj.edit`; a one-sided one can't be.

        attached = attach(model, bank)
        with attached.rows(["acme", None]):
            features = model.get_image_features(pixel_values)

    Args:
        model: a dual encoder of transformers, or a `*WithProjection` one, of the list in
            `clipproj.find_heads`, of open_clip or of OpenAI's clip; compiled ones too.
        projector: a Projector, whose transpose is taken on the other tower; it is shared, or a copy
            if transposed. A ProjectorBank of this tower's side wants `rows` around every call.
        tower: "image" or "text".
        force: attach a projector of another model.

    Raises:
        TypeError: not a module, not a projector.
        ValueError: a model that is unknown; a tower that has been attached to, is missing,
            quantised or sharded, or is no module of its own (the text tower of open_clip's CLIP);
            another width; a bank of the other side; an affine or one-sided projector of the other
            side; a projector of another model (without force).
    """
    heads.check_module("attach", model)
    check_projector("attach", projector)
    if tower not in heads.TOWERS:
        raise Refusal("attach", "tower", f'must be "image" or "text", got {tower!r}')
    for end in ("visual", "text"):
        if isinstance(getattr(heads.unwrap(model), end, None), ProjectedTower):
            raise Refusal("attach", end, f"must be the model's own module, got {_BEFORE}")
    found = heads.find_heads(model)[tower]
    model = heads.unwrap(model)
    family = heads.family_of(model)
    path, channels = None, False
    if family is None:
        path = _tower_of(model, tower)
    elif tower == "image":
        path, channels = family.image_end, family.channels
    if path is None:
        if not found.foldable:
            raise Refusal("attach", "tower", f"must have a head, got {tower}: {found.reason}")
        path = found.weight.removesuffix(".weight")
    owner, name = _place(model, path)
    end = owner._modules.get(name)
    if not isinstance(end, nn.Module) or isinstance(end, ProjectedHead):
        got = "nothing" if end is None else _BEFORE
        raise Refusal("attach", path, f"must be the model's own module, got {got}")
    projector = _fitting(model, projector, tower, found.width, force)
    if family is None:
        module = ProjectedTower(end, projector)
    else:
        module = ProjectedHead(end, projector, channels=channels)
    owner._modules[name] = module
    if tower == "text":
        warnings.warn(
            "attach: an edit of the text tower can vanish where text features are normalised, "
            'as in classifiers: a text that only shrank grows back; tower="image" is safe',
            stacklevel=2,
        )
    return Attached(model, path, module, found, tower)


def _tower_of(model: nn.Module, tower: str) -> str:
    """The module of open_clip or OpenAI's clip whose result are the tower's features."""
    path = "visual" if tower == "image" else "text"
    if isinstance(model._modules.get(path), nn.Module):
        return path
    raise Refusal(
        "attach",
        "tower",
        f"must be a module of {type(model).__name__}, got {tower}, which ends in a product of "
        f"encode_{tower}(); apply the projector to what that returns, or fold a linear one with "
        "clipproj.edit",
    )


def _place(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that calls the one at `path`, and its name there."""
    *parents, name = path.split(".")
    owner = model
    for part in parents:
        owner = (owner if part in owner._modules else heads.unwrap(owner))._modules[part]
    owner = owner if name in owner._modules else heads.unwrap(owner)
    end = owner._modules.get(name)
    if any(module is not None and heads.unwrap(module) is not module for module in (owner, end)):
        # the wrapper has taken hold of the module's code: it would go on without us
        raise Refusal(
            "attach",
            path,
            "must not be compiled or wrapped by itself, got one that is; compile "
            "the model, after attaching or before",
        )
    return owner, name


def _fitting(
    model: nn.Module,
    projector: Projector | ProjectorBank,
    tower: str,
    width: int | None,
    force: bool,
) -> Projector | ProjectorBank:
    if width is not None and projector.dim != width:
        raise Refusal(
            "attach",
            "projector",
            f"must be of width {width} as the {tower} features are, got {projector.dim}",
        )
    if isinstance(projector, Projector) and not force:
        spaces = [heads.head_hash(model), *(entry.space for entry in log.entries(model))]
        projector.require_model("attach", *spaces, otherwise="; give force to take it anyway")
    return on_tower("attach", projector, tower)
