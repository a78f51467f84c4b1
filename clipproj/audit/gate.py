"""What an edit may cost and leave: an edit beyond that is refused before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clipproj.audit.evaluate import Comparison, compare
from clipproj.audit.groups import nearest
from clipproj.audit.standins import stand_ins
from clipproj.audit.stats import Measured, plain
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.refusal import Refusal
from clipproj.report.formatting import count, listed, percent

FEW_PICTURED = 10  # other classes with pictures; with fewer, names in general are measured too
NEAR = 200  # of those, the nearest to what is forgotten: on Pets and Food-101 what mixtures of them
# lose is about what pictures lose; of a thousand names it is diluted tenfold
GENERAL_PROMPTS = ("a {}",)  # they are a thousand, and only measured on
ONE_NAME = 10  # times `max_found` may be found of one forgotten name
_FALL = 0.25  # loss of a class, or of the nearest ones, from which on it is worth a word
_TURNED = 0.6  # mean cosine of the others to what they were, below which they are not themselves
_KNOWN = 0.1  # accuracy below which a loss in points says nothing
_TOLD_APART = 0.8  # the same, of names in general, which a model of few classes does not know
_UNKNOWN = (
    "Only the kept names were measured, not what else the model knew: names in general were not "
    "given, or this model does not tell them apart."
)
_ROUNDING = 1e-9  # 0.80 - 0.78 is above 0.02 in floats


@dataclass(frozen=True)
class Limits:
    """How much an edit may lose and leave.

    Args:
        max_loss: by how much accuracy on all other classes may fall, a share in [0, 1]; 1 allows
            everything.
        max_found: which share of the forgotten classes' pictures may still be answered by a
            forgotten name, of one name ten times that; 1 allows everything.

    Raises ValueError for a number outside [0, 1].
    """

    max_loss: float = 0.02
    max_found: float = 0.01

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= 1:
                raise Refusal("Limits", name, f"must be a share in [0, 1], got {value}")


@dataclass(frozen=True, eq=False)
class Price:
    """What decides: an edit must be within its limits on all of it.

    Attributes:
        names: what is forgotten by this edit.
        others: where the other classes were measured: on pictures; on mixtures of the kept texts,
            where the pictures are not of all kept names; on mixtures of names in general.
        found: where it was counted what a forgotten name still answers: on pictures, and on
            mixtures where a forgotten text has no pictures.
        spent: what earlier edits of the model lost, which counts as well.
        told: False where texts were needed for an affine edit, whose offset was fitted to the
            lengths of pictures.
    """

    names: tuple[str, ...]
    others: tuple[Comparison, ...]
    found: tuple[Comparison, ...]
    spent: float
    told: bool

    @classmethod
    def of(
        cls,
        projector: Projector,
        forget: Embeddings,
        keep: Embeddings,
        texts: Comparison,
        pictures: Comparison | None = None,
        general: Comparison | None = None,
        spent: float = 0.0,
    ) -> Price:
        """The price from what was measured; arguments as of `judge`."""
        others, found = [], []
        if pictures is not None and pictures.pictures_retain:
            others.append(pictures)
        if pictures is not None and pictures.pictures_forget:
            found.append(pictures)
        if not others or not set(keep.names) <= pictures.after.per_class.keys():
            others.append(texts)
        if not found or not set(forget.names) <= set(pictures.forget):
            found.append(texts)
        told = projector.offset is None or texts not in (*others, *found)
        if general is not None and general.before.retain >= _TOLD_APART:
            others.append(general)
        return cls(forget.names, tuple(others), tuple(found), spent, told)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: each number where it is worst, before and after, and what it is of."""
        pairs = {
            "found": (self.most, "found"),
            "others": (self.worst, "retain"),
            "nearest": (self.worst, "neighbours"),
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
            | {"agreement": float(self.worst.agreement), "cosine": float(self.worst.cosine)}
        )

    @property
    def worst(self) -> Comparison:
        """Where the others lose most."""
        return max(self.others, key=_loss)

    @property
    def most(self) -> Comparison:
        """Where most is found."""
        return max(self.found, key=self._share)

    @property
    def loss(self) -> float:
        """By how much accuracy on all other classes fell, with earlier edits; below 0: it rose."""
        return _loss(self.worst) + self.spent

    def loses(self, limits: Limits) -> bool:
        """Whether the others lose more than allowed, or nobody can tell."""
        return limits.max_loss < 1 and (not self.told or self._beyond_loss(limits) is not None)

    def finds(self, limits: Limits) -> bool:
        """Whether a forgotten name still answers more than allowed, or nobody can tell."""
        return limits.max_found < 1 and (not self.told or self._beyond_found(limits) is not None)

    def _beyond_loss(self, limits: Limits) -> Comparison | None:
        for one in sorted(self.others, key=_loss, reverse=True):
            kept = one.before.retain >= _KNOWN and one.cosine >= _TURNED
            if not (kept and _loss(one) + self.spent <= limits.max_loss + _ROUNDING):
                return one
        return None

    def _beyond_found(self, limits: Limits) -> Comparison | None:
        for one in sorted(self.found, key=self._share, reverse=True):
            most = limits.max_found
            if not (self._share(one) <= most and _whole(one)[1] <= ONE_NAME * most):
                return one
        return None

    def _share(self, measured: Comparison) -> Measured:
        """What is found of this edit's names; those of earlier edits would dilute it."""
        return measured.after.found_among(self.names)

    def beyond(self, limits: Limits) -> tuple[str, ...]:
        """In which ways it is beyond the limits, a sentence each; empty where it is not."""
        loses, finds = self.loses(limits), self.finds(limits)
        if not self.told:
            text = "What an affine edit costs is told by pictures alone, of all classes."
            return (text,) if loses or finds else ()
        said = [self._lost(limits)] if loses else []
        return (*said, self._left(limits)) if finds else tuple(said)

    def _lost(self, limits: Limits) -> str:
        one = self._beyond_loss(limits)
        before, after = one.before.retain, one.after.retain
        of = count(after.n, one.unit)
        if before < _KNOWN:
            return (
                f"Before the edit {percent(before)} of {of} of other classes are answered right: "
                "what they lose can't be told. The classes may have other names for this model."
            )
        if _loss(one) + self.spent <= limits.max_loss + _ROUNDING:
            return (
                f"All other classes are turned to a mean cosine of {one.cosine:.2f} to what they "
                f"were, on {of}."
            )
        return (
            f"All other classes fall from {percent(before)} to {percent(after)} of {of}"
            f"{f', and fell by {percent(self.spent)} before' if self.spent else ''}: more than "
            f"{percent(limits.max_loss)} is lost."
        )

    def _left(self, limits: Limits) -> str:
        one = self._beyond_found(limits)
        after, most, whose = self._share(one), limits.max_found, "the forgotten names"
        before = one.before.found_among(self.names)
        if after <= most:
            name, after = _whole(one)
            before, most, whose = one.before.found_of[name], ONE_NAME * most, listed([name])
        return (
            f"Of {whose} {percent(after)} of {count(after.n, one.unit)} are still answered by a "
            f"forgotten name ({percent(before)} before), more than {percent(most)}."
        )


