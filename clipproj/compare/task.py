"""What a method is given when methods are compared, and what it may not see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from clipproj.audit.samples import Edit, Samples
from clipproj.models.text import Embeddings
from clipproj.refusal import Refusal

Make = Callable[["Task"], Edit]


@dataclass(frozen=True, eq=False)
class Task:
    """One class to forget, for `make(task) -> edit`.

    Args:
        forget, keep: unit texts of the class and of all that compete with it.
        fit: labelled pictures that a method may learn from, never those it is measured on; None
            where it gets none.
        scale: what cosines are multiplied by for probabilities, exp(logit_scale).
        empty: [d] unit text of the empty prompt; None where no model is at hand.
        prompts: a row for each prompt of the class, one a template; None where no model is at hand.
        seed: of everything random.
        progress: called with (steps done, steps in all) by methods that take long.
    """

    forget: Embeddings
    keep: Embeddings
    fit: Samples | None = None
    scale: float = 100.0
    empty: Tensor | None = None
    prompts: Embeddings | None = None
    seed: int = 0
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class Contender:
    """A method as it is compared.

    Args:
        about: what it is, in a few words, with the settings that differ from its defaults.
        make: from a task to an edit: a Projector, or another callable on rows with a `side`.
        learns: whether it looks at `task.fit`, so that it must be measured on other pictures.
        needs: fields of the task it cannot do without.
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
            raise TypeError(f"Contender: make must be callable, got {type(self.make).__name__}")
        if not set(self.needs) <= {"empty", "prompts"}:
            raise Refusal("Contender", "needs", f"must be empty or prompts, got {self.needs}")
