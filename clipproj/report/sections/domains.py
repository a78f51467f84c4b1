"""What the audit "domains" says: its lead, tables and charts."""

from __future__ import annotations

from clipproj.audit.domains import AUDIT, DomainsResult
from clipproj.report.formatting import count, listed, percent
from clipproj.report.page import Page, Table


def page(result: DomainsResult) -> Page:
    """The matrix as a page of a report."""
    seen = [d for d in result.domains if d.forget_before.n]
    names = listed(result.forget)
    lead = f"No domain has an image of {names}: where it went was not measured."
    if seen:
        told = (
            f"{d.name}, {percent(d.forget_before)} to {percent(d.forget_after)} of "
            f"{count(d.forget_after.n, 'image')}"
            for d in sorted(seen, key=lambda d: d.forget_after - d.forget_before)
        )
        lead = f"Accuracy on {names}, where it fell most first: {'; '.join(told)}."
    columns = ("domain", "forgotten before %", "after %", "others before %", "after %")
    rows = tuple(
        (d.name, d.forget_before, d.forget_after, d.keep_before, d.keep_after)
        for d in result.domains
    )
    return Page(AUDIT.key, AUDIT.title, lead, (Table(columns, rows),))
