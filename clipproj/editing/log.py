"""Which edits every live model carries, oldest first. Weak on models: the log keeps none alive.

Edits of this process have their handles. Beside these a model has records, plain JSON that outlives
the process: in its config where transformers saves that with the weights, else kept here, from the
checkpoint it was loaded from.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import nn

from clipproj.editing.records import EDITS, Record, after_undo, held, parse
from clipproj.models.heads import unwrap

if TYPE_CHECKING:
    from clipproj.editing.edit import Edit
    from clipproj.editing.weights import Original

_logs: WeakKeyDictionary[nn.Module, list[Edit]] = WeakKeyDictionary()
_records: WeakKeyDictionary[nn.Module, list[Record]] = WeakKeyDictionary()


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
    record(model, [*entry.earlier, entry.record])
    _logs.setdefault(model, []).append(entry)


def remove(model: nn.Module, entry: Edit) -> None:
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
