"""What a method of forgetting says of itself, and what it is given to make a projector from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.refusal import Refusal

if TYPE_CHECKING:
    from clipproj.audit.samples import Samples

NEEDS = {  # fields of a task that not every caller can fill, and what they are to a user
    "fit": "labelled images to learn from",
    "empty": "the model's text of the empty prompt",
    "prompts": "a text for each prompt of the forgotten names",
    "embed": "the model, to embed texts of domains",
}


@dataclass(frozen=True, eq=False)
class Task:
    """Names to forget, as a method is given them; also of `compare`, where it is one name.

    Args:
        forget, keep: unit texts [m, d] of what is forgotten and of what must stay.
        fit: labelled images that a method may learn from, never those it is measured on.
        scale: what cosines are multiplied by for probabilities, exp(logit_scale).
        empty: [d] unit text of the empty prompt.
        prompts: a row for each prompt of the forgotten names, one a template.
        embed: from names and templates to their texts.
        closed: whether keep holds all names that compete with the forgotten ones, not names in
            general.
        side: the tower whose features are edited, "image" or "text".
        seed: of everything random.
        progress: called with (steps done, steps in all) by methods that take long.

    `fit`, `empty`, `prompts` and `embed` are None where they are not at hand.
    """

    forget: Embeddings
    keep: Embeddings
    fit: Samples | None = None
    scale: float = 100.0
    empty: Tensor | None = None
    prompts: Embeddings | None = None
    embed: Callable[[Sequence[str], Sequence[str]], Embeddings] | None = None
    closed: bool = True
    side: str = "image"
    seed: int = 0
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class Option:
    """A setting of a method: what the command line, the service and the documents say of it.

    Args:
        name: as the method's function calls it.
        kind: int, float or str.
        help: what it does, in a few words.
        default: what it is when left out, in words.
        low, high: the range of a number, both ends included; None for no end.
        above: a number that the value must exceed.
        choices: the values of a str; () for any that is not blank.
        needs: by value, the field of `NEEDS` that it takes.

        Option("angle", float, "degrees to turn by", "120", above=0, high=180)
    """

    name: str
    kind: type
    help: str
    default: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)

    def check(self, op: str, value: Any) -> Any:
        """The value, a float option's as a float. Refusal for another kind or out of range."""
        fits = isinstance(value, (int, float) if self.kind is float else self.kind)
        if not fits or isinstance(value, bool) or (self.kind is str and not value.strip()):
            raise Refusal(op, self.name, f"must be {self.values}, got {value!r:.80}")
        if self.kind is str:
            inside = not self.choices or value in self.choices
        else:
            inside = _is_finite(value) and not (
                (self.low is not None and value < self.low)
                or (self.high is not None and value > self.high)
                or (self.above is not None and value <= self.above)
            )
        if not inside:
            raise Refusal(op, self.name, f"must be {self.values}, got {value!r:.80}")
        return self.kind(value)

    def parse(self, op: str, text: str) -> Any:
        """The value that a command line means by `text`. Raises as `check`."""
        try:
            value = self.kind(text)
        except ValueError:
            value = text  # of a number: `check` says what it must be
        return self.check(op, value)

    @property
    def values(self) -> str:
        """What the value must be, in words: "a number above 0 and at most 180"."""
        if self.kind is str:
            return " or ".join(self.choices) or "a text that is not blank"
        ends = ("at least", self.low), ("above", self.above), ("at most", self.high)
        told = " and ".join(f"{word} {end:g}" for word, end in ends if end is not None)
        kind = "an integer" if self.kind is int else "a finite number"
        return f"{kind} {told}".rstrip()


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer above every float
        return False


@dataclass(frozen=True)
class Setting:
    """A method at options of its own, as `compare` lists it.

    Args:
        strength: None: the method's own.
        one_sided: in its one-sided form, not the linear one.
    """

    name: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    strength: float | None = None
    one_sided: bool = False


@dataclass(frozen=True)
class Method:
    """A way to make a projector from names, as every command finds it: one file declares one.

    Args:
        name: what `--method` calls it.
        about: what it does, in a few words.
        make: from a task and options, by keyword, to a projector at the strength that suits it; or
            to several, of which the first that forgets as much as the last is taken.
        options: its settings beside strength.
        needs: fields of `NEEDS` that it cannot do without.
        symmetric: whether it makes orthogonal projectors, which may have strengths up to 2.
        foldable: whether its projectors have no offset, so that every head can hold them.
        promise: what it promises, in words; "" for nothing.
        paper: where the idea comes from.
        one_sided: as `make`, to the same edit one-sided, for rows on the fly; None, or giving None
            for these options, where there is no such form.
        settings: at which `compare` lists it; None: at its defaults, () not unless it is asked for.

    Every file of this package declares its own, here with the defaults:

        METHOD = Method("mirror", "reflects the class", make, symmetric=True, foldable=True)
    """

    name: str
    about: str
    make: Callable[..., Projector | tuple[Projector, ...]]
    options: tuple[Option, ...] = ()
    needs: frozenset[str] = frozenset()
    symmetric: bool = False
    foldable: bool = True
    promise: str = ""
    paper: str = ""
    settings: tuple[Setting, ...] | None = None
    one_sided: Callable[..., Projector | tuple[Projector, ...] | None] | None = None

    def __post_init__(self) -> None:
        foreign = self.needs.union(*(one.needs.values() for one in self.options)) - set(NEEDS)
        if foreign:
            why = f"must be of {', '.join(NEEDS)}, got {', '.join(sorted(foreign))}"
            raise Refusal("Method", "needs", why)

    def option(self, name: str) -> Option | None:
        """Its option of this name; None where it has none."""
        return next((one for one in self.options if one.name == name), None)

    def needed(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """The fields of `NEEDS` that it takes at these options, sorted."""
        said = ((one.needs, options.get(one.name)) for one in self.options)
        by_value = {needs[value] for needs, value in said if value is not None and value in needs}
        return tuple(sorted(self.needs | by_value))