@dataclass(frozen=True, eq=False)
class Judgement:
    """What an edit costs, and whether it may be written.

    Attributes:
        texts: the edit on `stand_ins`.
        price: what decides.
        limits: what was asked for.
        refused: beyond these limits.
        alarms: in which ways it is beyond them or, where they allow it, beyond the default ones; a
            sentence each.
        advice: what may help.
        notes: what else is worth a word: classes that lose much, what could not be measured.
    """

    texts: Comparison
    price: Price
    limits: Limits
    refused: bool
    alarms: tuple[str, ...]
    advice: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, kept in the projector's provenance as what was measured."""
        told = {"alarms": list(self.alarms), "notes": list(self.notes)}
        return self.price.as_dict() | {"limits": asdict(self.limits)} | told


def judge(
    projector: Projector,
    forget: Embeddings,
    keep: Embeddings,
    limits: Limits = Limits(),
    *,
    closed: bool,
    pictures: Comparison | None = None,
    general: Embeddings | None = None,
    spent: float = 0.0,
) -> Judgement:
    """Hold an edit against its limits.

    Args:
        projector: as applied, with its strength and of the side that is edited.
        forget, keep: the texts it was made of.
        closed: whether the kept names are those that compete, not names in general.
        pictures: what it does to pictures, where there are some.
        general: names in general, where there are few pictures: the nearest to what is forgotten
            stand for what else the model knows. Left out where it does not tell them apart. None:
            for several names the kept ones where these are names in general, else none.
        spent: what earlier edits of the model lost, a share.

    Raises ValueError as `stand_ins`.
    """

    def on_texts(keep: Embeddings, unit: str) -> Comparison:
        unedited = stand_ins(forget, keep)
        return compare(unedited, unedited.edited(projector), forget.names, probe=False, unit=unit)

    texts = on_texts(keep, "mixture of texts")
    wide = None
    if general is None and not closed and len(forget) > 1:  # of a thousand names few are near
        general = keep
    if general is not None:
        near = general.select(nearest(general, forget, NEAR))
        wide = on_texts(near, "mixture of names in general")
    price = Price.of(projector, forget, keep, texts, pictures, wide, spent)
    refused = price.beyond(limits)
    alarms = refused or price.beyond(Limits())
    held = limits if refused else Limits()
    advice = _advice(price, held, projector, len(forget), len(keep), closed) if alarms else ()
    notes = () if price.loses(held) else _falls(pictures or texts)
    unseen = closed and wide is None and pictures is None
    if unseen or (wide is not None and wide.before.retain < _TOLD_APART):
        notes += (_UNKNOWN,)
    return Judgement(texts, price, limits, bool(refused), alarms, advice, notes)


