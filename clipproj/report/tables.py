"""The tables that the command prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipproj.audit.evaluate import Comparison
from clipproj.report.formatting import caveat, cosine, count, duration, listed, percent

if TYPE_CHECKING:
    from rich.table import Table


def table(comparison: Comparison, edit_seconds: float, texts: Comparison | None = None) -> Table:
    """The numbers that belong together, the nearest classes one by one, and what they do not say.

    Args:
        texts: the same edit on `stand_ins`, for forgotten names that no image is of.

    Raises ImportError without rich.
    """
    before, after = comparison.before, comparison.after
    forgotten = count(comparison.images_forget, comparison.unit)
    others = count(comparison.images_keep, comparison.unit)
    out = _table("before", "after", caption=caveat(comparison))

    def row(name: str, one: str, other: str, style: str = "") -> None:
        out.add_row(_text(name), _text(one), _text(other, style))

    names = listed(comparison.forget or comparison.names)
    if comparison.forget or texts is None:
        row(f"{names} ({forgotten})", percent(before.found), percent(after.found), "bold")
    if comparison.unmeasured and texts is not None:
        some = comparison.unmeasured
        was, now = (scores.found_among(some) for scores in (texts.before, texts.after))
        row(f"{listed(some)} ({count(now.n, texts.unit)})", percent(was), percent(now), "bold")
    row(f"all other classes ({others})", percent(before.keep), percent(after.keep), "bold")
    near = len(comparison.nearest)
    title = "the nearest of them" if near == 1 else f"the {near} nearest of them"
    row(title, percent(before.neighbours), percent(after.neighbours), "bold")
    for name in comparison.nearest:
        row(f"    {name}", percent(before.per_class[name]), percent(after.per_class[name]))
    row("same answer as before, all others", percent(1.0), percent(comparison.agreement))
    if comparison.unit == "image":
        row(f"a linear probe finds {names}", percent(before.probe), percent(after.probe), "bold")
    else:
        row(f"a linear probe finds {names}", "unknown", "unknown")
    out.add_section()
    row("cosine to the unedited feature", cosine(1.0), cosine(comparison.cosine))
    row("time of the edit", "", duration(edit_seconds))
    return out


def _table(*columns: str, caption: str) -> Table:
    try:
        from rich import box
        from rich.table import Table
    except ImportError as error:
        raise ImportError("tables are printed by rich: install clipproj[cli]") from error
    out = Table(box=box.SIMPLE_HEAD, caption=_text(caption), caption_justify="left")
    out.add_column("")
    for name in columns:
        out.add_column(name, justify="right")
    return out


def _text(words: str, style: str = ""):  # names are shown as they are: no markup is read in them
    from rich.text import Text

    return Text(words, style=style)
