"""What reports say of a certificate: what holds for every row, and what carries it name by name."""

from __future__ import annotations

from collections.abc import Sequence

from clipproj.certificates import Certificate
from clipproj.report.page import Page, Table

SHOWN = 20  # forgotten names, the rest folded away with these
WITNESSES = 5  # kept names that carry one, the rest counted


def page(proven: Certificate) -> Page:
    """Each name's lead, by how much rounding may add to it, and the kept names that hold it."""
    rows = tuple(
        (name, f"{lead:.2e}", f"{proven.eps[name]:.1e}", _carried(proven.witnesses[name]))
        for name, lead in proven.leads.items()
    )
    columns = ("forgotten", "largest lead", "rounding adds", "held by")
    table = Table(columns, rows, folded="Name by name" if len(rows) > SHOWN else "")
    return Page("certificate", "Certificate", said(proven), (table,))


def said(proven: Certificate) -> str:
    """All of it as a paragraph that names the form that it is of."""
    return f"Certificate of the {proven.form} form. {proven}"


def _carried(witnesses: Sequence[tuple[str, float]]) -> str:
    shown = ", ".join(f"{name} {weight:.2f}" for name, weight in witnesses[:WITNESSES])
    more = len(witnesses) - WITNESSES
    return f"{shown} and {more} more" if more > 0 else shown
