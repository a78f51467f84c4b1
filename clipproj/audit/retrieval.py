"""Search in both directions, with the edit on either side and its rows normalised again or not.

Two things decide what a search sees of an edit P, since `<z P, t> = <z, t P^T>`:

- One text ranks pictures by `<z', t'>`: a picture's length counts, a text's does not. One picture
  ranks texts: a text's length counts, a picture's does not. So an edit of the texts that is
  normalised again can vanish from the answers (`normalise(P t)` of a partial projection of t is t).
- Which of an oblique edit's factors reads is a matter of the side: the other way round the class
  stays in place.
"""

from __future__ import annotations

import math
import warnings as python_warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.audit.groups import class_groups
from clipproj.audit.samples import Edit, Samples
from clipproj.audit.search import Search, search
from clipproj.audit.stats import Measured
from clipproj.methods.inputs import forget_and_keep
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.refusal import Refusal
from clipproj.report.formatting import count, either, listed, percent
from clipproj.report.page import Page, Table

_SENT = 0.98  # cosine from which an edited text is another one
_WRONG = 1e-3  # share by which swapped factors must leave less: more than rounding of factors
_NOISE = 1e-5  # length of an edited unit text below which its direction is rounding
_SAME = 0.999  # cosine from which an edited text has kept its direction, if it lost length at all


@dataclass(frozen=True)
class Setting:
    """What the edit did when it is applied to the rows of `side`, divided by their length or not.

    What is not divided keeps the length that the edit left it, in units of its length before.
    """

    side: str
    renormalized: bool
    search: Search


@dataclass(frozen=True)
class SideCheck:
    """How much of the forgotten texts an edit leaves for any picture to align with.

    Args:
        side: of the projector.
        left: rms over the texts of `max <z', t>` over all unit pictures z, with the edit made on
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
        warnings: sentences on a side or a normalisation that undoes the edit.
    """

    forget: tuple[str, ...]
    neighbours: tuple[str, ...]
    before: Search
    after: tuple[Setting, ...]
    side: SideCheck | None
    swapped: Measured | None
    text_length: float
    text_cosine: float
    warnings: tuple[str, ...]

    def page(self) -> Page:
        """The audit in a report."""
        before = self.before
        ks = list(before.pictures_recall["forgotten"])
        of_texts = list(before.texts_recall["forgotten"])
        pictures = tuple(
            (setting, group, *found.values(), *search.pictures_precision[group].values())
            for setting, search in self._settings()
            for group, found in search.pictures_recall.items()
        )
        texts = tuple(
            (setting, group, *found.values())
            for setting, search in self._settings()
            for group, found in search.texts_recall.items()
        )
        recall = tuple(f"recall@{k} %" for k in ks)
        precision = tuple(f"precision@{k} %" for k in ks)
        tables = (
            Table(("edited rows", "classes", *recall, *precision), pictures, _BY_TEXT),
            Table(
                ("edited rows", "classes", *(f"recall@{k} %" for k in of_texts)),
                texts,
                _BY_PICTURE,
            ),
        )
        return Page("retrieval", "As a search engine", self._lead(), tables)

    def _settings(self) -> Iterator[tuple[str, Search]]:
        yield "none", self.before
        for one in self.after:
            yield f"{one.side}s, {'unit' if one.renormalized else 'as left'}", one.search

    def _lead(self) -> str:
        own = self.after[0]
        searches = (self.before, own.search)
        k = max(self.before.pictures_recall["forgotten"])
        by_text = [s.pictures_recall["forgotten"][k] for s in searches]
        by_picture = [s.texts_recall["forgotten"][1] for s in searches]
        names, its = listed(self.forget), either(self.forget, "its", "their")
        if not by_picture[0].n:
            lead = f"There is no picture of {names}: {its} search was not measured."
            return " ".join([lead, *self.warnings])
        text = either(self.forget, "text", "texts")
        lead = (
            f"With the edit on the {own.side} side and its rows normalised again, "
            f"{percent(by_picture[1])} of {count(by_picture[0].n, 'picture')} of {names} find "
            f"the text of their class first (before {percent(by_picture[0])})"
        )
        if not self.others:
            return " ".join(
                [f"{lead}. No other picture competes for {its} {text}.", *self.warnings]
            )
        verb = either(self.forget, "finds", "find")
        lead += (
            f", and {its} {text} {verb} {percent(by_text[1])} of {its} pictures among the first "
            f"{k} (before {percent(by_text[0])})."
        )
        if by_text[1] > by_text[0] / 2:
            lead += (
                f" {its.capitalize()} {text} can still be searched with: among pictures that "
                "compete for one text only their order counts, not how far their scores fell."
            )
        return " ".join([lead, *self.warnings])

    @property
    def others(self) -> bool:
        """Whether there is a picture of another class."""
        return len(self.before.pictures_recall) > 1


_BY_TEXT = (
    "A class text searches all pictures; recall@k and precision@k are of the first k that it "
    "finds. Which row a service has: images, unit: an edited image "
    "tower, or an index built anew. Images, as left: an index edited in place and not divided "
    "again. Texts, unit: an edited text tower behind the usual normalisation. Texts, as left: "
    "class texts edited once and used at the length they then have. The length of the text that "
    "searches does not count, so both rows of texts are as “images, as left”, but for rounding. A "
    "class with m pictures has a recall of at most k / m and a precision of at most m / k."
)
_BY_PICTURE = (
    "A picture searches all class texts. The length of the picture that searches does not count, "
    "so both rows of images are as “texts, as left”, but for rounding."
)


