"""What an edit may cost and leave: an edit beyond that is refused before anything is written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from clipproj.audit.evaluate import Comparison, compare
from clipproj.audit.groups import nearest
from clipproj.audit.standins import stand_ins
from clipproj.audit.stats import Measured, plain
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.refusal import Refusal

FEW_WITH_IMAGES = 10  # other classes with images; with fewer, names in general are measured too
NEAR = 200  # of those, the nearest to what is forgotten: on Pets and Food-101 what mixtures of them
# lose is about what images lose; of a thousand names it is diluted tenfold
GENERAL_PROMPTS = ("a {}",)  # they are a thousand, and only measured on
ONE_NAME = 10  # times `max_found` may be found of one forgotten name
_TURNED = 0.6  # mean cosine of the others to what they were, below which they are not themselves
KNOWN = 0.1  # accuracy below which a loss in points says nothing
_TOLD_APART = 0.8  # the same, of names in general, which a model of few classes does not know
ROUNDING = 1e-9  # 0.80 - 0.78 is above 0.02 in floats


@dataclass(frozen=True)
class Limits:
    """How much an edit may lose and leave.

    Args:
        max_loss: by how much accuracy on all other classes may fall, a share in [0, 1]; 1 allows
            everything.
        max_found: which share of the forgotten classes' images may still be answered by a
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
        others: where the other classes were measured: on images; on mixtures of the kept texts,
            where the images are not of all kept names; on mixtures of names in general.
        found: where it was counted what a forgotten name still answers: on images, and on
            mixtures where a forgotten text has no images.
        spent: what earlier edits of the model lost, which counts as well.
        told: False where texts were needed for an affine edit, whose offset was fitted to the
            lengths of images.
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
        images: Comparison | None = None,
        general: Comparison | None = None,
        spent: float = 0.0,
    ) -> Price:
        """The price from what was measured; arguments as of `judge`."""
        others, found = [], []
        if images is not None and images.images_keep:
            others.append(images)
        if images is not None and images.images_forget:
            found.append(images)
        if not others or not set(keep.names) <= images.after.per_class.keys():
            others.append(texts)
        if not found or not set(forget.names) <= set(images.forget):
            found.append(texts)
        told = projector.offset is None or projector.one_sided or texts not in (*others, *found)
        if general is not None and general.before.keep >= _TOLD_APART:
            others.append(general)
        return cls(forget.names, tuple(others), tuple(found), spent, told)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: each number where it is worst, before and after, and what it is of."""
        pairs = {
            "found": (self.most, "found"),
            "others": (self.worst, "keep"),
            "nearest": (self.worst, "nearest"),
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
        return max(self.others, key=lost)

    @property
    def most(self) -> Comparison:
        """Where most is found."""
        return max(self.found, key=self.share)

    @property
    def loss(self) -> float:
        """By how much accuracy on all other classes fell, with earlier edits; below 0: it rose."""
        return lost(self.worst) + self.spent

    def loses(self, limits: Limits) -> bool:
        """Whether the others lose more than allowed, or nobody can tell."""
        return limits.max_loss < 1 and (not self.told or self.beyond_loss(limits) is not None)

    def finds(self, limits: Limits) -> bool:
        """Whether a forgotten name still answers more than allowed, or nobody can tell."""
        return limits.max_found < 1 and (not self.told or self.beyond_found(limits) is not None)

    def beyond(self, limits: Limits) -> bool:
        """Whether it is beyond the limits."""
        return self.loses(limits) or self.finds(limits)

    def beyond_loss(self, limits: Limits) -> Comparison | None:
        """Where the others lose more than allowed, or what they lose means nothing; else None."""
        for one in sorted(self.others, key=lost, reverse=True):
            kept = one.before.keep >= KNOWN and one.cosine >= _TURNED
            if not (kept and lost(one) + self.spent <= limits.max_loss + ROUNDING):
                return one
        return None

    def beyond_found(self, limits: Limits) -> Comparison | None:
        """Where more than allowed is found, of all forgotten names or of one; else None."""
        for one in sorted(self.found, key=self.share, reverse=True):
            most = limits.max_found
            if not (self.share(one) <= most and whole(one)[1] <= ONE_NAME * most):
                return one
        return None

    def share(self, measured: Comparison) -> Measured:
        """What is found of this edit's names; those of earlier edits would dilute it."""
        return measured.after.found_among(self.names)


@dataclass(frozen=True, eq=False)
class Judgement:
    """What an edit costs, and whether it may be written.

    Attributes:
        texts: the edit on `stand_ins`.
        images: what it does to images, where there are some.
        price: what decides.
        limits: what was asked for.
        projector: as it was applied.
        names, kept: how many texts are forgotten and kept.
        closed: whether the kept names are those that compete, not names in general.
        unknown: nobody measured what else the model knew, or it does not tell names in general
            apart.
    """

    texts: Comparison
    images: Comparison | None
    price: Price
    limits: Limits
    projector: Projector
    names: int
    kept: int
    closed: bool
    unknown: bool

    @property
    def refused(self) -> bool:
        """Beyond its limits."""
        return self.price.beyond(self.limits)

    @property
    def held_against(self) -> Limits:
        """The limits it is beyond, where it is: those asked for, else the default ones."""
        return self.limits if self.refused else Limits()

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return self.price.as_dict() | {"limits": asdict(self.limits)}


def judge(
    projector: Projector,
    forget: Embeddings,
    keep: Embeddings,
    limits: Limits = Limits(),
    *,
    closed: bool,
    images: Comparison | None = None,
    general: Embeddings | None = None,
    spent: float = 0.0,
) -> Judgement:
    """Hold an edit against its limits.

    Args:
        projector: as applied, with its strength and of the side that is edited.
        forget, keep: the texts it was made of.
        closed: whether the kept names are those that compete, not names in general.
        images: what it does to images, where there are some.
        general: names in general, where there are few images: the nearest to what is forgotten
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
    price = Price.of(projector, forget, keep, texts, images, wide, spent)
    unseen = closed and wide is None and images is None
    unknown = unseen or (wide is not None and wide.before.keep < _TOLD_APART)
    return Judgement(
        texts, images, price, limits, projector, len(forget), len(keep), closed, unknown
    )


def lost(measured: Comparison) -> float:
    """By how much accuracy on all other classes fell."""
    return measured.before.keep - measured.after.keep


def whole(measured: Comparison) -> tuple[str, Measured]:
    """The forgotten name of which most is found, and how much."""
    return max(measured.after.found_of.items(), key=lambda one: one[1])
