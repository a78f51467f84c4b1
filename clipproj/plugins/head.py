"""A module that stands where a model's last projection stood, and edits what comes out of it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from clipproj.bank import ProjectorBank
from clipproj.editing.attachment import Attachment
from clipproj.plugins._rows import RowEditor
from clipproj.projector import Projector


class ProjectedHead(Attachment):
    """`head`, with its features edited; parameters and state-dict keys are the head's own.

    It shares the head's dictionaries of parameters, buffers and submodules: moving, casting,
    training or loading one does it to the other, and a checkpoint of the model holds the unedited
    head. The projector follows the head to its device; its factors stay float32. Edits of the
    factors or of the bank show at once.

    It is no `nn.Linear`, so that no quantiser or adapter takes it for one and drops the edit, and
    `clipproj.edit` refuses to fold beneath it.

    Args:
        head: an `nn.Linear` [in] -> [d], done with the projection in one operator
            (`clipproj.ops.linear`) unless something hooks it, or any module whose result is
            features [..., d].
        projector: a Projector edits all rows. A ProjectorBank wants `rows` around every call.
        channels: the features are dimension 1 of the result [n, d, ...], as after a 2-d pooling.
    """

    def __init__(
        self,
        head: nn.Module,
        projector: Projector | ProjectorBank,
        *,
        channels: bool = False,
    ) -> None:
        super().__init__()
        # in a tuple, where nn.Module does not look: neither is a submodule
        self._held = (head, RowEditor("ProjectedHead", projector))
        for shared in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[shared] = head.__dict__[shared]
        self.channels = channels
        self.training = head.training
        hooked = head._forward_hooks or head._forward_pre_hooks or "forward" in head.__dict__
        hooked = hooked or head._backward_hooks or head._backward_pre_hooks
        self.fused = type(head) is nn.Linear and not hooked

    @property
    def head(self) -> nn.Module:
        """What it stands for."""
        return self._held[0]

    @property
    def projector(self) -> Projector | ProjectorBank:
        """What edits."""
        return self._held[1].projector

    def rows(self, rows: Any, strength: Any = None) -> AbstractContextManager[None]:
        """Whose the rows of the calls inside the block are; see `RowEditor.rows`."""
        return self._held[1].rows(rows, strength)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The head's result, edited.

        Raises RuntimeError for a bank without `rows` around the call, or with another number of
        rows than the call has: there is no unedited way through.
        """
        head, source = self._held
        if self.fused:
            return source.linear(x, self.weight, self.bias, *args, **kwargs)
        features = head(x, *args, **kwargs)
        if self.channels:
            return source.project(features.movedim(1, -1)).movedim(-1, 1)
        return source.project(features)

    def train(self, mode: bool = True) -> ProjectedHead:
        """As nn.Module.train; the head itself, which is no submodule, follows."""
        self.head.training = mode
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> ProjectedHead:
        super()._apply(fn, recurse)
        self.projector._apply(fn)
        return self

    def extra_repr(self) -> str:
        return f"head={type(self.head).__name__}, projector={self.projector!r}"


class ProjectedTower(ProjectedHead):
    """The same for a whole tower of open_clip or OpenAI's clip, of which others ask more than a
    result: what it does not have is the tower's own.
    """

    def __init__(self, head: nn.Module, projector: Projector | ProjectorBank) -> None:
        super().__init__(head, projector)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The tower's result, its features edited; with tokens beside them, these as they are."""
        head, source = self._held
        result = head(*args, **kwargs)
        if isinstance(result, tuple):
            return (source.project(result[0]), *result[1:])
        return source.project(result)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            held = self.__dict__.get("_held")
            if held is None:  # a copy being made
                raise
            return getattr(held[0], name)
