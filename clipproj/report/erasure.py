"""What report.html and the screen say of an erasure; the report is kept next to the receipt."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Protocol

from clipproj.audit.evaluate import NO_ANSWER, Comparison, CurvePoint, as_dict
from clipproj.audit.gate import Judgement
from clipproj.audit.images import Images
from clipproj.certificates import Certificate
from clipproj.editing.receipt import Receipt
from clipproj.editing.verify import Verdict
from clipproj.models.text import Embeddings
from clipproj.models.words import name_key
from clipproj.projector import Projector
from clipproj.refusal import Refusal
from clipproj.report import formatting, html, summary
from clipproj.report.certificate import page as certificate_page
from clipproj.report.charts import lines
from clipproj.report.formatting import count, listed, percent
from clipproj.report.images import thumbnail
from clipproj.report.page import Card, Gallery, Page, Report, Table, Thumbnail

GALLERY = 20  # images
BARS = 20  # classes, the rest folded away
KEPT = 12  # kept names that the receipt names


def write_report(
    path: str | os.PathLike[str],
    *,
    projector: Projector,
    texts: Comparison,
    verdict: Verdict,
    receipt: Receipt,
    edit_seconds: float,
    files: Mapping[str, str],
    undo_command: str | None,
    folded: JudgedEdit | None = None,
    alarms: Sequence[str] = (),
    notes: Sequence[str] = (),
    certificate: Certificate | None = None,
    comparison: Comparison | None = None,
    curve: Sequence[CurvePoint] = (),
    images: Images | None = None,
    classes: Embeddings | None = None,
) -> None:
    """Write the report, atomically. The same inputs give the same bytes.

    Args:
        texts: the same edit on `stand_ins`.
        files: what was written: what it is, to its path.
        undo_command: the command line that takes the edit back; None where no checkpoint was
            written.
        folded: the folded form, where `projector` and all that is measured are one-sided.
        alarms, notes: what is wrong with the edit, and what else is worth a word; at the top.
        certificate: what is proven of the edit; None where nothing is.
        comparison, images, classes: what `compare` was given and gave; without a comparison the
            report is about texts alone.
        curve: of `strength_curve`; left out when empty, as for an edit of the text tower.

    Raises:
        Refusal: for a comparison without its images and classes, or an image that cannot be read
            any more.
        OSError: when the file cannot be written.
        ImportError: without jinja2 or Pillow.
    """
    provenance = projector.provenance
    names = provenance.get("forget", {}).get("names") or [receipt.label]
    measured = texts if comparison is None else comparison
    pages = [_mixtures(texts), _receipt(receipt, verdict, projector), *_files(files, undo_command)]
    if comparison is not None:
        if images is None or classes is None:
            raise Refusal("write_report", "comparison", "must come with its images and classes")
        strength = [_strength(curve, float(projector.strength))] if curve else []
        pages = [_changed(comparison, images, classes), *strength, _classes(comparison), *pages]
    if certificate is not None:
        pages.insert(0, certificate_page(certificate))
    if folded is not None:
        pages.insert(0, _forms(comparison, texts, folded, undo_command is not None))
    report = Report(
        title=f"Erasing {listed(names)} from {provenance.get('model', 'a model')}",
        eyebrow="clipproj report",
        lead=formatting.result(measured),
        alarms=tuple(alarms),
        notes=tuple(notes),
        facts={
            "method": provenance.get("method", "projector"),
            "tower": receipt.tower,
            "rank": f"{projector.rank} of {projector.dim}",
            "strength": f"{float(projector.strength):g}",
            "edited in": formatting.duration(edit_seconds),
            "on": receipt.created[:10],
        },
        cards=(*summary.cards(as_dict(measured), as_dict(texts)), _card(verdict)),
        caveat=formatting.caveat(measured),
        pages=tuple(pages),
    )
    html.write(path, report)


def table(comparison: Comparison, texts: Comparison | None = None) -> Table:
    """The numbers that belong together, the nearest classes one by one, and what they do not say.

    Args:
        texts: the same edit on `stand_ins`, for forgotten names that no image is of.
    """
    before, after = comparison.before, comparison.after
    names = listed(comparison.forget or comparison.names)
    rows, strong = [], []

    def row(name: str, was: float, now: float, stands_out: bool = True) -> None:
        if stands_out:
            strong.append(len(rows))
        rows.append((name, was, now))

    if comparison.forget or texts is None:
        forgotten = count(comparison.images_forget, comparison.unit)
        row(f"{names} ({forgotten})", before.found, after.found)
    if comparison.unmeasured and texts is not None:
        some = comparison.unmeasured
        was, now = (scores.found_among(some) for scores in (texts.before, texts.after))
        row(f"{listed(some)} ({count(now.n, texts.unit)})", was, now)
    others = count(comparison.images_keep, comparison.unit)
    row(f"all other classes ({others})", before.keep, after.keep)
    near = len(comparison.nearest)
    title = "the nearest of them" if near == 1 else f"the {near} nearest of them"
    row(title, before.nearest, after.nearest)
    for name in comparison.nearest:
        row(f"    {name}", before.per_class[name], after.per_class[name], False)
    row("same answer as before, all others", 1.0, comparison.agreement, False)
    row(f"a linear probe finds {names}", before.probe, after.probe)
    columns = ("", "before %", "after %")
    return Table(columns, tuple(rows), formatting.caveat(comparison), strong=tuple(strong))


class JudgedEdit(Protocol):
    """A form of an edit: what it does to images (None without any), and what the gate measured."""

    @property
    def comparison(self) -> Comparison | None: ...
    @property
    def judged(self) -> Judgement: ...


def side_by_side(one_sided: JudgedEdit, folded: JudgedEdit) -> Table:
    """`table` of both forms of an edit."""
    return _both(*((one.comparison, one.judged.texts) for one in (one_sided, folded)))


def _both(
    one_sided: tuple[Comparison | None, Comparison], folded: tuple[Comparison | None, Comparison]
) -> Table:
    left, right = (table(images or texts, texts) for images, texts in (one_sided, folded))
    rows = [(*of, now) for of, (_, _, now) in zip(left.rows, right.rows, strict=True)]
    cosines = (formatting.cosine((images or texts).cosine) for images, texts in (one_sided, folded))
    rows.append(("mean cosine of all others to what they were", "1", *cosines))
    columns = ("", "before %", "one-sided %", "folded %")
    return Table(columns, tuple(rows), left.caption, strong=left.strong)


def _forms(
    comparison: Comparison | None, texts: Comparison, folded: JudgedEdit, written: bool
) -> Page:
    lead = (
        "The same names forgotten in both forms. One-sided, for rows on the fly (a service, "
        "attach, a bank, stores), it leaves what is harmless as it is; folded into the weights it "
        f"turns every row{'' if written else ', and is beyond the limits here: not written'}."
    )
    shown = _both((comparison, texts), (folded.comparison, folded.judged.texts))
    return Page("forms", "One-sided and folded", lead, (shown,))


def _card(verdict: Verdict) -> Card:
    role = "keep" if verdict else "forget"
    about = f"{verdict.text}; clipproj verify asks again"
    return Card("Receipt", verdict.status, about=about, role=role)


def _changed(comparison: Comparison, images: Images, classes: Embeddings) -> Page:
    """Two groups of images whose answer changed: of forgotten classes, and of others."""
    erased = {name_key(name) for name in comparison.forget}
    forgotten, others = [], []
    for i in comparison.changed.tolist():
        name = images.classes[images.labels[i]]
        (forgotten if name_key(name) in erased else others).append((i, name))
    room = GALLERY - min(len(forgotten), len(others), GALLERY // 2)  # the rest is the other group's

    def card(i: int, name: str) -> Thumbnail:
        was, now = (
            _answer(int(scores.predictions[i]), classes)
            for scores in (comparison.before, comparison.after)
        )
        note = "now right" if now == name else "" if was == name else f"is {name}"
        return Thumbnail(
            source=thumbnail(images.paths[i]),
            alt=f"An image of {name}",
            before=was or "no answer",
            after=now or "no answer",
            note=note,
            lost=was == name,
        )

    galleries = []
    for title, found, total in (
        ("Forgotten", forgotten, comparison.images_forget),
        ("Others", others, comparison.images_keep),
    ):
        if total:
            cards = tuple(card(i, name) for i, name in _spread(found, room))
            more = f", {len(cards)} of them shown" if len(found) > len(cards) else ""
            galleries.append(Gallery(f"{title}: {len(found)} of {total}{more}", cards))
    lead = "Under each image stands the answer before and, in bold, after."
    return Page("changed", "Images whose answer changed", lead, galleries=tuple(galleries))


def _spread(items: list, room: int) -> list:
    """At most `room` of the items, evenly from all of them."""
    if len(items) <= room:
        return items
    return [items[i * len(items) // room] for i in range(room)]


def _answer(prediction: int, classes: Embeddings) -> str | None:
    return None if prediction == NO_ANSWER else classes.names[prediction]


def _strength(curve: Sequence[CurvePoint], chosen: float) -> Page:
    """The four numbers over the strength."""
    x = [point.strength for point in curve]
    series = {
        "forgotten": (x, [point.forget for point in curve]),
        "all others": (x, [point.keep for point in curve]),
        "nearest others": (x, [point.nearest for point in curve]),
        "linear probe": (x, [point.probe for point in curve]),
    }
    lead = (
        "The four numbers on the same images at every strength: 0 leaves the model alone, 1 "
        "projects, 2 reflects."
    )
    if not any(point.probe == point.probe for point in curve):  # NaN
        lead += " The linear probe was not fitted at every strength."
    figure = lines(
        series, "strength", "share of images", marked=chosen, mark="chosen",
        alt="The four numbers over the strength",
    )  # fmt: skip
    columns = ("strength", "forgotten %", "all others %", "nearest others %", "linear probe %")
    rows = tuple((f"{p.strength:g}", p.forget, p.keep, p.nearest, p.probe) for p in curve)
    values = Table(columns, rows, folded="The values")
    return Page("strength", "Strength", lead, (values,), (figure,))


def _classes(comparison: Comparison) -> Page:
    """Classes with images: the forgotten ones, then the others by what they lost."""
    before, after = comparison.before.per_class, comparison.after.per_class
    erased = set(comparison.forget)
    names = sorted(before, key=lambda n: (n not in erased, after[n] - before[n], n))
    shown, rest = names[:BARS], names[BARS:]
    tables = [_bars(comparison, shown)]
    if rest:
        lost = "nothing" if after[rest[0]] >= before[rest[0]] else "no more than these"
        tables.append(_bars(comparison, rest, f"{len(rest)} more, which lost {lost}"))
    lead = "Accuracy before, in grey, and after. The forgotten first, then by what was lost."
    return Page("classes", "Class by class", lead, tuple(tables))


def _bars(comparison: Comparison, names: Sequence[str], folded: str = "") -> Table:
    before, after = comparison.before.per_class, comparison.after.per_class
    rows = tuple((name, float(before[name]), float(after[name])) for name in names)
    strong = tuple(i for i, name in enumerate(names) if name in comparison.forget)
    columns = ("class", "before %", "after %")
    return Table(columns, rows, strong=strong, bars=True, folded=folded)


def _mixtures(texts: Comparison) -> Page:
    mixtures = count(texts.images_forget + texts.images_keep, "mixture")
    lead = (
        "They stand in for images: three parts of a forgotten text and one of a kept one, or three "
        f"of a kept one and two of another. Accuracy before, in grey, and after, of {mixtures}: "
        f"all others {percent(texts.before.keep)} and {percent(texts.after.keep)}, the "
        "forgotten and the nearest below."
    )
    shown = _bars(texts, (*texts.forget, *texts.nearest))
    return Page("mixtures", "Mixtures of class texts", lead, (shown,))


def _receipt(receipt: Receipt, verdict: Verdict, projector: Projector) -> Page:
    provenance = projector.provenance
    head = f"{receipt.weight}, {receipt.bias}" if receipt.bias else receipt.weight
    bits = "; the bits agree" if verdict.exact else ""
    rows = {
        "status": f"{verdict.status}: {verdict.text}",
        "head": f"{head} ({receipt.dtype})",
        "SHA-256 before": receipt.head_before,
        "SHA-256 after": receipt.head_after,
        "projector": receipt.projector_hash,
        "error and bound": f"{verdict.error:.3g}, of at most {verdict.bound:.3g} that rounding "
        f"explains{bits}",
    }
    for name, value in (provenance.get("parameters") or {}).items():
        if value is not None:
            rows[name.replace("_", " ")] = str(value)
    if kept := provenance.get("keep", {}).get("names"):
        more = f" and {len(kept) - KEPT} more" if len(kept) > KEPT else ""
        rows["kept names"] = ", ".join(kept[:KEPT]) + more
    rows["date"] = receipt.created
    rows["made with"] = f"clipproj {receipt.clipproj}, torch {receipt.torch}"
    return Page("receipt", "Receipt", "", (Table(("", ""), tuple(rows.items()), code=True),))


def _files(files: Mapping[str, str], undo_command: str | None) -> tuple[Page, ...]:
    table = Table(("", ""), tuple(files.items()), code=True)
    if undo_command is None:
        return (Page("files", "Files", "", (table,)),)
    undo = "To take the edit back, bit for bit"
    return Page("files", "Files", "", (table,)), Page("undo", undo, "", command=undo_command)
