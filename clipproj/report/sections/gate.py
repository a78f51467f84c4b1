"""What the gate says: why an edit is refused or not good, what may help, what is worth a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipproj.audit.evaluate import Comparison
from clipproj.audit.gate import KNOWN, ONE_NAME, ROUNDING, Judgement, Limits, Price, lost, whole
from clipproj.audit.stats import Measured
from clipproj.report.formatting import count, listed, percent

_FALL = 0.25  # loss of a class, or of the nearest ones, from which on it is worth a word
_UNKNOWN = (
    "Only the kept names were measured, not what else the model knew: names in general were not "
    "given, or this model does not tell them apart."
)


def alarms(judged: Judgement) -> tuple[str, ...]:
    """In which ways it is beyond its limits or, where they allow it, beyond the default ones."""
    return _beyond(judged.price, judged.held_against)


def advice(judged: Judgement) -> tuple[str, ...]:
    """What may help where it is beyond them, most promising first."""
    price, limits, projector = judged.price, judged.held_against, judged.projector
    if not price.beyond(limits):
        return ()
    if not price.told:
        return ("images in class folders",)
    history = projector.provenance
    contrast = (history.get("parameters") or {}).get("contrast")
    strength = float(projector.strength)
    said = []
    if not judged.closed:
        said.append("the names that compete, or images of them in class folders")
    elif price.loses(limits):
        said.append("more of the names that compete")
    if price.finds(limits):
        if strength < 1:
            said.append("strength 1")
        elif history.get("method") == "ccup":
            said.append("a smaller keep weight, or method nullspace")
        elif contrast == "span" and judged.kept > 1:
            said.append("contrast hull")
    if price.loses(limits) and judged.names > 1:
        said.append("fewer names at once")
    if price.loses(limits) and strength > 1:
        said.append("strength 1")
    return tuple(said)


def notes(judged: Judgement) -> tuple[str, ...]:
    """What else is worth a word: classes that lose much, what could not be measured."""
    told = judged.price.loses(judged.held_against)
    said = () if told else _falls(judged.images or judged.texts)
    return (*said, _UNKNOWN) if judged.unknown else said


def as_dict(judged: Judgement) -> dict[str, Any]:
    """The numbers with the sentences, as a projector's provenance keeps them."""
    return judged.as_dict() | {"alarms": list(alarms(judged)), "notes": list(notes(judged))}


def _beyond(price: Price, limits: Limits) -> tuple[str, ...]:
    """In which ways an edit is beyond the limits, a sentence each; empty where it is not."""
    loses, finds = price.loses(limits), price.finds(limits)
    if not price.told:
        text = "What an affine edit costs is told by images alone, of all classes."
        return (text,) if loses or finds else ()
    said = [_lost(price, limits)] if loses else []
    return (*said, _left(price, limits)) if finds else tuple(said)


def _lost(price: Price, limits: Limits) -> str:
    one = price.beyond_loss(limits)
    before, after = one.before.keep, one.after.keep
    of = count(after.n, one.unit)
    if before < KNOWN:
        return (
            f"Before the edit {percent(before)} of {of} of other classes are answered right: "
            "what they lose can't be told. The classes may have other names for this model."
        )
    if lost(one) + price.spent <= limits.max_loss + ROUNDING:
        return (
            f"All other classes are turned to a mean cosine of {one.cosine:.2f} to what they "
            f"were, on {of}."
        )
    return (
        f"All other classes fall from {percent(before)} to {percent(after)} of {of}"
        f"{f', and fell by {percent(price.spent)} before' if price.spent else ''}: more than "
        f"{percent(limits.max_loss)} is lost."
    )


def _left(price: Price, limits: Limits) -> str:
    one = price.beyond_found(limits)
    after, most, whose = price.share(one), limits.max_found, "the forgotten names"
    before = one.before.found_among(price.names)
    if after <= most:
        name, after = whole(one)
        before, most, whose = one.before.found_of[name], ONE_NAME * most, listed([name])
    return (
        f"Of {whose} {percent(after)} of {count(after.n, one.unit)} are still answered by a "
        f"forgotten name ({percent(before)} before), more than {percent(most)}."
    )


def _falls(measured: Comparison) -> tuple[str, ...]:
    """Sentences on the nearest classes, and on the one that falls most, where that is much."""

    def fall(names: Sequence[str], before: Measured, after: Measured) -> str:
        of = count(after.n, measured.unit)
        verb = "falls" if len(names) == 1 else "fall"
        return f"{listed(names, 5)} {verb} from {percent(before)} to {percent(after)} of {of}."

    before, after = measured.before, measured.after
    said = []
    if before.nearest - after.nearest > _FALL:
        said.append(fall(measured.nearest, before.nearest, after.nearest))
    others = [name for name in after.per_class if name not in measured.forget]
    fell = {name: before.per_class[name] - after.per_class[name] for name in others}
    worst = max(fell, key=fell.get, default=None)
    if not said and worst is not None and fell[worst] > _FALL and after.per_class[worst].n > 1:
        said.append(fall([worst], before.per_class[worst], after.per_class[worst]))
    return tuple(said)
