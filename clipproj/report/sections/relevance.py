"""What the audit "relevance" says: its lead, tables and charts."""

from __future__ import annotations

import math

from clipproj.audit.relevance import AUDIT, RelevanceResult
from clipproj.report.formatting import count, listed, percent
from clipproj.report.images import image
from clipproj.report.page import Figure, Page, Table


def page(result: RelevanceResult) -> Page:
    """The numbers, a table, and some images with their maps."""
    parts = []
    for heat in result.forgotten:
        parts.append(
            f"Of the heat that sets {listed([heat.name])} apart from the other texts, "
            f"{_percent(heat.apart)} is left in its {count(heat.before.n, 'image')}, of the "
            f"heat of its bare text {_percent(heat.kept)}; it answered "
            f"{percent(heat.answered_before)} of them before and "
            f"{percent(heat.answered_after)} after."
        )
        if heat.turned > max(heat.kept, 0.05):
            parts.append(
                f"The text is turned against them instead, by {_percent(heat.turned)} of the "
                "heat there was: where it is pushed away from still shows the class."
            )
    seen = {heat.name for heat in result.forgotten}
    missing = [name for name in result.forget if name not in seen]
    if missing:
        parts.append(f"There is no image of {listed(missing)}, so no map.")
    kept = result.kept
    if kept.correlation.n:
        parts.append(
            "Maps of the other classes correlate with what they were at "
            f"{kept.correlation:.2f}, over {count(kept.correlation.n, 'image')} that had one "
            "both times."
        )
    parts.append(
        "A map tells where a text is seen, not whether the images still differ: that is for "
        "a probe."
    )
    shown = (*result.forgotten, *result.nearest, kept)
    columns = {
        "Class": [h.name for h in shown],
        "Heat before": [h.before for h in shown],
        "Heat after": [h.after for h in shown],
        "Heat kept %": [h.kept for h in shown],
        "Turned negative by %": [h.turned for h in shown],
        "Kept of what sets it apart %": [h.apart for h in shown],
        "Correlation of the maps": [h.correlation for h in shown],
    }
    if result.attention:
        columns["Attention kept %"] = [h.attended for h in shown]
        columns["Correlation of attention"] = [h.attended_correlation for h in shown]
    columns["Answered before %"] = [h.answered_before for h in shown]
    columns["Answered after %"] = [h.answered_after for h in shown]
    caption = (
        f"Each class in its own images, {result.grid[0]} x {result.grid[1]} positions each: the "
        "forgotten ones, those nearest to them, all others together."
    )
    figures: tuple[Figure, ...] = ()
    if result.drawn:
        alt = f"Heat maps of {', '.join(dict.fromkeys(result.drawn))} before and after the edit"
        words = (
            "The image as the model sees it, and what sets its class apart: heat before, "
            f"heat after, on one scale. By row: {', '.join(result.drawn)}."
        )
        figures = (image(result.image, alt=alt, caption=words),)
    table = Table(tuple(columns), tuple(zip(*columns.values(), strict=True)), caption)
    return Page(AUDIT.key, AUDIT.title, " ".join(parts), (table,), figures)


def _percent(value: float) -> str:
    return "nothing, as there was none," if math.isnan(value) else percent(value)