def wrong_side(
    projector: Projector,
    forget_texts: Embeddings | Tensor,
    keep_texts: Embeddings | Tensor | None = None,
) -> SideCheck:
    """Whether read and write of an oblique projector are swapped for its side.

    For an edit of pictures z, `<z', t> = <z, t'>` with `t' = t - s (t W^T) R`, so |t'| bounds how
    well any picture can still align with a forgotten text t. Swapped factors exchange R and W, and
    the pair that leaves the shorter t' is the one that was meant. Pictures that are the forgotten
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
    texts, keep = forget_and_keep(op, forget_texts, keep_texts)
    if texts.shape[1] != projector.dim:
        got = list(texts.shape)
        raise Refusal(op, "forget_texts", f"must be [m, {projector.dim}], got {got}")
    f = {k: v if v is None else v.cpu() for k, v in projector.factors(torch.float64).items()}
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
    samples: Samples, edit: Edit, forget: Sequence[str], *, ks: Sequence[int] = (1, 5, 10)
) -> RetrievalResult:
    """Recall and precision of search by text and by picture, on both sides, normalised or not.

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
    pictures = F.normalize(samples.features.double(), dim=1)
    texts = F.normalize(samples.texts.double(), dim=1)

    def found(pictures: Tensor, texts: Tensor) -> Search:
        return search(pictures, texts, samples.labels, groups, ks)

    after, length, cosine = [], math.nan, math.nan
    for one in _both_sides(edit):
        side, edited = getattr(one, "side", "image"), samples.edited(one)
        if side == "text":
            rows = _in_units(edited.texts, samples.texts)
            gone = groups["forgotten"]
            length = float(rows[gone].norm(dim=1).mean())
            cosine = float(F.cosine_similarity(rows[gone], texts[gone]).mean())
        else:
            rows = _in_units(edited.features, samples.features)
        for again in (True, False):
            new = F.normalize(rows, dim=1) if again else rows
            pair = (pictures, new) if side == "text" else (new, texts)
            after.append(Setting(side, again, found(*pair)))

    check = swapped = None
    if isinstance(edit, Projector) and edit.offset is None and not edit.symmetric:
        check = wrong_side(edit, samples.classes.select(forget), samples.classes.drop(forget))
        moved = samples.edited(_swapped(edit))
        pair = _in_units(moved.features, samples.features), _in_units(moved.texts, samples.texts)
        swapped = found(*pair).texts_recall["forgotten"][1]
    before = found(pictures, texts)
    names = [tuple(samples.names[c] for c in groups[g].tolist()) for g in list(groups)[:2]]
    result = RetrievalResult(*names, before, tuple(after), check, swapped, length, cosine, ())
    return replace(result, warnings=_warnings(result))


def _both_sides(edit: Edit) -> list[Edit]:
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


def _how_much(result: RetrievalResult, again: float) -> str:
    """How much of an edit a normalisation undoes, by the answers."""
    before = result.before.texts_recall["forgotten"][1]
    return "part of" if again < 0.9 * before else "most of"


def _warnings(result: RetrievalResult) -> tuple[str, ...]:
    """What is said when a side or a normalisation undoes the edit."""
    classes, told = listed(result.forget), []
    text, its = either(result.forget, "text", "texts"), either(result.forget, "its", "their")
    verb, has = either(result.forget, "finds", "find"), either(result.forget, "has", "have")
    they = either(result.forget, "it was", "they were")
    found = {(s.side, s.renormalized): s.search.texts_recall["forgotten"][1] for s in result.after}
    again, as_left = found.get(("text", True)), found.get(("text", False))
    length, cosine = result.text_length, result.text_cosine
    if length < _NOISE:
        told.append(
            f"Of the {text} of {classes} the edit leaves nothing but rounding, on either side: "
            f"what {either(result.forget, 'that', 'those')} {text} still {verb} is noise."
        )
    elif (
        result.before.texts_recall["forgotten"][1].n
        and again is not None
        and (as_left.high < again or (cosine > _SAME > length))
    ):
        told.append(
            f"Normalising edited texts again undoes {_how_much(result, again)} this edit on the "
            f"text side: the {text} of {classes} {has} a length of {length:.3f} and a cosine of "
            f"{cosine:.4f} with what {they}; normalised, {percent(again)} of {its} pictures find "
            f"{its} text first, at the length then left {percent(as_left)} (before "
            f"{percent(result.before.texts_recall['forgotten'][1])}). Edit the image side, or keep "
            "that length."
        )
    check, swapped = result.side, result.swapped
    if check is None:
        return tuple(told)
    own = found[check.side, False]
    if swapped.high < own or (check.wrong and not own.high < swapped):
        told.append(
            f"Read and write look swapped for the {check.side} side: as they are, pictures can "
            f"align with {check.left:.3f} of the {text} of {classes}, exchanged with "
            f"{check.left_swapped:.3f}"
        )
        if own.n:
            told[-1] += (
                f"; {percent(own)} of {its} pictures find {its} text first, exchanged "
                f"{percent(swapped)}"
            )
        told[-1] += "."
    return tuple(told)
