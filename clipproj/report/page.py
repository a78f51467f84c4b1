"""What a report is made of, before it is laid out: tables, figures, pages and their summary.

They hold numbers and words alone. `html.write` makes a file of them, `terminal.printed` lines for a
screen, `charts` and `images` the figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from clipproj.audit.stats import Measured, plain
from clipproj.refusal import Refusal

Cell = str | float | int | None
"""A text; a share or another number, `stats.Measured` with its interval; None for an empty cell."""


@dataclass(frozen=True)
class Table:
    """Columns and rows; the first column names the row.

    Args:
        columns: headings. A heading that ends in " %" shows its numbers as percent of 1.
        rows: as many cells each. Numbers that are `stats.Measured` show their interval.
        caption: what the reader must know to read it, or "".
        title: a heading of its own, or "".
        strong: which rows stand out, from 0.
        links: keys of the pages that the rows lead to, one a row, or none.
        bars: whether the second and third column, shares before and after, are drawn as well.
        code: whether the cells are paths, hashes or code.
        folded: the line under which the table is folded away in HTML; "" for one that is not.

    Raises Refusal for rows of another length than the headings, links for some rows only.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    title: str = ""
    strong: tuple[int, ...] = ()
    links: tuple[str, ...] = ()
    bars: bool = False
    code: bool = False
    folded: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise Refusal(
                    "Table",
                    "rows",
                    f"must have {len(self.columns)} cells, got {len(row)} in {row[:1]}",
                )
        if len(self.links) not in (0, len(self.rows)):
            raise Refusal("Table", "links", f"must be {len(self.rows)}, got {len(self.links)}")

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Which columns hold numbers: they stand to the right and are never cut."""
        cells = zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns)
        return tuple(i > 0 and not any(isinstance(c, str) for c in column)
                     for i, column in enumerate(cells))  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A chart or an image as it stands in HTML.

    Args:
        alt: what it shows, for those who do not see it.
        caption: the words below it.
        svg: a chart as `charts` draws it, "" for an image.
        source: an image as a data URI, "" for a chart.
    """

    alt: str
    caption: str
    svg: str = ""
    source: str = ""


@dataclass(frozen=True)
class Thumbnail:
    """A small image and what was answered to it; `lost` where the first answer was right."""

    source: str
    alt: str
    before: str
    after: str
    note: str = ""
    lost: bool = False


@dataclass(frozen=True)
class Gallery:
    """Thumbnails under a heading."""

    title: str
    thumbnails: tuple[Thumbnail, ...]


@dataclass(frozen=True)
class Page:
    """A section of a report, as one audit fills one.

    Args:
        key: what it is called in files and on the command line.
        title: its heading.
        lead: one to three sentences: what came of it, numbers included, and what that means. No
            claim that information is gone where only its alignment with text is.
        galleries, figures, tables: in this order.
        command: a command line to copy, below everything; "" for none.
    """

    key: str
    title: str
    lead: str
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    command: str = ""


@dataclass(frozen=True)
class Card:
    """A number of the summary.

    Args:
        label: what it is.
        value: as it is shown.
        before: the same before the edit, in words.
        about: what it is of.
        role: its colour: forget, keep, nearest, probe or "".
    """

    label: str
    value: str
    before: str = ""
    about: str = ""
    role: str = ""


@dataclass(frozen=True)
class Report:
    """A file: a summary of what matters, then its pages.

    Args:
        title, eyebrow: the heading and the small line above it.
        pages: in this order, each of a key of its own.
        lead: what came of it, in one to three sentences.
        facts: what the numbers are of: model, images, method.
        alarms: what is wrong; notes: what else is worth a word. Both stand above the numbers.
        cards: numbers that are only read together.
        caveat: what these numbers do not say.
        tables: of the summary.
    """

    title: str
    eyebrow: str
    pages: tuple[Page, ...]
    lead: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    alarms: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    cards: tuple[Card, ...] = ()
    caveat: str = ""
    tables: tuple[Table, ...] = ()


def as_json(page: Page) -> dict[str, Any]:
    """A page as JSON holds it, for `from_json`; fields that are empty are left out."""

    def held(value: Any) -> Any:
        if isinstance(value, float) and not isinstance(value, Measured):
            return plain(Measured(value, 0))
        if isinstance(value, Table | Figure | Page | Gallery | Thumbnail):
            told = {f.name: (getattr(value, f.name), f.default) for f in fields(value)}
            return {k: held(v) for k, (v, usual) in told.items() if usual is MISSING or v != usual}
        return [held(one) for one in value] if isinstance(value, tuple) else plain(value)

    return held(page)


def from_json(data: Mapping[str, Any]) -> Page:
    """The page that `as_json` gave."""

    def cell(value: Any) -> Cell:
        if not isinstance(value, Mapping):
            return value
        number = {k: math.nan if v is None else v for k, v in value.items()}
        return Measured(number["value"], value["n"], number["low"], number["high"])

    def table(one: Mapping[str, Any]) -> Table:
        rows = tuple(tuple(map(cell, row)) for row in one["rows"])
        lists = {k: tuple(one.get(k, ())) for k in ("columns", "strong", "links")}
        return Table(**{**one, **lists, "rows": rows})

    def gallery(one: Mapping[str, Any]) -> Gallery:
        return Gallery(one["title"], tuple(Thumbnail(**t) for t in one["thumbnails"]))

    made = {"tables": table, "figures": lambda one: Figure(**one), "galleries": gallery}
    return Page(**{**data, **{k: tuple(map(make, data.get(k, ()))) for k, make in made.items()}})
