"""The log of every live model: handles of the edits made in it, oldest first, and their records.

It is weak on models: it keeps none alive. Records are plain JSON that outlives the process: in the
model's config where transformers saves that with the weights, else kept here, from the checkpoint
that the model was loaded from.
"""

from __future__ import annotations

import copy
import os
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from weakref import WeakKeyDictionary

from torch import nn

from clipproj import files
from clipproj.editing.receipt import Receipt
from clipproj.editing.records import EDITS, Record, after_undo, held, parse
from clipproj.editing.weights import Original, Weights, commit, weights_of
from clipproj.models.heads import unwrap

_logs: WeakKeyDictionary[nn.Module, list[Edit]] = WeakKeyDictionary()
_records: WeakKeyDictionary[nn.Module, list[Record]] = WeakKeyDictionary()


class Edit:
    """One projector folded into one head of a live model: its receipt and the way back.

    A context manager too: leaving the block undoes the edit unless that has been done; where that
    fails while an exception leaves the block, it warns and lets that one through. It refers to the
    model weakly and keeps the head's original weights on their device (3 MB for ViT-L/14).

    Attributes:
        receipt: what was done, for `clipproj.verify`.
        projector: what was folded: with the strength used, swapped when the tower asked for it.
        tower: "image" or "text".
    """

    def __init__(
        self,
        model: nn.Module,
        receipt: Receipt,
        space: str | None,
        before: Weights,
        record: Record,
        earlier: list[Record],
    ):
        self.receipt = receipt
        self.record = record  # what a checkpoint says of this edit
        self.earlier = earlier  # and of those before it, in both towers
        self.projector = receipt.projector
        self.tower = receipt.tower
        self.space = space  # the model's head_hash before its first edit
        self.original = Original(
            receipt.label,
            receipt.tower,
            (receipt.weight, receipt.bias),
            receipt.head_before,
            receipt.head_after,
            before,
            receipt.projector_hash,
            [one for one in earlier if one["tower"] == receipt.tower],
        )
        self._model = weakref.ref(model)

    @property
    def active(self) -> bool:
        """Whether the edit is in its model's log: not undone, and the model still exists.

        The weights are not looked at: after `load_state_dict` of the original, say, the edit is
        active until `undo()` finds that out. `clipproj.verify` looks.
        """
        model = self._model()
        return model is not None and self in entries(model)

    def undo(self, *, force: bool = False) -> None:
        """Put the original bits back, into the same Parameters.

        Edits of one head are undone last in, first out; those of the other tower do not count. A
        head that has its original bits already is left alone, and the edit leaves the log.

        Args:
            force: overwrite the head even if its bits are not those that this edit left.

        Raises:
            RuntimeError: the edit is not active; it is not the last one on its head; the head was
                changed since (without force).
            ValueError: the head has another dtype or shape now: cast it back first.
        """
        model = self._model()
        if model is None or not self.active:
            why = "its model is freed" if model is None else "it was undone before"
            raise RuntimeError(f"undo: edit must be active, got one where {why}")
        on_head = entries(model, self.tower)
        place = on_head.index(self)
        if later := on_head[place + 1 :]:
            order = ", ".join(f'"{entry.receipt.label}"' for entry in reversed(later))
            raise RuntimeError(
                f"undo: edit must be the last one on the {self.tower} head, got {place + 1} of "
                f"{len(on_head)}; undo {order} first"
            )
        now = weights_of("undo", model, *self.original.names)
        if files.sha256(*now) == self.original.before:
            remove(model, self)
            return
        self.original.check(now, force)
        commit(now, self.original.weights, lambda: remove(model, self))

    def save_undo(self, path: str | os.PathLike[str]) -> None:
        """Write the original weights, for `clipproj.undo` in another process.

        Raises OSError when it cannot be written; no partial file is left, and the edit stays as
        undoable as it was.
        """
        receipt = self.receipt
        self.original.save(path, strength=receipt.strength, created=receipt.created)

    def __enter__(self) -> Edit:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.active:
            return
        try:
            self.undo()
        except (RuntimeError, ValueError) as failure:
            if kind is None:
                raise
            warnings.warn(
                f"edit: {self!r} stays in its model after {kind.__name__}: {failure}", stacklevel=2
            )

    def __repr__(self) -> str:
        freed = self._model() is None
        state = "its model is freed" if freed else "active" if self.active else "undone"
        strength = self.receipt.strength
        return f'Edit("{self.receipt.label}", {self.tower} head, strength={strength:g}, {state})'


@dataclass(frozen=True)
class RecordedEdit:
    """An edit that was in a model when it was loaded or copied, as its checkpoint says.

    Its original weights are not here: `clipproj.undo(model, path)` with the undo file of that edit
    takes it out.

    Attributes:
        forget: what was erased. tower: "image" or "text".
        projector: `content_hash()` of the one that `edit` was given.
    """

    forget: tuple[str, ...]
    tower: str
    strength: float
    projector: str

    @classmethod
    def of(cls, record: Record) -> RecordedEdit:
        """From what a checkpoint holds."""
        return cls(
            tuple(record["forget"]), record["tower"], record["strength"], record["projector"]
        )


def entries(model: nn.Module, tower: str | None = None) -> list[Edit]:
    """The edits that this process made in `model`, of one tower or of both. Copies have none."""
    log = _logs.get(unwrap(model), [])
    return [entry for entry in log if tower in (None, entry.tower)]


def records(model: nn.Module) -> list[Record]:
    """What a checkpoint of `model` has to say of its edits, as far as its heads bear it out.

    Raises ValueError for a config that holds something else.
    """
    model = unwrap(model)
    return held(_kept(model), model)


def recorded(model: nn.Module) -> list[RecordedEdit]:
    """The edits in `model` that this process did not make in it."""
    left = records(model)
    for entry in entries(model):
        if entry.record in left:
            left.remove(entry.record)
    return [RecordedEdit.of(record) for record in left]


def record(model: nn.Module, records: Sequence[Record]) -> None:
    """Make these the records of `model`, such as those that its checkpoint holds."""
    if not _has_config(model):
        _records[model] = list(records)
        return
    config = copy.copy(model.config)  # other models may have been made of the same one
    if records:
        setattr(config, EDITS, {"edits": list(records)})
    elif hasattr(config, EDITS):
        delattr(config, EDITS)
    model.config = config


def add(model: nn.Module, entry: Edit) -> None:
    """Log an edit that was just made in the model."""
    record(model, [*entry.earlier, entry.record])
    _logs.setdefault(model, []).append(entry)


def remove(model: nn.Module, entry: Edit) -> None:
    """Take an edit out of the log that was just undone in the model."""
    _logs[model].remove(entry)
    forget(model, entry.original, entry.original.after)


def forget(model: nn.Module, original: Original, now: str) -> None:
    """Take the records of an undone edit, and of those after it, away.

    Args:
        now: the digest of the head from before the undo.
    """
    model = unwrap(model)
    record(model, after_undo(_kept(model), original, now))


def _kept(model: nn.Module) -> list[Record]:
    if not _has_config(model):
        return list(_records.get(model, ()))
    return parse(getattr(model.config, EDITS, []), "the model's config")


def _has_config(model: nn.Module) -> bool:
    """Whether the model is saved with its config, as those of transformers are."""
    return hasattr(model, "save_pretrained") and hasattr(model, "config")
