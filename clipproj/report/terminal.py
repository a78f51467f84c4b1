"""The tables of a report on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipproj.report.formatting import cell
from clipproj.report.page import Table

if TYPE_CHECKING:
    from rich.table import Table as Printed

NAME = 20  # letters of a text that a narrow terminal still shows in one line


def printed(table: Table, title: str = "") -> Printed:
    """A table for a terminal, without intervals, bars and links. ImportError without rich.

    Example:
        >>> rich.console.Console().print(printed(Table(("class", "found %"), (("cat", 0.5),))))
    """
    try:
        from rich import box
        from rich.table import Table as Printed
        from rich.text import Text  # names are shown as they are: no markup is read in them
    except ImportError as error:
        raise ImportError("tables are printed by rich: install clipproj[cli]") from error
    title = title or table.title
    out = Printed(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        caption=Text(table.caption) if table.caption else None,
        caption_justify="left",
    )
    rows = [[cell(v, h) for v, h in zip(row, table.columns, strict=True)] for row in table.rows]
    for i, (name, numeric) in enumerate(zip(table.columns, table.numeric, strict=True)):
        longest = max((len(row[i]) for row in rows), default=0)
        # numbers and the words of headings are never cut: texts fold instead
        least = max(longest, *map(len, name.split())) if numeric else min(longest, NAME)
        shown = name.replace(" ", "\n") if numeric else name
        justify = "right" if numeric else "left"
        out.add_column(Text(shown), justify=justify, overflow="fold", min_width=least)
    for i, row in enumerate(rows):
        out.add_row(*map(Text, row), style="bold" if i in table.strong else "")
    return out
