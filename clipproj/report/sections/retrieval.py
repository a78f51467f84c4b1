"""What the audit "retrieval" says: its lead, tables and charts."""

from __future__ import annotations

from collections.abc import Iterator

from clipproj.audit.retrieval import AUDIT, RetrievalResult
from clipproj.audit.search import Search
from clipproj.report.formatting import count, either, listed, percent
from clipproj.report.page import Page, Table

_NOISE = 1e-5  # length of an edited unit text below which its direction is rounding
_SAME = 0.999  # cosine from which an edited text has kept its direction, if it lost length at all
_BY_TEXT = (
    "A class text searches all images; recall@k and precision@k are of the first k that it "
    "finds. Which row a service has: images, unit: an edited image "
    "tower, or an index built anew. Images, as left: an index edited in place and not divided "
    "again. Texts, unit: an edited text tower behind the usual normalisation. Texts, as left: "
    "class texts edited once and used at the length they then have. The length of the text that "
    "searches does not count, so both rows of texts are as “images, as left”, but for rounding. A "
    "class with m images has a recall of at most k / m and a precision of at most m / k."
)
_BY_IMAGE = (
    "An image searches all class texts. The length of the image that searches does not count, "
    "so both rows of images are as “texts, as left”, but for rounding."
)


def page(result: RetrievalResult) -> Page:
    """The audit in a report."""
    before = result.before
    ks = list(before.images_recall["forgotten"])
    of_texts = list(before.texts_recall["forgotten"])
    images = tuple(
        (setting, group, *found.values(), *search.images_precision[group].values())
        for setting, search in _settings(result)
        for group, found in search.images_recall.items()
    )
    texts = tuple(
        (setting, group, *found.values())
        for setting, search in _settings(result)
        for group, found in search.texts_recall.items()
    )
    recall = tuple(f"recall@{k} %" for k in ks)
    precision = tuple(f"precision@{k} %" for k in ks)
    tables = (
        Table(("edited rows", "classes", *recall, *precision), images, _BY_TEXT),
        Table(
            ("edited rows", "classes", *(f"recall@{k} %" for k in of_texts)),
            texts,
            _BY_IMAGE,
        ),
    )
    return Page(AUDIT.key, AUDIT.title, lead(result), tables)


def lead(result: RetrievalResult) -> str:
    """What came of it, in words."""
    own = result.after[0]
    searches = (result.before, own.search)
    k = max(result.before.images_recall["forgotten"])
    by_text = [s.images_recall["forgotten"][k] for s in searches]
    by_image = [s.texts_recall["forgotten"][1] for s in searches]
    names, its = listed(result.forget), either(result.forget, "its", "their")
    if not by_image[0].n:
        lead = f"There is no image of {names}: {its} search was not measured."
        return " ".join([lead, *warnings(result)])
    text = either(result.forget, "text", "texts")
    lead = (
        f"With the edit on the {own.side} side and its rows normalised again, "
        f"{percent(by_image[1])} of {count(by_image[0].n, 'image')} of {names} find "
        f"the text of their class first (before {percent(by_image[0])})"
    )
    if not result.others:
        return " ".join([f"{lead}. No other image competes for {its} {text}.", *warnings(result)])
    verb = either(result.forget, "finds", "find")
    lead += (
        f", and {its} {text} {verb} {percent(by_text[1])} of {its} images among the first "
        f"{k} (before {percent(by_text[0])})."
    )
    if by_text[1] > by_text[0] / 2:
        lead += (
            f" {its.capitalize()} {text} can still be searched with: among images that "
            "compete for one text only their order counts, not how far their scores fell."
        )
    return " ".join([lead, *warnings(result)])


def _settings(result: RetrievalResult) -> Iterator[tuple[str, Search]]:
    yield "none", result.before
    for one in result.after:
        yield f"{one.side}s, {'unit' if one.renormalized else 'as left'}", one.search


def _how_much(result: RetrievalResult, again: float) -> str:
    """How much of an edit a normalisation undoes, by the answers."""
    before = result.before.texts_recall["forgotten"][1]
    return "part of" if again < 0.9 * before else "most of"


def warnings(result: RetrievalResult) -> tuple[str, ...]:
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
            f"{cosine:.4f} with what {they}; normalised, {percent(again)} of {its} images find "
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
            f"Read and write look swapped for the {check.side} side: as they are, images can "
            f"align with {check.left:.3f} of the {text} of {classes}, exchanged with "
            f"{check.left_swapped:.3f}"
        )
        if own.n:
            told[-1] += (
                f"; {percent(own)} of {its} images find {its} text first, exchanged "
                f"{percent(swapped)}"
            )
        told[-1] += "."
    return tuple(told)
