"""What the audit "accuracy" says: its lead, tables and charts."""

from __future__ import annotations

from clipproj.audit.evaluate import AUDIT, Comparison
from clipproj.report import formatting
from clipproj.report.page import Page, Table


def page(result: Comparison) -> Page:
    """The accuracies as a page of a report, the nearest and the worst hit classes below."""
    before, after = result.before, result.after
    names = (
        ("forgotten", "forget"), ("all others", "keep"), ("nearest others", "nearest"),
        ("the rest", "others"),
    )  # fmt: skip
    rows = [(title, getattr(before, key), getattr(after, key)) for title, key in names]
    rows.append(("a linear probe finds of the forgotten", before.probe, after.probe))
    fell = sorted(after.per_class, key=lambda c: after.per_class[c] - before.per_class[c])
    fell = [c for c in fell if c not in result.forget and c not in result.nearest][:5]
    classes = [(c, before.per_class[c], after.per_class[c]) for c in (*result.nearest, *fell)]
    changed, images = "", len(before.predictions)
    if images:
        changed = f" Of {formatting.count(images, 'answer')} {len(result.changed)} changed."
    return Page(
        AUDIT.key,
        AUDIT.title,
        f"{formatting.result(result)} {formatting.caveat(result)}{changed}",
        (
            Table(("images", "before %", "after %"), tuple(rows)),
            Table(
                ("class", "before %", "after %"),
                tuple(classes),
                "The nearest classes, then the five others that fell most.",
            ),
        ),
    )
