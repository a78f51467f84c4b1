"""Pages laid out: one HTML file that needs no other, and tables for a terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from clipproj import files
from clipproj._version import __version__
from clipproj.report.formatting import cell
from clipproj.report.page import Page, Table
from clipproj.report.report import template

NAME = 20  # letters of a name that a narrow terminal still shows in one line

if TYPE_CHECKING:
    from rich.table import Table as Printed


def write_pages(
    path: str | os.PathLike[str],
    pages: Sequence[Page],
    *,
    title: str,
    eyebrow: str,
    facts: Mapping[str, str],
) -> None:
    """Write pages as one HTML file, atomically. The same pages give the same bytes.

    Args:
        title, eyebrow: the heading and the small line above it.
        facts: what the numbers are of: model, pictures, method.

    Raises OSError when it cannot be written, ImportError without jinja2.
    """
    html = template("pages.html.j2").render(
        title=title, eyebrow=eyebrow, facts=facts, pages=pages, version=__version__
    )
    with files.atomic(path) as part:
        part.write_text(html, "utf-8", "backslashreplace")  # a path may be no UTF-8


def printed(table: Table, title: str = "") -> Printed:
    """A table for a terminal, without intervals. ImportError without rich."""
    try:
        from rich import box
        from rich.table import Table as Printed
        from rich.text import Text
    except ImportError as error:
        raise ImportError("tables are printed by rich: install clipproj[cli]") from error
    out = Printed(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        caption=Text(table.caption) if table.caption else None,
        caption_justify="left",
    )
    rows = [[cell(v, h) for v, h in zip(row, table.columns, strict=True)] for row in table.rows]
    for i, name in enumerate(table.columns):
        longest = max((len(row[i]) for row in rows), default=0)
        words = i == 0 or any(isinstance(row[i], str) for row in table.rows)
        # numbers and the words of headings are never cut: names fold instead
        least = min(longest, NAME) if words else max(longest, *map(len, name.split()))
        shown = name if words else name.replace(" ", "\n")
        justify = "left" if i == 0 else "right"
        out.add_column(Text(shown), justify=justify, overflow="fold", min_width=least)
    for row in rows:
        out.add_row(*map(Text, row))
    return out
