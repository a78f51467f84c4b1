"""Which edits every live model carries, oldest first. Weak on models: the log keeps none alive.

Edits of this process have their handles. Beside these a model has records, plain JSON that outlives
the process: in its config where transformers saves that with the weights, else kept here, from the
checkpoint it was loaded from.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import nn

from clipproj.heads import unwrap
from clipproj.state import EDITS

if TYPE_CHECKING:
    from clipproj.edit import Edit

Record = dict[str, Any]  # of an edit: forget (names), tower, strength, projector (its hash)

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


def recorded(model: nn.Module) -> list[RecordedEdit]:
    """The edits in `model` that this process did not make in it."""
    model = unwrap(model)
    records = _recorded(model)
    for entry in _logs.get(model, []):
        records = without(records, entry.record["projector"], entry.tower)
    return [RecordedEdit.of(record) for record in records]


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


def without(records: Sequence[Record], projector: str, tower: str) -> list[Record]:
    """The records less the last one of this projector (its hash) in this tower."""
    left = list(records)
    for place in reversed(range(len(left))):
        if (left[place]["projector"], left[place]["tower"]) == (projector, tower):
            del left[place]
            break
    return left


def add(model: nn.Module, entry: Edit) -> None:
    record(model, [*_recorded(model), entry.record])
    _logs.setdefault(model, []).append(entry)


def remove(model: nn.Module, entry: Edit) -> None:
    _logs[model].remove(entry)
    forget(model, entry.record["projector"], entry.tower)


def forget(model: nn.Module, projector: str, tower: str) -> None:
    """Take the record of an undone edit away, if there is one."""
    model = unwrap(model)
    record(model, without(_recorded(model), projector, tower))


def _recorded(model: nn.Module) -> list[Record]:
    if _has_config(model):
        return list((getattr(model.config, EDITS, None) or {}).get("edits", ()))
    return list(_records.get(model, ()))


def _has_config(model: nn.Module) -> bool:
    """Whether the model is saved with its config, as those of transformers are."""
    return hasattr(model, "save_pretrained") and hasattr(model, "config")
