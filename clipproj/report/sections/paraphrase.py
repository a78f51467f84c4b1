"""What the audit "paraphrase" says: its lead, tables and charts."""

from __future__ import annotations

from clipproj.audit.paraphrase import AUDIT, VECTORS, ParaphraseResult
from clipproj.audit.text_attack import Text
from clipproj.report.formatting import count, listed, percent
from clipproj.report.page import Page, Table


def page(result: ParaphraseResult) -> Page:
    """The strongest of each kind, and what it would have been before the edit."""
    parts = [lead(result, own) for own in result.own]
    fitted = [a.held_out.auroc for a in result.attacks if a.kind == "any vector"]
    if any(auroc.low > 0.5 for auroc in fitted):
        parts.append(
            "A fitted vector that tells the images from others shows that they still differ, "
            "whatever the texts say."
        )
    elif any(auroc.n for auroc in fitted):
        parts.append(
            "That so few images do not show a vector to tell them from others does not show "
            "that there is none."
        )
    rows = [
        ("the class's own name", own.text, 1, own.before.answered, own.after.answered,
         own.after.taken, own.before.auroc, own.after.auroc, None, None)
        for own in result.own
    ]  # fmt: skip
    for a in result.attacks:
        s = a.strongest
        if s is not None:
            rows.append((
                f"{a.name}: {a.kind}", s.text, a.tried, s.before.answered, s.after.answered,
                s.after.taken, s.before.auroc, s.after.auroc, a.held_out.answered,
                a.unedited.answered,
            ))  # fmt: skip
        elif a.kind in VECTORS:
            rows.append((
                f"{a.name}: {a.kind}", "(fitted)", None, None, None, a.held_out.taken,
                a.unedited.auroc, a.held_out.auroc, a.held_out.answered, a.unedited.answered,
            ))  # fmt: skip
    columns = (
        "Kind", "Strongest", "Of", "Finds before %", "Finds after %", "Takes of others after %",
        "AUROC before", "AUROC after", "Held out after %", "Held out, unedited %",
    )  # fmt: skip
    caption = (
        "Each text takes the place of the class's own among all class texts. The strongest of "
        "many is biased upward; held out: chosen on one half of the images and measured on "
        "the other, after the edit and, as its control, on the unedited model. Vectors are "
        "fitted and measured that way only."
    )
    tables = [Table(columns, tuple(rows), caption)]
    detectors = tuple(
        (f"{a.name}: {a.kind}", a.detector.text, a.tried, a.detector.before.auroc,
         a.detector.after.auroc, a.held_out.auroc, a.unedited.auroc)
        for a in result.attacks if a.detector is not None
    )  # fmt: skip
    if detectors:
        columns = ("Kind", "Best detector", "Of", "AUROC before", "AUROC after",
                   "Held out after", "Held out, unedited")  # fmt: skip
        tables.append(Table(columns, detectors, "The text whose cosine ranks images best."))
    if result.unknown:
        tables.append(Table(
            ("Translation", "AUROC before", "AUROC after"),
            tuple((t.text, t.before.auroc, t.after.auroc) for t in result.unknown),
            f"Not known to the unedited model (AUROC below {result.level:g}), so no attack.",
        ))  # fmt: skip
    return Page(AUDIT.key, AUDIT.title, " ".join(parts), tuple(tables))


def lead(result: ParaphraseResult, own: Text) -> str:
    """What came of it, in words."""
    name, images = own.text, own.before.answered.n
    mine = [a for a in result.attacks if a.name == name]
    if not mine:
        what = "no image of another class" if images else "no image of it"
        return f"{listed([name])} was not attacked: there is {what}."
    lead = (
        f"{listed([name])} finds {percent(own.before.answered)} of its "
        f"{count(images, 'image')} before the edit and {percent(own.after.answered)} after."
    )
    if own.after.auroc.high < 0.5:
        lead += (
            f" After the edit its text ranks them last (AUROC {own.after.auroc:.2f}): turned "
            "round, it still finds them."
        )
    broader = [a for a in mine if a.kind == "broader word" and a.tried]
    texts = [a for a in mine if a.strongest is not None and a not in broader]
    if texts:
        best = max(texts, key=lambda a: a.strongest.after.answered - a.strongest.after.taken)
        s = best.strongest
        lead += (
            f" The strongest of {count(sum(a.tried for a in texts), 'other text')} after it, "
            f"{listed([s.text])} ({best.kind}), finds {percent(s.after.answered)} "
            f"({percent(s.before.answered)} before) and takes {percent(s.after.taken)} of the "
            "other images; it was chosen on these images."
        )
    for a in broader:
        s = a.strongest
        lead += (
            f" The broader {listed([s.text])} finds {percent(s.after.answered)} "
            f"({percent(s.before.answered)} before): the kind of thing, which no edit of a "
            "single class is to take."
        )
    measured = [a for a in mine if a.held_out.answered.n]
    for a in measured:
        after, unedited = percent(a.held_out.answered), percent(a.unedited.answered)
        if a.kind == "prompt search":
            lead += (
                f" A prompt searched on half of the images finds {after} of the other half; "
                f"searched on the unedited model, {unedited}."
            )
        if a.kind == "mix of texts":
            lead += (
                f" A mix of texts fitted to half of the images finds {after} of the other "
                f"half ({unedited} on the unedited model)."
            )
        if a.kind == "any vector":
            lead += (
                " A vector fitted to half of the images ranks the other half with AUROC "
                f"{a.held_out.auroc:.2f} ({a.unedited.auroc:.2f} before)."
            )
    if not measured:
        lead += (
            " Nothing could be searched on one half of the images and measured on the other: "
            "that takes 4 of the class."
        )
    return lead
