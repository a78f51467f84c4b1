"""Search in both directions, with the edit on either side and its rows normalised again or not.

Two things decide what a search sees of an edit P, since `<z P, t> = <z, t P^T>`:

- One text ranks images by `<z', t'>`: an image's length counts, a text's does not. One image
  ranks texts: a text's length counts, an image's does not. So an edit of the texts that is
  normalised again can vanish from the answers (`normalise(P t)` of a partial projection of t is t).
- Which of an oblique edit's factors reads is a matter of the side: the other way round the class
  stays in place.
"""

from __future__ import annotations

import math
import warnings as python_warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.audit.groups import class_groups
from clipproj.audit.registry import Audit
from clipproj.audit.samples import RowEdit, Samples
from clipproj.audit.search import Search, search
from clipproj.audit.stats import Measured
from clipproj.methods import inputs
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.refusal import Refusal

_SENT = 0.98  # cosine from which an edited text is another one
_WRONG = 1e-3  # share by which swapped factors must leave less: more than rounding of factors


@dataclass(frozen=True)
class SearchAfter:
    """A search whose rows of `side` the edit was applied to, divided by their length or not.

    What is not divided keeps the length that the edit left it, in units of its length before.
    """

    side: str
    renormalized: bool
    search: Search


@dataclass(frozen=True)
class SideCheck:
    """How much of the forgotten texts an edit leaves for any image to align with.

    Args:
        side: of the projector.
        left: rms over the texts of `max <z', t>` over all unit images z, with the edit made on
            its side; 1 without an edit.
        left_swapped: the same with read and write swapped.
        wrong: whether swapped they would leave less, of an edit that aims at nothing.
    """

    side: str
    left: float
    left_swapped: float
    wrong: bool


@dataclass(frozen=True)
class RetrievalResult:
    """What `retrieval` measured.

    Args:
        before: without an edit.
        after: the edit on its own side, and for a projector without an offset its counterpart on
            the other, each normalised again and not.
        side: which of its factors reads, of an oblique projector without an offset; else None.
        swapped: recall at 1 of the forgotten classes' texts with read and write swapped, or None.
        text_length, text_cosine: mean over the forgotten texts of their length after an edit of the
            text side (1 before), and of the cosine with what they were; NaN without that side.
    """

    forget: tuple[str, ...]
    nearest: tuple[str, ...]
    before: Search
    after: tuple[SearchAfter, ...]
    side: SideCheck | None
    swapped: Measured | None
    text_length: float
    text_cosine: float

    @property
    def others(self) -> bool:
        """Whether there is an image of another class."""
        return len(self.before.images_recall) > 1


def wrong_side(
    projector: Projector,
    forget_texts: Embeddings | Tensor,
    keep_texts: Embeddings | Tensor | None = None,
) -> SideCheck:
    """Whether read and write of an oblique projector are swapped for its side.

    For an edit of images z, `<z', t> = <z, t'>` with `t' = t - s (t W^T) R`, so |t'| bounds how
    well any image can still align with a forgotten text t. Swapped factors exchange R and W, and
    the pair that leaves the shorter t' is the one that was meant. Images that are the forgotten
    texts themselves cannot tell (`t P t^T = t P^T t^T`), and answers need not.

    An edit that sends a class to another leaves the length of the other text, and is told by where
    t' lies if that text is among those to keep.

    Args:
        projector: without an offset, of either side.
        forget_texts, keep_texts: [m, d], any row lengths.

    Raises:
        TypeError: for another projector; ValueError: for one with an offset, which has no other
            side, for texts of another width, or NaN, inf and zero rows.
    """
    op = "wrong_side"
    if not isinstance(projector, Projector):
        raise TypeError(f"{op}: projector must be a Projector, got {type(projector).__name__}")
    if projector.offset is not None:
        raise Refusal(op, "projector", "must have no offset, got an affine one")
    texts, keep = inputs.forget_and_keep(op, forget_texts, keep_texts)
    if texts.shape[1] != projector.dim:
        got = list(texts.shape)
        raise Refusal(op, "forget_texts", f"must be [m, {projector.dim}], got {got}")
    f = {
        k: v if v is None else v.cpu()
        for k, v in projector.linear_factors(op, torch.float64).items()
    }
    texts = texts.cpu()

    def seen(read: Tensor, write: Tensor) -> Tensor:
        return texts - f["strength"] * (texts @ read.T) @ write

    as_is, swapped = seen(f["read"], f["write"]), seen(f["write"], f["read"])
    if projector.side == "image":  # a text is seen through the transpose
        as_is, swapped = swapped, as_is
    left, exchanged = (float(rows.norm() / len(rows) ** 0.5) for rows in (as_is, swapped))
    sent = keep is not None and (F.normalize(as_is, dim=1) @ keep.cpu().T).amax(1).min() > _SENT
    return SideCheck(projector.side, left, exchanged, not sent and exchanged < (1 - _WRONG) * left)


