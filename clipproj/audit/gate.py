"""What an edit may cost and leave: an edit beyond that is refused before anything is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from clipproj.audit.evaluate import Comparison, compare
from clipproj.audit.standins import stand_ins
from clipproj.audit.stats import plain
from clipproj.audit.wording import count, listed, percent
from clipproj.projector import Projector
from clipproj.text import Embeddings

_NEIGHBOURS = 0.25  # loss of the nearest classes from which on it is worth a word
_ROUNDING = 1e-9  # 0.80 - 0.78 is above 0.02 in floats


@dataclass(frozen=True)
class Limits:
    """How much an edit may lose and leave.

    Args:
        max_loss: by how much accuracy on all other classes may fall, a share in [0, 1]; 1 allows
            everything.
        max_found: which share of the forgotten classes' pictures may still be answered by a
            forgotten name; 1 allows everything.

    Raises ValueError for a number outside [0, 1].
    """

    max_loss: float = 0.02
    max_found: float = 0.01

    def __post_init__(self) -> None:
        for name in ("max_loss", "max_found"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"gate: {name} must be a share in [0, 1], got {value}")


@dataclass(frozen=True, eq=False)
class Price:
    """What decides: pictures where there are some, else `stand_ins`.

    Attributes:
        others: where accuracy on all other classes was measured.
        found: where it was counted what a forgotten name still answers: classes without a picture
            are looked for in texts, and the worse of both counts.
        known: False where neither tells: an affine edit, whose offset was fitted to the lengths of
            pictures, seen on texts.
    """

    others: Comparison
    found: Comparison
    known: bool

    @classmethod
    def of(cls, pictures: Comparison | None, texts: Comparison, projector: Projector) -> Price:
        """The price from what was measured."""
        others = texts if pictures is None or not pictures.pictures_retain else pictures
        found = texts
        if pictures is not None and pictures.pictures_forget:
            worse = pictures.unmeasured and texts.after.found > pictures.after.found
            found = texts if worse else pictures
        return cls(others, found, projector.offset is None or texts not in (others, found))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: each number before and after, and what it was counted on."""
        pairs = {
            "found": (self.found, "found"),
            "others": (self.others, "retain"),
            "nearest": (self.others, "neighbours"),
        }
        return plain(
            {
                name: {
                    "before": float(getattr(one.before, key)),
                    "after": float(getattr(one.after, key)),
                    "of": getattr(one.after, key).n,
                    "on": one.unit,
                }
                for name, (one, key) in pairs.items()
            }
            | {"agreement": float(self.others.agreement), "cosine": float(self.others.cosine)}
        )

    @property
    def loss(self) -> float:
        """By how much accuracy on all other classes fell; below 0 where it rose."""
        return self.others.before.retain - self.others.after.retain

    def loses(self, limits: Limits) -> bool:
        """Whether the others lose more than allowed."""
        return not self.loss <= limits.max_loss + _ROUNDING and limits.max_loss < 1

    def finds(self, limits: Limits) -> bool:
        """Whether a forgotten name still answers more than allowed."""
        return not self.found.after.found <= limits.max_found and limits.max_found < 1

    def beyond(self, limits: Limits) -> tuple[str, ...]:
        """In which ways it is beyond the limits, a sentence each; empty where it is not."""
        loses, finds = self.loses(limits), self.finds(limits)
        if not self.known and limits != Limits(1, 1):
            return ("What an affine edit costs is told by pictures alone, and there are none.",)
        said = []
        if loses:
            before, after = self.others.before.retain, self.others.after.retain
            said.append(
                f"All other classes fall from {percent(before)} to {percent(after)} of "
                f"{count(after.n, self.others.unit)}: more than {percent(limits.max_loss)} is lost."
            )
        if finds:
            before, after = self.found.before.found, self.found.after.found
            said.append(
                f"A forgotten name still answers {percent(after)} of its "
                f"{count(after.n, self.found.unit)} ({percent(before)} before), more than "
                f"{percent(limits.max_found)}."
            )
        return tuple(said)


@dataclass(frozen=True, eq=False)
class Judgement:
    """What an edit costs, and whether it may be written.

    Attributes:
        texts: the edit on `stand_ins`.
        price: what decides.
        refused: beyond the limits that were asked for.
        alarms: in which ways it is beyond them or, where they allow it, beyond the default ones; a
            sentence each.
        advice: what would help.
    """

    texts: Comparison
    price: Price
    refused: bool
    alarms: tuple[str, ...]
    advice: tuple[str, ...]


def judge(
    projector: Projector,
    forget: Embeddings,
    keep: Embeddings,
    limits: Limits = Limits(),
    *,
    closed: bool,
    pictures: Comparison | None = None,
) -> Judgement:
    """Hold an edit against its limits.

    Args:
        projector: as applied, with its strength and of the side that is edited.
        forget, keep: the texts it was made of.
        closed: whether the kept names are those that compete, not names in general.
        pictures: what it does to pictures, where there are some.

    Raises ValueError as `stand_ins`.
    """
    unedited = stand_ins(forget, keep)
    edited = unedited.edited(projector)
    texts = compare(unedited, edited, forget.names, probe=False, unit="mixture of texts")
    price = Price.of(pictures, texts, projector)
    refused = price.beyond(limits)
    alarms = refused or price.beyond(Limits())
    advice = _advice(price, limits if refused else Limits(), projector, len(forget), closed)
    return Judgement(texts, price, bool(refused), alarms, advice if alarms else ())


def _advice(
    price: Price, limits: Limits, projector: Projector, names: int, closed: bool
) -> tuple[str, ...]:
    """What would help, most promising first."""
    history = projector.provenance
    contrast = (history.get("parameters") or {}).get("contrast")
    if not price.known:
        return ("pictures in class folders (images)",)
    said = []
    if not closed:
        said.append("the names that compete, as a closed list (keep, or images in class folders)")
    if price.finds(limits):
        if float(projector.strength) < 1:
            said.append("strength 1")
        elif history.get("method") == "ccup":
            said.append("a smaller keep-weight, or method nullspace")
        elif closed and contrast not in (None, "hull"):
            said.append("contrast hull")
    if price.loses(limits):
        if names > 1:
            said.append("fewer names at once")
        said.append("a lower strength")
    return tuple(said)


def neighbours_pay(measured: Comparison) -> str | None:
    """A sentence where the nearest classes lose much, whatever all others together do."""
    before, after = measured.before.neighbours, measured.after.neighbours
    if math.isnan(before) or before - after <= _NEIGHBOURS:
        return None
    return (
        f"The nearest classes, {listed(measured.nearest, 5)}, fall from {percent(before)} to "
        f"{percent(after)} of {count(after.n, measured.unit)}."
    )
