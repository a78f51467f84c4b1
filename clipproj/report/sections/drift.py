"""What the audit "drift" says: its lead, tables and charts."""

from __future__ import annotations

import math

from clipproj.audit.drift import AUDIT, SHARES, DriftResult
from clipproj.report.charts import lines
from clipproj.report.formatting import cosine, count, either, listed, percent
from clipproj.report.page import Page, Table


def page(result: DriftResult) -> Page:
    """The audit in a report."""
    rows = tuple(
        (name, one.cosine, one.length, one.shortest, one.longest, one.cka, one.agreement,
         one.divergence)
        for name, one in result.moved.items()
    )  # fmt: skip
    near = ""
    if result.nearest:
        near = f" The nearest are images of {listed(result.nearest, 5)}."
    table = Table(
        ("rows", "cosine", "length", "shortest", "longest", "CKA", "same answer %", "KL, nats"),
        rows,
        "Each compares after with before: 1, 1, 1, 1, 1, 100 % and 0 are no change. Length is "
        "relative. CKA is the likeness of how rows lie to each other, KL how far the "
        f"probabilities of the classes moved.{near}",
    )
    series = {
        name: (SHARES, one.cosines)
        for name, one in result.moved.items()
        if not math.isnan(one.cosines[0])
    }
    figure = lines(
        series,
        "share of rows",
        "cosine between before and after, at most",
        alt="Cosines between rows before and after the edit, from the lowest to the highest.",
        caption="Cosines between before and after, from the row that moved most.",
        y_range=None,
    )
    figures = (figure,) if series else ()
    return Page(AUDIT.key, AUDIT.title, lead(result), (table,), figures)


def lead(result: DriftResult) -> str:
    """What came of it, in words."""
    kept, forgotten = result.moved["kept images"], result.moved["forgotten images"]
    rows, what = kept, "Kept images"
    if result.side == "text":
        rows, what = (
            result.moved["kept texts"],
            "No image moves, as the edit is of texts. Kept texts",
        )
    lead = "There is no kept image: its drift was not measured."
    if kept.agreement.n:
        lead = (
            f"{what} keep a mean cosine of {cosine(rows.cosine)} with what they were. "
            f"{percent(kept.agreement)} of {count(kept.agreement.n, 'kept image')} keep "
            "their answer, right or wrong."
        )
    elif result.side == "text":
        lead = "There is no kept image, and no image moves: the edit is of texts."
    if forgotten.agreement.n and result.side == "image":
        lead += (
            f" Images of {listed(result.forget)} keep a mean cosine of {cosine(forgotten.cosine)}: "
            "the edit moves them, and what it leaves of each may still tell the class, aligned "
            f"with {either(result.forget, 'its text', 'their texts')} or not."
        )
    return lead
