"""A method as it is compared: how it is made, and what it may and may not see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clipproj.audit.samples import RowEdit
from clipproj.methods.method import NEEDS, Task
from clipproj.refusal import Refusal

__all__ = ["ComparedMethod", "Make", "Task"]

Make = Callable[[Task], RowEdit]


@dataclass(frozen=True)
class ComparedMethod:
    """A method as it is compared.

    Args:
        about: what it is, in a few words, with the settings that differ from its defaults.
        make: from a task to an edit: a Projector, or another callable on rows with a `side`.
        learns: whether it looks at `task.fit`, so that it must be measured on other images.
        needs: fields of the task it cannot do without, `fit` apart.
        code: digest of where it comes from, "" for clipproj's own, so that results of other code
            are told apart.
    """

    about: str
    make: Make
    learns: bool = False
    needs: tuple[str, ...] = ()
    code: str = ""

    def __post_init__(self) -> None:
        if not callable(self.make):
            raise TypeError(
                f"ComparedMethod: make must be callable, got {type(self.make).__name__}"
            )
        known = set(NEEDS) - {"fit"}
        if not known.issuperset(self.needs):
            why = f"must be of {', '.join(sorted(known))}, got {self.needs}"
            raise Refusal("ComparedMethod", "needs", why)
