"""A page of a report: what an audit has to say, before it is laid out in HTML, text or JSON."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from clipproj.audit.stats import Measured, plain
from clipproj.refusal import Refusal

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

Cell = str | float | int | None
"""A text; a share or another number, `stats.Measured` with its interval; None for an empty cell."""


@dataclass(frozen=True)
class Table:
    """Columns and rows; the first column names the row.

    Args:
        columns: headings. A heading that ends in " %" shows its numbers as percent of 1.
        rows: as many cells each. Numbers that are `stats.Measured` show their interval.
        caption: what the reader must know to read it, or "".
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise Refusal(
                    "Table",
                    "rows",
                    f"must have {len(self.columns)} cells, got {len(row)} in {row[:1]}",
                )


@dataclass(frozen=True)
class Figure:
    """A picture as it stands in HTML: an `<svg>` element, or a data URI of an image.

    Args:
        svg, source: one of the two, the other "".
        alt: what it shows, for those who do not see it.
        caption: the words below it.
    """

    alt: str
    caption: str
    svg: str = ""
    source: str = ""


@dataclass(frozen=True)
class Page:
    """One audit in a report.

    Args:
        key: what it is called in files and on the command line.
        title: its heading.
        lead: one to three sentences: what came of it, numbers included, and what that means. No
            claim that information is gone where only its alignment with text is.
        tables, figures: in this order.
    """

    key: str
    title: str
    lead: str
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    *,
    alt: str,
    caption: str = "",
    y_range: tuple[float, float] | None = (0.0, 1.0),
    marked: float | None = None,
) -> Figure:
    """A line chart as SVG: name of a line to its x and y values; `marked` is an x to point out."""
    plot, axes = _plot(6.4, 3.4)
    for name, (x, y) in series.items():
        axes.plot(x, y, marker="o", markersize=3, linewidth=1.6, label=name)
    if marked is not None:
        axes.axvline(marked, color="0.4", linestyle=":", linewidth=1)
    if y_range is not None:
        low, high = y_range
        axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)
    return Figure(alt, caption, svg=_svg(plot))


def dots(
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    x_label: str,
    *,
    alt: str,
    caption: str = "",
) -> Figure:
    """A line for each name with a dot for each series, the first name on top, as SVG."""
    plot, axes = _plot(6.4, 0.9 + 0.24 * len(names))
    places = range(len(names))
    for (name, values), marker in zip(series.items(), "os^vD", strict=False):
        axes.plot(values, places, marker=marker, markersize=5, linestyle="none", label=name)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(x_label)
    axes.legend(frameon=False, fontsize=8)
    return Figure(alt, caption, svg=_svg(plot))


def image(pixels: Tensor, *, alt: str, caption: str = "") -> Figure:
    """A picture from [h, w, 3] uint8, as a PNG inside a data URI."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(data, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    return Figure(alt, caption, source=source)


def need_charts() -> None:
    """ImportError where charts cannot be drawn: to be asked before an hour of measuring."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("charts are drawn by matplotlib: install clipproj[audit]") from error


def _plot(width: float, height: float) -> tuple[Plot, Any]:
    need_charts()
    from matplotlib.figure import Figure as Plot

    plot = Plot(figsize=(width, height), layout="constrained")
    axes = plot.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, linewidth=0.4, alpha=0.5)
    return plot, axes


def _svg(plot: Plot) -> str:
    """The same bytes each time, transparent, in the colour of the page's text."""
    import matplotlib

    for text in plot.findobj(matplotlib.text.Text):
        text.set_parse_math(False)  # names are names, also with a $ in them
    data = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "clipproj", "svg.fonttype": "none"}):
        plot.savefig(data, format="svg", transparent=True, metadata={"Date": None})
    text = data.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    own = hashlib.sha256(text.encode()).hexdigest()[:8]  # ids are of the file, not of the picture
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{own}-", text)


def as_json(page: Page) -> dict[str, Any]:
    """A page as JSON holds it, for `from_json`."""

    def held(cell: Cell) -> Any:
        if isinstance(cell, float):
            return plain(cell if isinstance(cell, Measured) else Measured(cell, 0))
        return cell

    tables = [
        {"columns": t.columns, "rows": [[held(c) for c in row] for row in t.rows],
         "caption": t.caption}
        for t in page.tables
    ]  # fmt: skip
    figures = [plain(figure) for figure in page.figures]
    return {"key": page.key, "title": page.title, "lead": page.lead, "tables": tables,
            "figures": figures}  # fmt: skip


def from_json(data: Mapping[str, Any]) -> Page:
    """The page that `as_json` gave."""

    def cell(value: Any) -> Cell:
        if not isinstance(value, Mapping):
            return value
        number = {k: math.nan if v is None else v for k, v in value.items()}
        return Measured(number["value"], value["n"], number["low"], number["high"])

    tables = tuple(
        Table(tuple(t["columns"]), tuple(tuple(map(cell, row)) for row in t["rows"]), t["caption"])
        for t in data["tables"]
    )
    figures = tuple(Figure(**figure) for figure in data["figures"])
    return Page(data["key"], data["title"], data["lead"], tables, figures)
