"""What the audit "tune" says: its lead, tables and charts."""

from __future__ import annotations

from clipproj.audit.tune import AUDIT, Tuned
from clipproj.report.charts import lines
from clipproj.report.formatting import percent
from clipproj.report.page import Page, Table

ROWS = 20  # of the table of a page, about


def page(result: Tuned) -> Page:
    """The curve as a table and an image."""
    outcome = "meets" if result.met else "is the nearest to, and does not meet,"
    chosen, base = result.chosen, result.base
    lead = (
        f"Strength {result.strength:g} {outcome} the target: of the forgotten at most "
        f"{percent(result.forget_at_most)} still answered by their class, of all others at most "
        f"{percent(result.keep_loss_at_most)} lost. It leaves {percent(chosen.forget)} of the "
        f"forgotten ({percent(base.forget)} before), {percent(chosen.keep)} of the others "
        f"({percent(base.keep)}) and {percent(chosen.nearest)} of the nearest "
        f"({percent(base.nearest)}). The strength was chosen on these {chosen.keep.n} and "
        f"{chosen.forget.n} samples themselves."
    )
    columns = ("strength", "forgotten %", "all others %", "nearest %", "rest %", "probe %")
    every = max(1, len(result.points) // ROWS)
    shown = [p for i, p in enumerate(result.points) if i % every == 0 or p is result.chosen]
    rows = tuple((f"{p.strength:g}", p.forget, p.keep, p.nearest, p.others, p.probe) for p in shown)
    caption = f"The area under keep over forgetting, of all strengths, is {result.area:.3f}."
    x = [p.strength for p in result.points]
    chart = lines(
        {
            "forgotten": (x, [p.forget for p in result.points]),
            "all others": (x, [p.keep for p in result.points]),
            "nearest others": (x, [p.nearest for p in result.points]),
        },
        "strength", "accuracy", marked=result.strength,
        alt="Accuracy on forgotten, other and nearest classes over the strength",
        caption="Accuracy over the strength; the dotted line is the chosen one.",
    )  # fmt: skip
    return Page(
        AUDIT.key,
        AUDIT.title,
        lead,
        (Table(columns, rows, caption, folded="The values"),),
        (chart,),
    )