def retrieval(
    samples: Samples, edit: RowEdit, forget: Sequence[str], *, ks: Sequence[int] = (1, 5, 10)
) -> RetrievalResult:
    """Recall and precision of search by text and by image, on both sides, normalised or not.

    Args:
        samples: before the edit.
        edit: of either tower. Only a Projector without an offset has a counterpart on the other.
        forget: names of classes.
        ks: how many results count, each at least 1, cut to the size of what is searched. 1 is
            always among them.

    Raises TypeError, ValueError as `class_groups` and `Samples.edited`; ValueError for a k below 1.
    """
    if not all(isinstance(k, int) and k >= 1 for k in ks):
        raise Refusal("retrieval", "ks", f"must be integers of at least 1, got {list(ks)}")
    ks = sorted({1, *ks})
    groups = class_groups("retrieval", samples, forget)
    images = F.normalize(samples.features.double(), dim=1)
    texts = F.normalize(samples.texts.double(), dim=1)

    def found(images: Tensor, texts: Tensor) -> Search:
        return search(images, texts, samples.labels, groups, ks)

    after, length, cosine = [], math.nan, math.nan
    for one in _both_sides(edit):
        side, edited = getattr(one, "side", "image"), samples.edited(one)
        if side == "text":
            rows = _in_units(edited.texts, samples.texts)
            forgotten = groups["forgotten"]
            length = float(rows[forgotten].norm(dim=1).mean())
            cosine = float(F.cosine_similarity(rows[forgotten], texts[forgotten]).mean())
        else:
            rows = _in_units(edited.features, samples.features)
        for again in (True, False):
            new = F.normalize(rows, dim=1) if again else rows
            pair = (images, new) if side == "text" else (new, texts)
            after.append(SearchAfter(side, again, found(*pair)))

    check = swapped = None
    if isinstance(edit, Projector) and edit.form == "oblique":
        check = wrong_side(edit, samples.classes.select(forget), samples.classes.drop(forget))
        moved = samples.edited(_swapped(edit))
        pair = _in_units(moved.features, samples.features), _in_units(moved.texts, samples.texts)
        swapped = found(*pair).texts_recall["forgotten"][1]
    before = found(images, texts)
    names = [tuple(samples.names[c] for c in groups[g].tolist()) for g in list(groups)[:2]]
    return RetrievalResult(*names, before, tuple(after), check, swapped, length, cosine)


def _both_sides(edit: RowEdit) -> list[RowEdit]:
    """The edit, and where there is one its counterpart on the other tower."""
    if not isinstance(edit, Projector) or edit.offset is not None:
        return [edit]
    with python_warnings.catch_warnings():  # whoever built it was warned about its strength
        python_warnings.simplefilter("ignore")
        return [edit, edit.T]


def _swapped(edit: Projector) -> Projector:
    """The same side with read and write exchanged."""
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")
        return Projector(edit.write, edit.read, strength=edit.strength, side=edit.side)


def _in_units(rows: Tensor, before: Tensor) -> Tensor:
    """Edited rows in units of their length before, float64; of a row that had none as they are."""
    lengths = before.double().norm(dim=1, keepdim=True)
    return rows.double() / lengths.where(lengths > 0, torch.ones_like(lengths))


AUDIT = Audit(
    key="retrieval",
    title="As a search engine",
    place=40,
    run=lambda given: retrieval(*given.edit),
)
