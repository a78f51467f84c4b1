"""Which edits every live model carries, oldest first. Weak on models: the log keeps none alive."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import nn

from clipproj.heads import unwrap

if TYPE_CHECKING:
    from clipproj.edit import Edit

_logs: WeakKeyDictionary[nn.Module, list[Edit]] = WeakKeyDictionary()


def entries(model: nn.Module, tower: str | None = None) -> list[Edit]:
    """The edits that are in `model` now, of one tower or of both. Copies of a model have none."""
    log = _logs.get(unwrap(model), [])
    return [entry for entry in log if tower in (None, entry.tower)]


def add(model: nn.Module, entry: Edit) -> None:
    _logs.setdefault(model, []).append(entry)


def remove(model: nn.Module, entry: Edit) -> None:
    _logs[model].remove(entry)