def _loss(measured: Comparison) -> float:
    return measured.before.retain - measured.after.retain


def _whole(measured: Comparison) -> tuple[str, Measured]:
    """The forgotten name of which most is found, and how much."""
    return max(measured.after.found_of.items(), key=lambda one: one[1])


def _advice(
    price: Price, limits: Limits, projector: Projector, names: int, kept: int, closed: bool
) -> tuple[str, ...]:
    """What may help, most promising first."""
    if not price.told:
        return ("pictures in class folders",)
    history = projector.provenance
    contrast = (history.get("parameters") or {}).get("contrast")
    strength = float(projector.strength)
    said = []
    if not closed:
        said.append("the names that compete, or pictures of them in class folders")
    elif price.loses(limits):
        said.append("more of the names that compete")
    if price.finds(limits):
        if strength < 1:
            said.append("strength 1")
        elif history.get("method") == "ccup":
            said.append("a smaller keep weight, or method nullspace")
        elif contrast == "span" and kept > 1:
            said.append("contrast hull")
    if price.loses(limits) and names > 1:
        said.append("fewer names at once")
    if price.loses(limits) and strength > 1:
        said.append("strength 1")
    return tuple(said)


def _falls(measured: Comparison) -> tuple[str, ...]:
    """Sentences on the nearest classes, and on the one that falls most, where that is much."""

    def fall(names: Sequence[str], before: Measured, after: Measured) -> str:
        of = count(after.n, measured.unit)
        verb = "falls" if len(names) == 1 else "fall"
        return f"{listed(names, 5)} {verb} from {percent(before)} to {percent(after)} of {of}."

    before, after = measured.before, measured.after
    said = []
    if before.neighbours - after.neighbours > _FALL:
        said.append(fall(measured.nearest, before.neighbours, after.neighbours))
    others = [name for name in after.per_class if name not in measured.forget]
    lost = {name: before.per_class[name] - after.per_class[name] for name in others}
    worst = max(lost, key=lost.get, default=None)
    if not said and worst is not None and lost[worst] > _FALL and after.per_class[worst].n > 1:
        said.append(fall([worst], before.per_class[worst], after.per_class[worst]))
    return tuple(said)
